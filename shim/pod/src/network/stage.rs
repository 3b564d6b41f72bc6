//! For tests: a pod's network namespace with an interface as a plugin makes it, and the namespace in which its other end is. Made, looked at and filled with
//! iproute2, so that what we say to the kernel is checked by somebody else.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
};

use netlink::{Group, Socket};
use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::namespace::Namespace;

/// How long a tap may outlive who holds it.
const PATIENCE_SECONDS: i64 = 10;

/// A network namespace that lives as long as this; no name of it is left anywhere.
pub(crate) struct Own {
    path: PathBuf,
    end: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Own {
    fn new() -> Self {
        let (end, ended) = mpsc::channel::<()>();
        let (made, path) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("as root");
            let thread = rustix::thread::gettid().as_raw_nonzero();
            made.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).expect("awaited");
            let _ = ended.recv();
        });
        Self { path: path.recv().expect("made").into(), end: Some(end), keeper: Some(keeper) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command line there, and tells what it says.
    pub(crate) fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|said| panic!("{line}: {said}"))
    }

    pub(crate) fn try_run(&self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (program, arguments) = words.split_first().expect("a program");
        let namespace = Namespace::open(&self.path).expect("kept");
        let output =
            namespace.within(|| Ok(Command::new(program).args(arguments).output().expect("iproute2 is there")));
        let output = output.expect("entered");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Its interfaces, and all that could be left at them; no states and counters, which change by themselves.
    pub(crate) fn all_there_is(&self) -> String {
        let mut all = self.run("tc qdisc show");
        for name in self.run("ip -br link").lines().filter_map(|line| line.split(['@', ' ']).next()) {
            all += &format!("{name}\n{}", self.run(&format!("tc filter show dev {name} ingress")));
        }
        all
    }
}

impl Own {
    /// Waits until the last descriptor of each tap is closed: a process that another test just spawned holds copies until it runs its program.
    pub(crate) fn loses_its_taps(&self) {
        lose_their_taps(&self.path);
    }
}

/// As [`Own::loses_its_taps`], at a path.
pub(crate) fn lose_their_taps(path: &Path) {
    let namespace = Namespace::open(path).expect("kept");
    let lost = namespace.within(|| {
        let mut news = Socket::listen(&[Group::Links]).expect("listening");
        let mut socket = Socket::open().expect("opened");
        while socket.links().expect("listed").iter().any(|link| link.kind == "tun") {
            let mut waiting = [PollFd::new(&news, PollFlags::IN)];
            let patience = Timespec { tv_sec: PATIENCE_SECONDS, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut waiting, Some(&patience)), Ok(1), "a tap is left");
            news.next().expect("heard");
        }
        Ok(())
    });
    lost.expect("entered");
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.end.take());
        self.keeper.take().map(JoinHandle::join);
    }
}

/// The pod's namespace with `eth0`, whose other end is `far` in the other one.
pub(crate) struct Stage {
    pub pod: Own,
    pub outside: Own,
}

/// The address of `eth0`.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];

impl Stage {
    /// `None`, said aloud, where this user can make none.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "{test} needs root, and in CI nothing is skipped");
            eprintln!("skipped: {test} needs root");
            return None;
        }
        let stage = Self { pod: Own::new(), outside: Own::new() };
        stage.pod.run("ip link set lo up");
        stage.add("eth0", "02:00:00:00:00:10", "far");
        Some(stage)
    }

    /// A pair: one end in the pod's namespace, the other one outside.
    pub(crate) fn add(&self, name: &str, mac: &str, far: &str) {
        let outside = self.outside.path().display();
        self.pod.run(&format!("ip link add {name} address {mac} mtu 1400 type veth peer name {far} netns {outside}"));
        self.pod.run(&format!("ip link set {name} up"));
        self.outside.run(&format!("ip link set {far} mtu 1400 up"));
    }
}
