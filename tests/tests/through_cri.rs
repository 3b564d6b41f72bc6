//! Many pods at once through the CRI socket of the real containerd, and a containerd that goes away under them.
//!
//! What a single pod does is in the conformance suite. One containerd serves all tests of this file, which run one after the other:
//! counting what is left behind allows nothing beside it.
//!
//! Two counts can be raised by hand: `KATA_RS_TEST_PODS=500` for the pods that leave nothing, `KATA_RS_TEST_AWAY_SECONDS=60` for the
//! time without containerd. A longer time adds nothing that a shorter one does not show: what fails without containerd (pipes that fill,
//! events that nobody takes, a shim that gives up) fails within the seconds that are the default, and the pods write all the time.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use cri::v1;
use rustix::process::Signal;
use tests::{
    Residue,
    containerd::{RUNC, RUNTIME},
    needs,
    node::{Container, Node, Pod, Template, poll_until},
    requirement::count,
};

/// Pods that run while containerd is away, and that start at once.
const PODS: usize = 20;
/// Pods of the residue test that are there at the same time.
const AT_ONCE: usize = 10;

fn node() -> MutexGuard<'static, Node> {
    static NODE: LazyLock<Mutex<Node>> = LazyLock::new(|| Mutex::new(Node::start().expect("a node")));
    NODE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn a_shell_line_prints_in_a_pod_of_either_runtime() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let node = node();
    for runtime in [RUNC, RUNTIME] {
        let before = Residue::now();
        assert_eq!(node.sh(runtime, "echo hello").expect("it runs"), "hello\n");
        before.assert_nothing_new();
    }
}

/// Pods that were asked for at the same moment.
fn start_at_once(node: &Node, count: usize) -> Vec<Pod<'_>> {
    thread::scope(|scope| {
        let starts: Vec<_> = (0..count).map(|_| scope.spawn(|| node.plain_pod(RUNTIME))).collect();
        starts.into_iter().map(|start| start.join().expect("no panic").expect("each starts")).collect()
    })
}

#[test]
fn twenty_pods_that_start_at_once_all_run() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let node = node();
    let before = Residue::now();
    let pods = start_at_once(&node, PODS);
    thread::scope(|scope| {
        for (n, pod) in pods.iter().enumerate() {
            scope.spawn(move || {
                let container = pod.start(Template::pause()).expect("it starts");
                assert_eq!(container.sh(&format!("echo {n}")).expect("it runs"), format!("{n}\n"));
            });
        }
    });
    remove_all(&pods);
    drop(pods);
    before.assert_nothing_new();
}

fn remove_all(pods: &[Pod]) {
    thread::scope(|scope| {
        pods.iter().for_each(|pod| drop(scope.spawn(|| pod.remove().expect("removed"))));
    });
}

#[test]
fn pods_in_tens_leave_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let node = node();
    let total = count("KATA_RS_TEST_PODS", 30);
    let before = Residue::now();
    for round in 0..total.div_ceil(AT_ONCE as u64) {
        thread::scope(|scope| {
            for n in 0..AT_ONCE {
                let node = &*node;
                scope.spawn(move || {
                    let line = format!("echo {round}-{n}");
                    let printed = node.sh(RUNTIME, &line).unwrap_or_else(|error| panic!("{line}: {error:#}"));
                    assert_eq!(printed, format!("{round}-{n}\n"));
                });
            }
        });
    }
    before.assert_nothing_new();
}

#[test]
fn pods_outlive_a_containerd_that_stops() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    pods_outlive_containerd(Signal::TERM);
}

#[test]
fn pods_outlive_a_containerd_that_is_killed() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    pods_outlive_containerd(Signal::KILL);
}

/// In each pod one container writes a line a second, and one ends while containerd is away. Neither starts a program to wait: on software KVM
/// that takes tens of milliseconds, and forty of them are to leave something of two cores.
fn pods_outlive_containerd(signal: Signal) {
    let node = node();
    let before = Residue::now();
    let volumes: Vec<_> = (0..PODS).map(|_| node.fresh_folder()).collect();
    let pods = start_at_once(&node, PODS);
    let writers: Vec<_> = pods.iter().map(start_writer).collect();
    let enders: Vec<_> = (0..PODS).map(|n| start_ender(&pods[n], &volumes[n], n)).collect();
    writers.iter().for_each(|writer| drop(writer.wait_for_output("3\n").expect("it writes")));

    let away = node.away(signal, || let_them_end(&volumes)).expect("it comes back");
    enders.iter().enumerate().for_each(|(n, ender)| has_ended(ender, n, &away));
    writers.iter().for_each(goes_on);

    remove_all(&pods);
    drop((writers, enders));
    drop(pods);
    volumes.iter().for_each(|volume| fs::remove_dir_all(volume).expect("removable"));
    before.assert_nothing_new();
}

fn start_writer<'p>(pod: &'p Pod) -> Container<'p> {
    let line = "trap 'exit 0' TERM; mkfifo /tmp/never; exec 3<>/tmp/never; n=0; while :; do n=$((n+1)); echo $n; read -t 1 <&3; done";
    pod.start(Template::sh(line)).expect("it starts")
}

/// Ends with a code of its own once it sees a file.
fn start_ender<'p>(pod: &'p Pod, volume: &Path, n: usize) -> Container<'p> {
    let line = format!(
        "mkfifo /tmp/never; exec 3<>/tmp/never; until test -e /vol/go; do read -t 1 <&3; done; : >/vol/gone; exit {}",
        n + 1
    );
    pod.start(Template::sh(&line).mount(volume, "/vol", false)).expect("it starts")
}

/// Returns the time in which they ended, in nanoseconds since 1970.
fn let_them_end(volumes: &[PathBuf]) -> Range<i64> {
    let start = now_nanos();
    volumes.iter().for_each(|volume| fs::write(volume.join("go"), "").expect("writable"));
    volumes.iter().for_each(|volume| wait_for_file(&volume.join("gone")));
    // Not a wait for an event: time without containerd is what the test is about.
    thread::sleep(Duration::from_secs(count("KATA_RS_TEST_AWAY_SECONDS", 4)));
    start..now_nanos()
}

fn has_ended(ender: &Container, n: usize, away: &Range<i64>) {
    let status = ender.wait().expect("its end was reported");
    assert_eq!(usize::try_from(status.exit_code), Ok(n + 1), "{status:?}");
    assert!(away.contains(&status.finished_at), "not in {away:?}: {status:?}");
}

fn goes_on(writer: &Container) {
    assert_eq!(writer.status().expect("known").state(), v1::ContainerState::ContainerRunning);
    let seen = lines(writer);
    let more = poll_until(Duration::from_secs(30), || Ok(Some(()).filter(|()| lines(writer) > seen + 2)));
    more.expect("readable").unwrap_or_else(|| panic!("nothing is written after line {seen}"));
    assert_eq!(writer.sh("echo still here").expect("an exec"), "still here\n");
    writer.stop(30).expect("stopped");
    assert_eq!(writer.status().expect("known").exit_code, 0);
}

/// The number of the last line of a writer's log.
fn lines(writer: &Container) -> u64 {
    let output = writer.output().expect("there is a log");
    output.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn now_nanos() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_nanos()).expect("before 2262")
}

fn wait_for_file(path: &Path) {
    let there = poll_until(Duration::from_secs(60), || Ok(Some(()).filter(|()| path.exists())));
    there.expect("readable").unwrap_or_else(|| panic!("{} does not come", path.display()));
}
