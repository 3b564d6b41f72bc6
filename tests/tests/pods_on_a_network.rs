//! Pods with a network, through the CRI socket of the real containerd: many of them, one that is flooded, and one whose containerd goes away.
//!
//! What a single pod reaches is in the conformance suite. One node in a network of its own serves all tests of this file, one after the other:
//! counting what is left allows nothing beside it. By hand: `KATA_RS_TEST_NETWORK_PODS=200`, `KATA_RS_TEST_FLOOD_SECONDS=60`.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::{
        LazyLock, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use cri::v1;
use rustix::process::Signal;
use tests::{
    NetworkNamespace, Residue,
    containerd::RUNTIME,
    needs,
    node::{Container, Network, Node, Pod, Template, poll_until},
    requirement::count,
};

/// Pods that are there at the same time.
const AT_ONCE: u64 = 4;
/// Longest that the kernel takes to clear away what nobody holds any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// After a flood a pod is reached again within this time. A second is what it may take on a host of its own; here the hardware lane shares it.
const BACK_WITHIN: Duration = Duration::from_secs(4);
/// One try in that time: who waits for TCP to send its first packet again waits a second.
const TRY: Duration = Duration::from_millis(200);
/// Most that the VMM's own memory grows by in a flood.
const GROWS_BY_MAX_KIB: u64 = 4096;
const PORT: u16 = 8080;

fn node() -> MutexGuard<'static, Node> {
    static NODE: LazyLock<Mutex<Node>> =
        LazyLock::new(|| Mutex::new(Node::start_in_own_network().expect("a node in a network of its own")));
    NODE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Says a word to whoever connects.
const GREETER: &str = "
import socket
tcp = socket.create_server(('', 8080))
print('ready', flush=True)
while True:
    peer = tcp.accept()[0]
    peer.sendall(b'hello')
    peer.close()
";

fn greeter<'p>(pod: &'p Pod) -> Container<'p> {
    let container = pod.start(Template::python(GREETER)).expect("it starts");
    container.wait_for_output("ready").expect("it listens");
    container
}

fn address(pod: &Pod) -> SocketAddr {
    let status = pod.status().expect("known").network.expect("it has a network");
    SocketAddr::new(status.ip.parse().expect("an address"), PORT)
}

/// The greeting that comes from the pod within a time.
fn ask(node: &Node, pod: SocketAddr, within: Duration) -> anyhow::Result<String> {
    let mut peer = node.network().run(|| TcpStream::connect_timeout(&pod, within))?;
    peer.set_read_timeout(Some(within))?;
    let mut said = String::new();
    peer.read_to_string(&mut said)?;
    Ok(said)
}

/// Interfaces, queueing disciplines and routes of a namespace, one a line.
fn shown(namespace: &NetworkNamespace) -> BTreeSet<String> {
    let links = namespace.ip("-brief link").expect("shown");
    // The state of a bridge follows its ports; the name and the address stay.
    let links = links.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned());
    let routes = namespace.ip("route show table all").expect("shown");
    let tc =
        namespace.run(|| std::process::Command::new("tc").args(["qdisc", "show"]).output()).expect("tc (iproute2)");
    let tc = String::from_utf8_lossy(&tc.stdout).into_owned();
    let rest = routes.lines().chain(tc.lines()).map(|line| line.trim().replace(" linkdown", ""));
    links.chain(rest).collect()
}

/// Fails, naming each, when there is more than there was.
fn assert_nothing_new(namespace: &NetworkNamespace, before: &BTreeSet<String>) {
    let left = || shown(namespace).difference(before).cloned().collect::<Vec<_>>();
    let clear = poll_until(SETTLES_WITHIN, || Ok(Some(()).filter(|()| left().is_empty()))).expect("asked");
    assert!(clear.is_some(), "left behind: {:#?}", left());
}

/// The pod's network namespace on the host, held.
fn namespace_of(pod: &Pod) -> anyhow::Result<NetworkNamespace> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = pod.node.cri.pod_sandbox_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("containerd tells more when asked")?)?;
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("namespaces")?;
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network").context("one of a network")?;
    NetworkNamespace::open(Path::new(network["path"].as_str().context("by its path")?))
}

#[test]
fn pods_on_a_network_in_fours_leave_nothing_of_it() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("ip"), Program("tc"));
    let node = node();
    // The first makes the bridge, which stays.
    one_pod(&node);
    let (residue, before) = (Residue::now(), shown(node.network()));
    let loopback_alone = shown(&NetworkNamespace::new().expect("one more"));
    for _ in 0..count("KATA_RS_TEST_NETWORK_PODS", 12).div_ceil(AT_ONCE) {
        let namespaces = thread::scope(|scope| {
            let pods: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| one_pod(&node))).collect();
            pods.into_iter().map(|pod| pod.join().expect("no panic")).collect::<Vec<_>>()
        });
        namespaces.iter().for_each(|namespace| assert_nothing_new(namespace, &loopback_alone));
    }
    assert_nothing_new(node.network(), &before);
    residue.assert_nothing_new();
}

/// Starts a pod that reaches its gateway, removes it, and returns what was its namespace.
fn one_pod(node: &Node) -> NetworkNamespace {
    let pod = node.pod_on(Network::Dual, RUNTIME).expect("it starts");
    let namespace = namespace_of(&pod).expect("it has one");
    assert!(shown(&namespace).iter().any(|line| line.contains("katars")), "no tap where the pod's is looked for");
    let line = format!("ping -c 1 -W 10 {}", Network::Dual.gateway());
    let (status, printed) = pod.run_to_end(Template::sh(&line)).expect("it runs");
    assert_eq!(status.exit_code, 0, "{printed}");
    pod.remove().expect("removed");
    namespace
}

#[test]
fn a_flooded_pod_is_back_at_once_and_its_neighbour_never_away() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("ip"));
    let node = node();
    let residue = Residue::now();
    let (flooded, neighbour) = (
        node.pod_on(Network::Dual, RUNTIME).expect("it starts"),
        node.pod_on(Network::Dual, RUNTIME).expect("it starts"),
    );
    let servers = [greeter(&flooded), greeter(&neighbour)];
    let (target, beside) = (address(&flooded), address(&neighbour));
    let vmm = tests::pids_of("kata-rs-vmm", &flooded.id);
    let [vmm] = vmm[..] else { panic!("a pod has one machine, not {vmm:?}") };
    let memory_before = own_memory_kib(vmm);

    let over = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(|| node.network().run(|| flood(target, &over)));
        let clock = Instant::now();
        while clock.elapsed() < Duration::from_secs(count("KATA_RS_TEST_FLOOD_SECONDS", 5)) {
            let said = ask(&node, beside, Duration::from_secs(5));
            assert_eq!(said.expect("the neighbour answers in the flood"), "hello");
            assert!(own_memory_kib(vmm) < memory_before + GROWS_BY_MAX_KIB, "the machine's memory grows");
        }
        over.store(true, Ordering::Relaxed);
        flood.join().expect("no panic")
    });
    let clock = Instant::now();
    let back = poll_until(BACK_WITHIN, || Ok(ask(&node, target, TRY).ok())).expect("asked");
    let took = clock.elapsed();
    println!("back after {took:?}, {sent} datagrams");
    assert!(back.as_deref() == Some("hello") && took < BACK_WITHIN, "{back:?} after {took:?}, {sent} datagrams");
    assert!(sent > 10_000, "{sent} datagrams are no flood");
    drop(servers);
    flooded.remove().expect("removed");
    neighbour.remove().expect("removed");
    drop((flooded, neighbour));
    residue.assert_nothing_new();
}

/// Datagrams as fast as they go, small and large ones in turn; returns their number.
fn flood(target: SocketAddr, over: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("bound");
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for len in [64, 1400] {
            // The pod's kernel answers that nobody listens, which a later call tells: no reason to end.
            sent += u64::from(socket.send_to(&[0x5a; 1400][..len], (target.ip(), 9)).is_ok());
        }
    }
    sent
}

/// What the VMM holds besides the guest's memory, which is shared.
fn own_memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_killed_shim_leaves_nothing_in_a_namespace_that_somebody_holds() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("ip"), Program("tc"));
    let node = node();
    let residue = Residue::now();
    let loopback_alone = shown(&NetworkNamespace::new().expect("one more"));
    let pod = node.pod_on(Network::Dual, RUNTIME).expect("it starts");
    let server = greeter(&pod);
    let namespace = namespace_of(&pod).expect("it has one");
    // As port-forward does it: the kernel leads it to the guest, by a program that the shim holds.
    let forwarded = || namespace.run(|| TcpStream::connect_timeout(&([127, 0, 0, 1], PORT).into(), TRY));
    let mut said = String::new();
    forwarded().expect("led to the guest").read_to_string(&mut said).expect("said");
    assert_eq!(said, "hello");
    let shims = tests::pids_of("containerd-shim", &pod.id);
    let [shim] = shims[..] else { panic!("a pod has one shim, not {shims:?}") };
    tests::command::signal(shim, Signal::KILL);
    let refused = || Ok(forwarded().err().filter(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));
    assert!(poll_until(SETTLES_WITHIN, refused).expect("asked").is_some(), "{:?}", forwarded());
    drop(server);
    pod.remove().expect("removed");
    assert_nothing_new(&namespace, &loopback_alone);
    residue.assert_nothing_new();
}

#[test]
fn a_pod_reaches_and_is_reached_without_containerd_and_with_the_next() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("ip"));
    let node = node();
    let residue = Residue::now();
    for signal in [Signal::TERM, Signal::KILL] {
        let pod = node.pod_on(Network::Dual, RUNTIME).expect("it starts");
        let server = greeter(&pod);
        let address = address(&pod);
        let meanwhile = node.away(signal, || ask(&node, address, Duration::from_secs(10))).expect("it comes back");
        assert_eq!(meanwhile.expect("reached without containerd"), "hello");
        assert_eq!(ask(&node, address, Duration::from_secs(10)).expect("reached"), "hello");
        let (status, printed) =
            pod.run_to_end(Template::sh(&format!("ping -c 1 -W 10 {}", Network::Dual.gateway()))).expect("it runs");
        assert_eq!(status.exit_code, 0, "{printed}");
        drop(server);
        pod.remove().expect("removed");
    }
    residue.assert_nothing_new();
}
