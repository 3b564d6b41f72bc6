//! Stories of a pod's network, told in namespaces of their own, as root.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use super::{
    stage::{MAC, Stage},
    *,
};
use crate::{clean_up, state_dir::StateDir};

/// Header before each frame.
const HEADER_LEN: usize = 12;
/// A protocol that no kernel speaks (EtherType for local experiments).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// How long a frame may be on its way.
const WAY: Duration = Duration::from_secs(5);

struct Pod {
    root: tempfile::TempDir,
    record: Record,
}

impl Pod {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        StateDir::make(&root.path().join("pod")).expect("made");
        let record = Record::create(&root.path().join("pod")).expect("begun");
        Self { root, record }
    }

    fn attach(&self, path: &Path) -> Result<Attached, PodError> {
        self.attach_with(path, 1)
    }

    fn attach_with(&self, path: &Path, vcpus: u8) -> Result<Attached, PodError> {
        attach(&PodNetwork::Namespace(path.to_owned()), vcpus, InterfaceRules::default(), &self.record)
    }

    fn entries(&self) -> usize {
        crate::record::read(&self.root.path().join("pod")).expect("read").len()
    }
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &EXPERIMENT, payload].concat()
}

/// Puts a frame into a tap, as a machine does.
fn send(tap: &OwnedFd, frame: &[u8]) {
    let mut file = File::from(tap.try_clone().expect("a descriptor"));
    let bytes = [&[0; HEADER_LEN], frame].concat();
    assert_eq!(file.write(&bytes).expect("taken"), bytes.len());
}

/// Waits for exactly this frame out of one of the taps. The kernel's own talk is passed over, and what a neighbour sent to all.
fn arrives(taps: &[OwnedFd], frame: &[u8]) {
    let begun = Instant::now();
    let mut bytes = vec![0; 70_000];
    let mut others = Vec::new();
    while begun.elapsed() < WAY {
        let mut waiting: Vec<_> = taps.iter().map(|tap| PollFd::new(tap, PollFlags::IN)).collect();
        rustix::event::poll(&mut waiting, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).expect("polled");
        let ready: Vec<usize> = (0..taps.len()).filter(|n| waiting[*n].revents().contains(PollFlags::IN)).collect();
        for n in ready {
            let len = File::from(taps[n].try_clone().expect("a descriptor")).read(&mut bytes).expect("read");
            match &bytes[HEADER_LEN..len] {
                this if this == frame => return,
                other => others.push(other.to_vec()),
            }
        }
    }
    panic!("{frame:x?} did not come in {WAY:?}, but {others:x?}");
}

fn told(test: &str, lines: &[&str]) -> Option<m::Network> {
    let stage = Stage::new(test)?;
    lines.iter().for_each(|line| drop(stage.pod.run(line)));
    Some(Pod::new().attach(stage.pod.path()).expect("attached").network)
}

#[test]
fn needs_root_all_that_a_plugin_made_is_told() {
    let test = "needs_root_all_that_a_plugin_made_is_told";
    let lines = [
        "ip address add 10.1.0.2/24 broadcast 10.1.0.255 dev eth0",
        "ip address add 10.9.0.1 peer 10.9.0.2/32 dev eth0",
        "ip address add 2001:db8::2/64 dev eth0 nodad",
        "ip route add default via 10.1.0.1 dev eth0 src 10.1.0.2 metric 50",
        "ip route add 169.254.1.1 dev eth0 scope link",
        "ip route add 10.2.0.0/16 via 172.31.0.1 dev eth0 onlink mtu 1300",
        "ip route add blackhole 10.3.0.0/16",
        "ip route add 10.4.0.0/16 via 10.1.0.3 dev eth0 table 1000",
        "ip -6 route add default via fe80::1 dev eth0",
        "ip -6 route add unreachable 2001:db8:dead::/48",
        "ip rule add from 10.1.0.0/24 lookup 1000 priority 100",
        "ip -6 rule add fwmark 7/15 lookup 1000 priority 101",
        "ip neighbour add 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "ip -6 neighbour add 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    ];
    let Some(network) = told(test, &lines) else { return };
    let eth0 = &network.interfaces[0];
    assert_eq!((network.interfaces.len(), eth0.name.as_str(), eth0.mtu, eth0.no_arp), (1, "eth0", 1400, false));
    assert_eq!(eth0.mac, MAC);
    let address =
        |first: &[u8]| eth0.addresses.iter().find(|address| address.address.starts_with(first)).expect("told");
    assert_eq!((address(&[10, 1]).prefix_length, &address(&[10, 1]).broadcast[..]), (24, &[10, 1, 0, 255][..]));
    assert_eq!((address(&[10, 9]).prefix_length, &address(&[10, 9]).peer[..]), (32, &[10, 9, 0, 2][..]));
    assert_eq!(address(&[0x20, 0x01, 0x0d, 0xb8]).prefix_length, 64);
    let routes = |family, first: &[u8]| {
        let is = |route: &&m::Route| route.family == family && route.destination.starts_with(first);
        network.routes.iter().filter(is).collect::<Vec<_>>()
    };
    let of = |first: &[u8]| routes(2, first).into_iter().next().expect("told");
    let default = network.routes.iter().find(|route| route.family == 2 && route.destination.is_empty()).expect("told");
    assert_eq!((&default.gateway[..], default.metric), (&[10, 1, 0, 1][..], 50));
    assert_eq!((&default.preferred_source[..], default.interface.as_str()), (&[10, 1, 0, 2][..], "eth0"));
    assert_eq!((of(&[169]).scope, of(&[169]).gateway.len()), (253, 0));
    assert_eq!((of(&[10, 2]).flags, of(&[10, 2]).mtu), (4, 1300));
    assert_eq!((of(&[10, 3]).kind, of(&[10, 3]).interface.as_str()), (6, ""));
    assert_eq!(of(&[10, 4]).table, 1000);
    assert_eq!(of(&[10, 1]).protocol, 2, "the kernel's own, so that one that a plugin took away stays away");
    assert!(network.routes.iter().any(|r| r.family == 10 && r.destination.is_empty() && r.gateway.len() == 16));
    assert_eq!(routes(10, &[0x20, 1, 0x0d, 0xb8, 0xde, 0xad])[0].kind, 7);
    assert!(network.routes.iter().all(|route| route.table != 255), "the local table fills itself");
    let rules: Vec<_> = network.rules.iter().map(|r| (r.family, r.priority, r.table, r.mark, r.mask)).collect();
    assert_eq!(rules, [(2, 100, 1000, 0, 0), (10, 101, 1000, 7, 15)]);
    assert_eq!(network.neighbours.iter().map(|n| n.address.len()).collect::<Vec<_>>(), [4, 16]);
}

#[test]
fn needs_root_a_namespace_with_loopback_only_joins_nothing_and_records_nothing() {
    let Some(stage) = Stage::new("needs_root_a_namespace_with_loopback_only_joins_nothing_and_records_nothing") else {
        return;
    };
    stage.pod.run("ip link delete eth0");
    let pod = Pod::new();
    let attached = pod.attach(stage.pod.path()).expect("attached");
    assert!(attached.devices.is_empty() && attached.joined.is_none() && pod.entries() == 0);
}

/// A machine at each end of the pair: what one sends the other one gets, in both directions, and nobody's stack is between them.
#[test]
fn needs_root_frames_pass_whole_in_both_directions() {
    let Some(stage) = Stage::new("needs_root_frames_pass_whole_in_both_directions") else { return };
    let (pod, peer) = (Pod::new(), Pod::new());
    let near = pod.attach(stage.pod.path()).expect("attached").devices;
    let far = peer.attach(stage.outside.path()).expect("attached").devices;
    let (near, far) = (&near[0].taps, &far[0].taps);
    let broadcast = [0xff; 6];
    let tagged = [&broadcast[..], &MAC, &[0x81, 0, 0, 100], &EXPERIMENT, &[7; 100]].concat();
    for frame in [
        frame(broadcast, MAC, &[1; 46]),
        frame([2, 0, 0, 0, 0, 99], MAC, &[2; 1400]),
        frame([0x33, 0x33, 0, 0, 0, 1], MAC, &[]),
        tagged,
    ] {
        send(&near[0], &frame);
        arrives(far, &frame);
        send(&far[0], &frame);
        arrives(near, &frame);
    }
}

#[test]
fn needs_root_a_macvlan_is_joined_like_a_veth() {
    let Some(stage) = Stage::new("needs_root_a_macvlan_is_joined_like_a_veth") else { return };
    stage.pod.run("ip link delete eth0");
    stage.outside.run("ip link add lower type veth peer name wire");
    stage.outside.run("ip link set wire up");
    let pod_path = stage.pod.path().display();
    let kinds: Vec<&str> = ["macvlan", "macvtap"]
        .into_iter()
        .filter(|kind| {
            let made = stage.outside.try_run(&format!("ip link add {kind}0 link lower type {kind} mode bridge"));
            made.inspect_err(|said| eprintln!("skipped: {kind}: {said}")).is_ok()
        })
        .collect();
    stage.outside.run("ip link set lower up");
    for kind in &kinds {
        stage.outside.run(&format!("ip link set {kind}0 netns {pod_path}"));
        stage.pod.run(&format!("ip link set {kind}0 up"));
    }
    let near = Pod::new().attach(stage.pod.path()).expect("attached").devices;
    assert_eq!(near.len(), kinds.len());
    let wire = tap_of_the_wire(&stage);
    for device in &near {
        let frame = frame([0xff; 6], device.mac, &[3; 60]);
        send(&device.taps[0], &frame);
        arrives(&wire, &frame);
        let answer = self::frame(device.mac, [2, 0, 0, 0, 0, 77], &[4; 60]);
        send(&wire[0], &answer);
        arrives(&device.taps, &answer);
    }
}

/// A tap that is joined to `wire` alone: one at the lower interface would take the frames before the macvlan does.
fn tap_of_the_wire(stage: &Stage) -> Vec<OwnedFd> {
    joined(stage.outside.path(), "wire", Making::of(InterfaceRules::default(), 1)).taps
}

/// Joins one interface of a namespace.
fn joined(namespace: &Path, name: &str, making: Making) -> Device {
    let namespace = Namespace::open(namespace).expect("kept");
    let made = namespace.within(|| {
        let mut socket = Socket::open().map_err(unread)?;
        let picture = Picture::read(&mut socket).map_err(unread)?;
        let joints = Plan::of(picture)?.joints;
        let joint = joints.iter().find(|joint| joint.trace.name == name).expect("it is up");
        join(&mut socket, joint, making)
    });
    made.expect("joined")
}

/// The filter for a source alone: a kernel without the action "gact", as this one may be, has no way to drop the rest. The hardware lane drops and counts it.
#[test]
fn needs_root_a_filter_for_a_source_takes_its_frames_and_no_others() {
    let Some(stage) = Stage::new("needs_root_a_filter_for_a_source_takes_its_frames_and_no_others") else { return };
    let near = joined(stage.pod.path(), "eth0", Making::of(InterfaceRules::default(), 1)).taps;
    let far = Pod::new().attach(stage.outside.path()).expect("attached").devices;
    let index = |name: &str| {
        let shown = stage.pod.run(&format!("ip -o link show dev {name}"));
        shown.split(':').next().expect("its number").parse().expect("a number")
    };
    let [source_filter, _] = redirect::redirect_from(index("katars0"), index("eth0"), MAC);
    let replaced = Namespace::open(stage.pod.path()).expect("kept").within(|| {
        let mut socket = Socket::open().map_err(unread)?;
        let all = RouteNetlinkMessage::DelTrafficFilter(redirect::ours(index("katars0")));
        socket.change(all, 0).map_err(unread)?;
        socket.change(RouteNetlinkMessage::NewTrafficFilter(source_filter.clone()), NLM_F_CREATE).map_err(unread)
    });
    replaced.expect("replaced");
    let broadcast = [0xff; 6];
    let tagged = |from: [u8; 6]| [&broadcast[..], &from, &[0x81, 0, 0, 100], &EXPERIMENT, &[6; 60]].concat();
    let flipped = |byte: usize| {
        let mut mac = MAC;
        mac[byte] ^= 2;
        mac
    };
    for stranger in (0..6).map(flipped).chain([[0; 6]]) {
        send(&near[0], &frame(broadcast, stranger, &[6; 60]));
        send(&near[0], &tagged(stranger));
    }
    for own in [frame(broadcast, MAC, &[7; 60]), tagged(MAC)] {
        send(&near[0], &own);
        assert_eq!(next_of(&far[0].taps[0]), own, "the first to arrive");
    }
}

/// The next frame of our kind that comes out of a tap.
fn next_of(tap: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 70_000];
    loop {
        let mut waiting = [PollFd::new(tap, PollFlags::IN)];
        let way = Timespec { tv_sec: WAY.as_secs().cast_signed(), tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut waiting, Some(&way)), Ok(1), "nothing came in {WAY:?}");
        let len = File::from(tap.try_clone().expect("a descriptor")).read(&mut bytes).expect("read");
        let frame = &bytes[HEADER_LEN..len];
        if frame[12..].starts_with(&EXPERIMENT) || frame[12..].starts_with(&[0x81, 0]) {
            return frame.to_vec();
        }
    }
}

#[test]
fn needs_root_a_pod_of_several_cpus_has_as_many_queues() {
    let Some(stage) = Stage::new("needs_root_a_pod_of_several_cpus_has_as_many_queues") else { return };
    let (pod, peer) = (Pod::new(), Pod::new());
    let near = pod.attach_with(stage.pod.path(), 3).expect("attached").devices;
    let far = peer.attach_with(stage.outside.path(), 64).expect("attached").devices;
    assert_eq!((near[0].taps.len(), far[0].taps.len()), (3, QUEUES_MAX));
    for queue in &near[0].taps {
        let frame = frame([0xff; 6], MAC, &[5; 60]);
        send(queue, &frame);
        arrives(&far[0].taps, &frame);
    }
}

#[test]
fn needs_root_the_namespaces_own_kernel_has_no_address_on_the_tap() {
    let Some(stage) = Stage::new("needs_root_the_namespaces_own_kernel_has_no_address_on_the_tap") else { return };
    let _attached = Pod::new().attach(stage.pod.path()).expect("attached");
    assert_eq!(stage.pod.run("ip address show dev katars0 scope link").matches("inet").count(), 0);
    assert!(stage.pod.run("ip link show dev katars0").contains("mtu 1400"));
}

#[test]
fn needs_root_what_is_undone_leaves_everything_as_it_was() {
    let Some(stage) = Stage::new("needs_root_what_is_undone_leaves_everything_as_it_was") else { return };
    stage.add("net1", "02:00:00:00:00:11", "far1");
    stage.pod.run("tc qdisc add dev net1 clsact");
    stage.pod.run("tc filter add dev net1 ingress protocol arp prio 9 u32 match u32 0 0 flowid 1:1");
    let before = stage.pod.all_there_is();
    let attached = Pod::new().attach(stage.pod.path()).expect("attached");
    let during = stage.pod.all_there_is();
    assert!(during.matches("katars").count() > 2, "{during}");
    drop(attached.devices);
    stage.pod.loses_its_taps();
    let joined = attached.joined.expect("joined");
    joined.undo().expect("undone");
    assert_eq!(stage.pod.all_there_is(), before);
    joined.undo().expect("twice is fine");
    assert_eq!(stage.pod.all_there_is(), before);
}

#[test]
fn needs_root_a_filter_that_came_later_keeps_what_it_needs() {
    let Some(stage) = Stage::new("needs_root_a_filter_that_came_later_keeps_what_it_needs") else { return };
    let attached = Pod::new().attach(stage.pod.path()).expect("attached");
    stage.pod.run("tc filter add dev eth0 ingress protocol arp prio 9 u32 match u32 0 0 flowid 1:1");
    attached.joined.expect("joined").undo().expect("undone");
    let left = stage.pod.run("tc filter show dev eth0 ingress");
    assert!(left.contains("pref 9") && !left.contains("mirred"), "{left}");
}

#[test]
fn needs_root_a_namespace_or_an_interface_that_is_gone_has_nothing_to_undo() {
    let test = "needs_root_a_namespace_or_an_interface_that_is_gone_has_nothing_to_undo";
    let Some(stage) = Stage::new(test) else { return };
    let joined = Pod::new().attach(stage.pod.path()).expect("attached").joined.expect("joined");
    stage.pod.run("ip link delete eth0");
    joined.undo().expect("the interface is gone");
    let other = Joined { namespace: stage.outside.path().to_owned(), ..joined.clone() };
    other.undo().expect("another namespace has the path now");
    drop(stage);
    joined.undo().expect("the namespace is gone");
}

#[test]
fn needs_root_what_a_killed_owner_left_is_cleaned_up() {
    let Some(stage) = Stage::new("needs_root_what_a_killed_owner_left_is_cleaned_up") else { return };
    let before = stage.pod.all_there_is();
    let pod = Pod::new();
    drop(pod.attach(stage.pod.path()).expect("attached"));
    stage.pod.loses_its_taps();
    assert_ne!(stage.pod.all_there_is(), before, "a dead owner undoes nothing");
    let state_dir = pod.root.path().join("pod");
    clean_up(&state_dir).expect("cleaned up");
    assert_eq!(stage.pod.all_there_is(), before);
    clean_up(&state_dir).expect("twice is fine");
}

fn refused(pod: &Pod, path: &Path, words: &[&str]) {
    let error = pod.attach(path).expect_err("refused");
    assert!(words.iter().all(|word| error.message.contains(word)), "{}", error.message);
}

#[test]
fn a_path_that_is_no_network_namespace_is_refused() {
    let pod = Pod::new();
    refused(&pod, Path::new("/run/netns/katanet-none"), &["/run/netns/katanet-none", "No such file", "again"]);
    refused(&pod, Path::new("/proc/self/stat"), &["/proc/self/stat is not a network namespace", "/run/netns"]);
    let fifo = pod.root.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("made");
    refused(&pod, &fifo, &["is not a network namespace"]);
    if rustix::process::geteuid().is_root() {
        refused(&pod, Path::new("/proc/self/ns/uts"), &["/proc/self/ns/uts is not a network namespace"]);
    }
    assert_eq!(pod.entries(), 0);
}

#[test]
fn the_hosts_own_network_is_refused() {
    refused(&Pod::new(), Path::new("/proc/self/ns/net"), &["/proc/self/ns/net", "hostNetwork"]);
}

#[test]
fn needs_root_a_second_machine_at_one_namespace_is_refused_and_the_first_keeps_its_own() {
    let test = "needs_root_a_second_machine_at_one_namespace_is_refused_and_the_first_keeps_its_own";
    let Some(stage) = Stage::new(test) else { return };
    stage.pod.run("ip address add 10.1.0.2/24 dev eth0");
    let first = Pod::new().attach(stage.pod.path()).expect("attached");
    let during = stage.pod.all_there_is();
    let second = Pod::new();
    refused(&second, stage.pod.path(), &["eth0", "another machine"]);
    assert_eq!(second.entries(), 0);
    assert_eq!(stage.pod.all_there_is(), during);
    drop(first);
}

#[test]
fn needs_root_an_interface_that_is_no_ethernet_is_refused_by_name() {
    let Some(stage) = Stage::new("needs_root_an_interface_that_is_no_ethernet_is_refused_by_name") else { return };
    stage.pod.run("ip tuntap add tun7 mode tun");
    stage.pod.run("ip link set tun7 up");
    let attached = Pod::new().attach(stage.pod.path()).expect("nobody gave it an address");
    attached.joined.as_ref().expect("joined").undo().expect("undone");
    let before = stage.pod.all_there_is();
    stage.pod.run("ip address add 10.8.0.2/24 dev tun7");
    refused(&Pod::new(), stage.pod.path(), &["tun7", "Ethernet"]);
    assert_eq!(stage.pod.all_there_is(), before);
}

/// What fails in the middle leaves nothing: in a thread that lacks what is needed.
fn lacking(test: &str, lack: fn(), words: &'static [&'static str]) {
    let Some(stage) = Stage::new(test) else { return };
    let before = stage.pod.all_there_is();
    let path = stage.pod.path().to_owned();
    let story = std::thread::spawn(move || {
        lack();
        refused(&Pod::new(), &path, words);
    });
    story.join().expect("as told");
    assert_eq!(stage.pod.all_there_is(), before);
}

#[test]
fn needs_root_without_the_right_to_change_networks_there_is_one_sentence_and_nothing_left() {
    let lack = || {
        let mut sets = capabilities(None).expect("read");
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        sets.permitted.remove(CapabilitySet::NET_ADMIN);
        sets.inheritable.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).expect("fewer");
    };
    let test = "needs_root_without_the_right_to_change_networks_there_is_one_sentence_and_nothing_left";
    lacking(test, lack, &["tap", "CAP_NET_ADMIN", "not permitted"]);
}

#[test]
fn needs_root_without_taps_there_is_one_sentence_and_nothing_left() {
    let lack = || {
        use rustix::mount::{MountFlags, MountPropagationFlags as Propagation, mount, mount_change};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("as root");
        mount_change("/", Propagation::DOWNSTREAM | Propagation::REC).expect("as root");
        mount("none", "/dev/net", "tmpfs", MountFlags::empty(), None).expect("as root");
    };
    let test = "needs_root_without_taps_there_is_one_sentence_and_nothing_left";
    lacking(test, lack, &["/dev/net/tun", "modprobe tun"]);
}
