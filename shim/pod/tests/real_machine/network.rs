//! The pod's network, between two namespaces that a test makes.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use pod::{InterfaceRules, Pod, PodNetwork, PodSpec};
use serde_json::json;

use crate::stage::{Stage, first, read_all, within};

/// A thread in a network namespace of its own, which runs command lines there until it has no more to run.
struct Elsewhere {
    path: PathBuf,
    lines: std::sync::mpsc::Sender<(String, std::sync::mpsc::Sender<std::process::Output>)>,
}

impl Elsewhere {
    fn new() -> Self {
        let (lines, inbox) = std::sync::mpsc::channel::<(String, std::sync::mpsc::Sender<std::process::Output>)>();
        let (made, path) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("as root");
            let thread = rustix::thread::gettid().as_raw_nonzero();
            made.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).expect("awaited");
            for (line, answer) in inbox {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let output = Command::new(words[0]).args(&words[1..]).output().expect("the program is there");
                answer.send(output).expect("awaited");
            }
        });
        Self { path: path.recv().expect("made").into(), lines }
    }

    fn run(&self, line: &str) -> String {
        let (answer, answered) = std::sync::mpsc::channel();
        self.lines.send((line.to_owned(), answer)).expect("it runs");
        let output = answered.recv().expect("answered");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A pod's network as a plugin makes it, and the one outside: 10.1.0.2 and 2001:db8::2 with a gateway.
fn plugged() -> (Elsewhere, Elsewhere) {
    let (inside, outside) = (Elsewhere::new(), Elsewhere::new());
    let far = outside.path.display();
    inside.run(&format!("ip link add eth0 mtu 1400 type veth peer name far netns {far}"));
    inside.run("ip address add 10.1.0.2/24 dev eth0");
    inside.run("ip address add 2001:db8::2/64 dev eth0 nodad");
    inside.run("ip link set eth0 up");
    inside.run("ip route add default via 10.1.0.1");
    outside.run("ip address add 10.1.0.1/24 dev far");
    outside.run("ip address add 10.99.0.1/32 dev far");
    outside.run("ip -6 address add 2001:db8::1/64 dev far nodad");
    outside.run("ip link set far mtu 1400 up");
    (inside, outside)
}

#[tokio::test]
async fn needs_kvm_a_pod_is_reached_at_the_addresses_that_a_plugin_gave_it() {
    let Some(stage) = Stage::new("the network of a real machine") else { return };
    let (inside, outside) = plugged();
    let spec = PodSpec { network: PodNetwork::Namespace(inside.path.clone()), ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // From outside to the guest, and from the guest past its gateway.
    outside.run("busybox ping -c 1 -W 5 10.1.0.2");
    outside.run("busybox ping -c 1 -W 5 -s 8000 10.1.0.2");
    outside.run("busybox ping -c 1 -W 5 2001:db8::2");
    let script = "busybox ip -o address show eth0; busybox ip route; busybox ping -c 1 -W 5 10.99.0.1 && echo reached";
    let mut container = stage.container(script, json!([]));
    let mut oci = serde_json::to_value(&container.oci).expect("a spec");
    let raw = json!(["CAP_NET_RAW"]);
    oci["process"]["capabilities"] = json!({"bounding": raw, "effective": raw, "permitted": raw});
    container.oci = serde_json::from_value(oci).expect("a spec");
    let (_, streams) = within(pod.create_container(container)).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let said = within(read_all(streams.stdout)).await;
    for words in ["10.1.0.2/24", "2001:db8::2/64", "default via 10.1.0.1 dev eth0", "reached"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    within(pod.stop()).await.expect("stopped");
    assert!(!inside.run("tc filter show dev eth0 ingress").contains("mirred"));
    assert!(!inside.run("ip -br link").contains("katars"));
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_an_operators_limit_of_rate_holds_frames_back_and_loses_none_of_a_few() {
    let Some(stage) = Stage::new("the limit of a real machine's network") else { return };
    let (inside, outside) = plugged();
    let interface_rules = InterfaceRules { receive_mbit: 1, ..InterfaceRules::default() };
    let network = PodNetwork::Namespace(inside.path.clone());
    let spec = PodSpec { network, interface_rules, ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // More than passes at once.
    outside.run("busybox ping -A -c 5 -W 5 -s 60000 10.1.0.2");
    let report = within(pod.report()).await.expect("told").networks[0];
    assert!(report.held_by_rate > 0, "{report:?}");
    within(pod.stop()).await.expect("stopped");
}

#[tokio::test]
async fn needs_kvm_a_port_of_the_pods_loopback_on_the_host_leads_to_its_server() {
    let Some(stage) = Stage::new("a forwarded port of a real machine") else { return };
    let inside = Elsewhere::new();
    inside.run("ip link set lo up");
    let spec = PodSpec { network: PodNetwork::Namespace(inside.path.clone()), ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // Counts what it hears, and tells at the end of it.
    let container = stage.container("busybox nc -ll -p 8080 -e /bin/wc -c", json!([]));
    let (_, _streams) = within(pod.create_container(container)).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let sent = vec![b'x'; 3_000_000];
    let path = inside.path.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        // Nothing tells when it listens; until then each connection is refused or reset.
        loop {
            match count_in(&path, &sent) {
                Ok(count) => break count,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(15), "nobody serves: {error}"),
            }
        }
    });
    assert_eq!(within(counted).await.expect("no panic").trim(), "3000000");
    within(pod.stop()).await.expect("stopped");
    let refused = count_in(&inside.path, b"").expect_err("nobody listens any more");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    stage.assert_nothing_left();
}

/// What a server of the namespace's loopback says of these bytes.
fn count_in(namespace: &Path, bytes: &[u8]) -> std::io::Result<String> {
    let namespace = std::fs::File::open(namespace)?;
    std::thread::scope(|scope| {
        let talk = || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut client = std::net::TcpStream::connect("127.0.0.1:8080")?;
            client.write_all(bytes)?;
            client.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        };
        scope.spawn(talk).join().expect("no panic")
    })
}
