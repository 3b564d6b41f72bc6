//! `ctr run --cni`: a network that containerd's own client makes for a container, at the task's pid, between its creation and its start.
//!
//! In the hardware lane this is where a network meets several vCPUs, and the host's vhost-net.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tests::{
    Containerd, NetworkNamespace, Residue, command, containerd::RUNTIME, needs, node::poll_until, requirement::emulated,
};

/// What the plugin gives the container.
const SUBNET: &str = "10.79.0.0/24";
/// Of the host's end.
const GATEWAY: &str = "10.79.0.1";
/// Where the host counts what comes, and where it gives as much.
const SINK: u16 = 7001;
const SOURCE: u16 = 7002;
/// Streams at the same time, so that there is work for several queues.
const STREAMS: usize = 4;

/// Bytes of each, in both directions.
fn stream_len() -> usize {
    if emulated() { 512 << 10 } else { 4 << 20 }
}

/// Where vhost-net is, if the host has it.
const VHOST_NET: &str = "/dev/vhost-net";
/// Longest that the kernel takes to clear away what nobody holds any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// What is left is counted, so that nothing may be beside a test.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `ctr` looks for plugins and their configuration in fixed places, and keeps what they said in a third: here each is its own, and so is the host's end of the network.
fn with_a_network(containerd: &Containerd, network: &NetworkNamespace, words: &[String]) -> Command {
    let plugin = serde_json::json!({ "type": "ptp", "ipam": { "type": "host-local", "subnet": SUBNET, "routes": [{ "dst": "0.0.0.0/0" }] } });
    let list = serde_json::json!({ "cniVersion": "0.4.0", "name": "ctr", "plugins": [plugin] });
    let script = "set -e
        mount --make-rprivate /
        for folder in /etc /opt /var/lib; do mount -t tmpfs tmpfs $folder; done
        mkdir -p /etc/cni/net.d /opt/cni
        ln -s /usr/lib/cni /opt/cni/bin
        echo \"$LIST\" > /etc/cni/net.d/10-ctr.conflist
        exec \"$@\"";
    let ctr = containerd.ctr(words);
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.path().display()));
    command.args(["unshare", "-m", "sh", "-c", script, "sh"]).env("LIST", list.to_string());
    command.arg(ctr.get_program()).args(ctr.get_args());
    command
}

/// What the container does: tells what it has, is heard with its own hardware address and with no other, and moves bytes both ways.
fn script() -> String {
    let stream = |port: u16| format!("nc {GATEWAY} {port}");
    let (to_the_sink, from_the_source) = (stream(SINK), stream(SOURCE));
    format!(
        "ip -o -4 address show dev eth0
        echo queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l) of $(nproc)
        own=$(cat /sys/class/net/eth0/address)
        for address in $own 02:00:00:00:00:77 $own; do
            ip link set eth0 address $address
            echo $(ping -c 1 -W 2 {GATEWAY} | grep -o '[01] packets received')
        done
        for n in $(seq {STREAMS}); do head -c {} /dev/zero | {to_the_sink} & done; wait
        for n in $(seq {STREAMS}); do {from_the_source} </dev/null | wc -c & done; wait",
        stream_len()
    )
}

/// The host's end: takes all streams, counts each, and gives as much back on others. `meanwhile` is called when the first one has begun.
struct Host {
    sink: TcpListener,
    source: TcpListener,
}

impl Host {
    fn new(network: &NetworkNamespace) -> Self {
        let listen = |port| network.run(|| TcpListener::bind(("0.0.0.0", port)).expect("nobody else listens"));
        Self { sink: listen(SINK), source: listen(SOURCE) }
    }

    fn serve(&self, meanwhile: impl FnOnce()) {
        let streams = |listener: &TcpListener| -> Vec<TcpStream> { (0..STREAMS).map(|_| accepted(listener)).collect() };
        let incoming = streams(&self.sink);
        meanwhile();
        thread::scope(|scope| {
            incoming.into_iter().for_each(|stream| drop(scope.spawn(move || assert_eq!(count(stream), stream_len()))));
        });
        thread::scope(|scope| {
            let give = |mut stream: TcpStream| stream.write_all(&vec![0; stream_len()]).expect("taken");
            streams(&self.source).into_iter().for_each(|stream| drop(scope.spawn(move || give(stream))));
        });
    }
}

/// The next connection; a container that fails makes none.
fn accepted(listener: &TcpListener) -> TcpStream {
    let patience = Timespec { tv_sec: command::DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&patience));
    assert_eq!(ready, Ok(1), "the container does not connect");
    listener.accept().expect("it connects").0
}

fn count(mut stream: TcpStream) -> usize {
    let (mut part, mut all) = (vec![0; 256 << 10], 0);
    loop {
        match stream.read(&mut part).expect("connected") {
            0 => return all,
            len => all += len,
        }
    }
}

/// Whether a ping from its own, from another, and again from its own hardware address is answered.
const HEARD_FROM_ITS_OWN: [&str; 3] = ["1", "0", "1"];

/// Runs the script in a container with two CPUs; `look` is called with its id while bytes move. Nothing is left.
fn converse(containerd: &Containerd, heard: [&str; 3], look: impl FnOnce(&str) + Send) {
    let busybox = containerd.import("busybox");
    let network = NetworkNamespace::new().expect("made");
    let (before, empty) = (Residue::now(), network.ip("-br link").expect("shown"));
    let id = containerd.fresh_id();
    let flags = ["--cni", "--cpus", "2", "--cap-add", "CAP_NET_ADMIN"];
    let words = containerd.container_arguments(RUNTIME, &flags, &busybox, &id, &["sh", "-c", &script()]);
    let host = Host::new(&network);
    let printed = thread::scope(|scope| {
        let run = scope.spawn(|| command::run(&mut with_a_network(containerd, &network, &words)).success());
        host.serve(|| look(&id));
        run.join().expect("no panic")
    });
    assert!(printed.contains("inet 10.79.0."), "{printed}");
    let queues = printed.lines().find_map(|line| line.strip_prefix("queues ")).expect("told");
    // A queue for each vCPU; software KVM gives one.
    assert!(queues == "2 of 2" || queues == "1 of 1" && !emulated(), "{queues}");
    let answered: Vec<_> = printed.lines().filter_map(|line| line.strip_suffix(" packets received")).collect();
    assert_eq!(answered, heard, "{printed}");
    let whole = printed.lines().filter(|line| line.trim() == stream_len().to_string()).count();
    assert_eq!(whole, STREAMS, "{printed}");
    drop(host);
    // The pair goes with the container's namespace, which the kernel takes apart a moment after its last process.
    let gone = || Ok((network.ip("-br link")? == empty).then_some(()));
    assert!(poll_until(SETTLES_WITHIN, gone).expect("shown").is_some(), "{}", network.ip("-br link").expect("shown"));
    before.assert_nothing_new();
}

/// The one VMM of a container.
fn vmm_of(id: &str) -> u32 {
    let vmms = tests::pids_of("kata-rs-vmm", id);
    let [vmm] = vmms[..] else { panic!("a container has one machine, not {vmms:?}") };
    vmm
}

fn instances_of_vhost_net(vmm: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{vmm}/fd")).expect("it runs").flatten();
    descriptors.filter(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == Path::new(VHOST_NET))).count()
}

#[test]
fn the_container_begins_with_the_network_that_ctr_made_and_nothing_is_left_of_it() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("nsenter"), Program("/usr/lib/cni/ptp"));
    let _alone = alone();
    let look = |id: &str| assert_eq!(instances_of_vhost_net(vmm_of(id)), 0, "nobody asked for it");
    converse(&Containerd::start(), HEARD_FROM_ITS_OWN, look);
}

/// containerd, whose shims read this configuration, which lives as long as the folder.
fn operated(configuration: &str) -> (Containerd, tempfile::TempDir) {
    let folder = tempfile::Builder::new().prefix("kata-rs-operator-").tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    // What holds for all tests of this run, in the hardware lane the number of vCPUs.
    let for_all = std::env::var_os("KATA_RS_CONFIG").map(|file| fs::read_to_string(file).expect("readable"));
    fs::write(&file, for_all.unwrap_or_default() + configuration).expect("written");
    (Containerd::start_with(&[("KATA_RS_CONFIG", file.to_str().expect("UTF-8"))]), folder)
}

#[test]
fn a_container_is_heard_from_any_hardware_address_where_the_operator_allows_it() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("nsenter"), Program("/usr/lib/cni/ptp"));
    let _alone = alone();
    for configuration in ["network_any_source = true", "network_any_source = true\nnetwork_vhost = true"] {
        let (containerd, _folder) = operated(configuration);
        converse(&containerd, ["1", "1", "1"], |_| {});
    }
}

/// The host drops what has another source than the container's, and counts it, as the VMM would.
#[test]
fn the_hosts_kernel_moves_the_frames_where_the_operator_wishes_it_and_the_host_can() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("nsenter"), Program("tc"), Program("/usr/lib/cni/ptp"));
    let _alone = alone();
    let (containerd, _folder) = operated("network_vhost = true");
    let has_it = Path::new(VHOST_NET).exists();
    assert!(has_it || !emulated(), "the emulated machine has vhost-net");
    converse(&containerd, HEARD_FROM_ITS_OWN, |id| {
        let vmm = vmm_of(id);
        // One a queue pair; without it the VMM moves the frames.
        assert_eq!(instances_of_vhost_net(vmm), if has_it { 2 } else { 0 });
        if has_it {
            let shown = filters_of_the_tap(vmm).expect("tc (iproute2)");
            let dropped =
                shown.split("(dropped ").skip(1).filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok());
            assert!(dropped.sum::<u64>() > 0, "{shown}");
        }
    });
}

/// With their counters, in the pod's network namespace, which is that of its machine.
fn filters_of_the_tap(vmm: u32) -> io::Result<String> {
    let namespace = NetworkNamespace::open(Path::new(&format!("/proc/{vmm}/ns/net"))).map_err(io::Error::other)?;
    let shown =
        namespace.run(|| Command::new("tc").args(["-s", "filter", "show", "dev", "katars0", "ingress"]).output())?;
    Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
}
