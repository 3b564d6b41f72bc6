//! What a pod costs and may use: its cgroup on the host, its figures, its limits, and what happens when memory is short.
//!
//! Tests hold on hosts with either version of cgroups. One containerd serves all of them, one after the other.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{LazyLock, Mutex, MutexGuard, mpsc},
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    TaskClient,
    api::{StatsRequest, UpdateTaskRequest},
    cgroups::metrics::Metrics as MetricsV1,
    cgroups_v2::metrics::Metrics as MetricsV2,
    protobuf::{Message, well_known_types::any::Any},
    ttrpc::{Client, context},
};
use rustix::process::Signal;
use serde_json::json;
use tests::{Containerd, Finished, Residue, command, containerd::RUNTIME, needs, pids_of, requirement::emulated};

/// Longest that something may take to be so; in the emulated machine everything takes longer.
fn patience() -> Duration {
    Duration::from_secs(if emulated() { 300 } else { 60 })
}
/// `ctr` mounts no cgroup file system unless told.
const CGROUP: [&str; 2] = ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev"];
const MIB: u64 = 1 << 20;

struct Host {
    containerd: Containerd,
    busybox: String,
    python: String,
}

fn host() -> MutexGuard<'static, Host> {
    static HOST: LazyLock<Mutex<Host>> = LazyLock::new(|| {
        let containerd = Containerd::start();
        let (busybox, python) = (containerd.import("busybox"), containerd.import("python"));
        Mutex::new(Host { containerd, busybox, python })
    });
    // A test that failed has poisoned nothing: each ends its own containers.
    HOST.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A container in the background, ended with the value.
struct Running<'a> {
    containerd: &'a Containerd,
    id: String,
}

impl<'a> Running<'a> {
    fn start(containerd: &'a Containerd, flags: &[&str], image: &str, arguments: &[&str]) -> Self {
        let id = containerd.fresh_id();
        let mut words = vec!["run", "-d", "--runtime", RUNTIME];
        words.extend(flags);
        words.extend([image, &id]);
        words.extend(arguments);
        containerd.run(words).success();
        Self { containerd, id }
    }

    fn exec(&self, name: &str, arguments: &[&str]) -> Finished {
        let mut words = vec!["task", "exec", "--exec-id", name, &self.id];
        words.extend(arguments);
        self.containerd.run(words)
    }

    /// A number in a file of its cgroup, as it sees it itself.
    fn number(&self, name: &str, command: &str) -> u64 {
        let text = self.exec(name, &["sh", "-c", command]).success();
        text.trim().parse().unwrap_or_else(|_| panic!("{command} says {text:?}"))
    }

    /// The shim's own service, as containerd uses it.
    fn task(&self) -> TaskClient {
        let state = self.containerd.folder().join("state/io.containerd.runtime.v2.task");
        let bundle = state.join(self.containerd.namespace()).join(&self.id);
        let address = fs::read_to_string(bundle.join("address")).expect("the shim's address");
        TaskClient::new(Client::connect(&address).expect("the shim listens"))
    }

    fn figures(&self) -> Figures {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        let answer = self.task().stats(context::with_timeout(10_000_000_000), &request).expect("answered");
        Figures::of(&answer.stats)
    }

    /// The sentence of the refusal, if it was refused.
    fn update(&self, resources: &serde_json::Value) -> Result<(), String> {
        let value = serde_json::to_vec(resources).expect("plain data");
        let resources = Any { value, ..Any::default() };
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(resources).into(),
            ..UpdateTaskRequest::default()
        };
        let answer = self.task().update(context::with_timeout(10_000_000_000), &request);
        answer.map(drop).map_err(|error| error.to_string())
    }

    /// The pod's folder in each hierarchy where it has one.
    fn cgroup(&self) -> Vec<PathBuf> {
        hierarchies()
            .into_iter()
            .map(|h| h.join(self.containerd.namespace()).join(&self.id))
            .filter(|f| f.is_dir())
            .collect()
    }

    fn shim(&self) -> u32 {
        let pids = pids_of("containerd-shim", &self.id);
        assert_eq!(pids.len(), 1, "one shim: {pids:?}");
        pids[0]
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.containerd.run(["task", "kill", "--signal", "SIGKILL", &self.id]);
        let _ = self.containerd.run(["task", "rm", "--force", &self.id]);
        let _ = self.containerd.run(["container", "rm", &self.id]);
    }
}

/// The figures of either message that the tests compare.
#[derive(Debug)]
struct Figures {
    version: u8,
    memory: u64,
    memory_limit: u64,
    anon: u64,
    inactive_file: u64,
    page_faults: u64,
    cpu_usec: u64,
    pids: u64,
    pids_limit: u64,
    interfaces: Vec<String>,
}

impl Figures {
    fn of(any: &Any) -> Self {
        match any.type_url.as_str() {
            "io.containerd.cgroups.v1.Metrics" => {
                Self::of_version_1(&MetricsV1::parse_from_bytes(&any.value).expect("parsed"))
            }
            "io.containerd.cgroups.v2.Metrics" => {
                Self::of_version_2(&MetricsV2::parse_from_bytes(&any.value).expect("parsed"))
            }
            other => panic!("containerd does not know {other}"),
        }
    }

    fn of_version_1(all: &MetricsV1) -> Self {
        Self {
            version: 1,
            memory: all.memory.usage.usage,
            memory_limit: all.memory.usage.limit,
            anon: all.memory.total_rss,
            inactive_file: all.memory.total_inactive_file,
            page_faults: all.memory.total_pg_fault,
            cpu_usec: all.cpu.usage.total / 1000,
            pids: all.pids.current,
            pids_limit: all.pids.limit,
            interfaces: all.network.iter().map(|interface| interface.name.clone()).collect(),
        }
    }

    fn of_version_2(all: &MetricsV2) -> Self {
        Self {
            version: 2,
            memory: all.memory.usage,
            memory_limit: all.memory.usage_limit,
            anon: all.memory.anon,
            inactive_file: all.memory.inactive_file,
            page_faults: all.memory.pgfault,
            cpu_usec: all.cpu.usage_usec,
            pids: all.pids.current,
            pids_limit: all.pids.limit,
            interfaces: all.network.iter().map(|interface| interface.name.clone()).collect(),
        }
    }
}

/// Mount points of this host's hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    text.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// A process and all below it, whichever of its threads started them.
fn tree(root: u32) -> BTreeSet<u32> {
    let children = |pid: u32| -> Vec<u32> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let texts = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        texts.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    };
    let mut found = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        open.extend(children(pid).into_iter().filter(|child| found.insert(*child)));
    }
    found
}

/// Processes in a cgroup. KVM's threads in the kernel, which it adds to those of the machine, are none: they run no program.
fn procs(folder: &Path) -> BTreeSet<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).expect("it is there");
    let all = text.lines().map(|line| line.parse().expect("a pid"));
    all.filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

/// Waits until something is so; the kernel has no event for it.
#[track_caller]
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < patience(), "{what}: not within {:?}", patience());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_process_of_a_pod_is_in_its_cgroup_in_every_hierarchy_and_the_cgroup_goes_with_the_pod() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let running = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let of_pod = tree(running.shim());
        assert!(of_pod.len() >= 4, "shim, machine and two of the file server: {of_pod:?}");
        let folders = running.cgroup();
        assert!(!folders.is_empty(), "the pod has a cgroup");
        for folder in &folders {
            assert_eq!(procs(folder), of_pod, "{}", folder.display());
        }
        let memory =
            folders.iter().any(|f| f.join("memory.usage_in_bytes").exists() || f.join("memory.current").exists());
        assert!(memory, "its memory is counted: {folders:?}");
    }
    before.assert_nothing_new();
}

#[test]
fn the_memory_of_the_guest_is_counted_in_the_pods_cgroup() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let hold = "import time; kept = bytearray(b'x') * (100 << 20); print('held', flush=True); time.sleep(1000)";
    let running = Running::start(&host.containerd, &[], &host.python, &["python3", "-c", hold]);
    let counted = || {
        let read =
            |folder: &PathBuf, file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let folders = running.cgroup();
        folders.iter().find_map(|f| read(f, "memory.usage_in_bytes").or_else(|| read(f, "memory.current"))).unwrap_or(0)
    };
    eventually("100 MiB in the guest are 100 MiB on the host", || counted() >= 100 * MIB);
}

#[test]
fn a_shim_that_is_killed_leaves_no_cgroup() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let running = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let folders = running.cgroup();
        assert!(!folders.is_empty());
        command::signal(running.shim(), Signal::KILL);
        eventually("the cgroup goes after a crash", || folders.iter().all(|folder| !folder.exists()));
    }
    before.assert_nothing_new();
}

#[test]
fn a_path_of_systemds_form_becomes_nested_slices() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let slice = format!("katarstest-p{}", std::process::id());
    {
        let path = format!("{slice}.slice:cri-containerd:pod");
        let running = Running::start(&host.containerd, &["--cgroup", &path], &host.busybox, &["sleep", "1000"]);
        let below = format!("katarstest.slice/{slice}.slice/cri-containerd-pod.scope");
        let folders: Vec<_> = hierarchies().into_iter().map(|h| h.join(&below)).filter(|f| f.is_dir()).collect();
        assert!(!folders.is_empty(), "{below} is nowhere");
        assert!(procs(&folders[0]).contains(&running.shim()));
    }
    before.assert_nothing_new();
}

#[test]
fn two_pods_below_one_folder_leave_it_together() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let one = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let two = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        drop(one);
        assert!(two.cgroup().iter().all(|folder| procs(folder).contains(&two.shim())), "the other pod's stays");
    }
    before.assert_nothing_new();
}

#[test]
fn figures_have_the_form_of_the_host_and_are_within_two_percent_of_what_the_guest_reads() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let script = "import time
kept = bytearray(b'x') * (150 << 20)
end = time.process_time() + 2
while time.process_time() < end: pass
open('/tmp/ready', 'w').close()
time.sleep(1000)";
    let flags = ["--memory-limit", "268435456", CGROUP[0], CGROUP[1]];
    let running = Running::start(&host.containerd, &flags, &host.python, &["python3", "-c", script]);
    eventually("the container has computed", || running.exec("ready", &["test", "-e", "/tmp/ready"]).code() == 0);

    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let first = running.figures();
    assert_eq!(first.version, if unified { 2 } else { 1 });
    assert_eq!(first.memory_limit, 256 * MIB);
    assert!(!first.interfaces.iter().any(|name| name == "lo"), "{:?}", first.interfaces);
    assert_eq!((first.pids, first.pids_limit), (1, 0));

    let stat = |key: &str| format!("sed -n 's/^{key} //p' /sys/fs/cgroup");
    type Look = (String, fn(&Figures) -> u64);
    let looks: [Look; 5] = [
        ("cat /sys/fs/cgroup/memory.current".into(), |f| f.memory),
        (format!("{}/memory.stat", stat("anon")), |f| f.anon),
        (format!("{}/memory.stat", stat("pgfault")), |f| f.page_faults),
        (format!("{}/cpu.stat", stat("usage_usec")), |f| f.cpu_usec),
        (format!("{}/memory.stat", stat("inactive_file")), |f| f.inactive_file),
    ];
    for (number, (look, figure)) in looks.into_iter().enumerate() {
        // What the look itself costs lies between the two.
        let before = figure(&running.figures());
        let inside = running.number(&format!("look{number}"), &look);
        let after = figure(&running.figures());
        let (low, high) = (before.min(after), before.max(after));
        // Cached files are so few here that two percent are less than a page or two.
        let slack = inside / 50 + if look.contains("inactive_file") { MIB } else { 0 };
        let fits = inside + slack >= low && inside <= high + slack;
        assert!(fits, "{look} says {inside}, Stats says {before} before and {after} after");
    }
}

#[test]
fn new_limits_hold_inside_and_more_memory_than_the_machine_has_is_refused_with_both_figures() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let flags = ["--memory-limit", "67108864", "--cpus", "0.5", CGROUP[0], CGROUP[1]];
    let running = Running::start(&host.containerd, &flags, &host.busybox, &["sleep", "1000"]);
    // With what a version 1 host's specification says besides.
    let new = json!({
        "memory": {"limit": 50_331_648, "reservation": 1_048_576, "kernel": -1, "swappiness": 60, "disableOOMKiller": false},
        "cpu": {"quota": 30_000, "period": 100_000, "shares": 1024, "cpus": "0-63", "mems": "0"},
        "pids": {"limit": 77},
        "unified": {"memory.high": "41943040"}
    });
    running.update(&new).expect("taken");
    for (number, (file, value)) in [
        ("memory.max", "50331648"),
        ("memory.low", "1048576"),
        ("memory.high", "41943040"),
        ("cpu.max", "30000 100000"),
        ("cpu.weight", "39"),
        ("pids.max", "77"),
    ]
    .into_iter()
    .enumerate()
    {
        let held = running.exec(&format!("limit{number}"), &["cat", &format!("/sys/fs/cgroup/{file}")]).success();
        assert_eq!(held.trim(), value, "{file}");
    }
    let sentence = running.update(&json!({"memory": {"limit": 1_u64 << 40}})).expect_err("refused");
    assert!(sentence.contains("1099511627776") && sentence.contains("make the pod again"), "{sentence}");
    let sentence = running.update(&json!({"cpu": {"cpus": "first"}})).expect_err("refused");
    assert!(sentence.contains("linux.resources.cpu.cpus"), "{sentence}");
    let held = running.exec("after", &["cat", "/sys/fs/cgroup/memory.max"]).success();
    assert_eq!(held.trim(), "50331648", "a refused update changes nothing");
}

/// `ctr events`, line by line.
struct Events {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Events {
    fn follow(containerd: &Containerd) -> Self {
        let mut child = containerd.ctr(["events"]).stdout(Stdio::piped()).spawn().expect("ctr starts");
        let output = BufReader::new(child.stdout.take().expect("asked for"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Topics of the container's events, up to and with `last`.
    fn until(&self, id: &str, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        while topics.last().is_none_or(|topic| topic != last) {
            let line = self.lines.recv_timeout(patience()).unwrap_or_else(|_| panic!("no {last} after {topics:?}"));
            let topic = line.split_whitespace().find(|word| word.starts_with("/tasks/"));
            topics.extend(topic.filter(|_| line.contains(id)).map(str::to_owned));
        }
        topics
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes more memory than there is, page by page.
const HOG: &str = "import sys
kept = []
while True: kept.append(bytearray(b'x') * (1 << 20))";

#[test]
fn a_child_killed_for_want_of_memory_is_told_at_once_and_its_container_goes_on() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let events = Events::follow(&host.containerd);
    let script = format!("python3 -c \"{HOG}\"; echo $? > /tmp/status; exec sleep 1000");
    let flags = ["--memory-limit", "67108864"];
    let running = Running::start(&host.containerd, &flags, &host.python, &["sh", "-c", &script]);
    let topics = events.until(&running.id, "/tasks/oom");
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom"]);
    eventually("the container goes on", || running.exec("look", &["test", "-s", "/tmp/status"]).code() == 0);
    assert_eq!(running.exec("status", &["cat", "/tmp/status"]).success().trim(), "137");
    let id = running.id.clone();
    drop(running);
    let rest = events.until(&id, "/tasks/delete");
    assert!(!rest.iter().any(|topic| topic == "/tasks/oom"), "told once: {rest:?}");
}

#[test]
fn a_container_killed_for_want_of_memory_is_told_before_its_exit() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let events = Events::follow(&host.containerd);
    // The machine's whole memory is the limit of a container without one of its own; the agent and the pod survive it.
    for flags in [&["--memory-limit", "67108864"][..], &[]] {
        let running = Running::start(&host.containerd, flags, &host.python, &["python3", "-c", HOG]);
        let topics = events.until(&running.id, "/tasks/exit");
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"], "{flags:?}");
        let task = host.containerd.run(["task", "rm", &running.id]);
        assert!(task.stderr.contains("137") || task.code() == 137, "{flags:?}: {} {}", task.code(), task.stderr);
    }
}

/// A cgroup of the test's own with a limit of memory, as a kubelet makes one for a pod.
struct Limited(PathBuf);

impl Limited {
    fn make(name: &str, bytes: u64) -> Self {
        let counts = |h: &PathBuf| h.join("memory.usage_in_bytes").exists() || h.join("memory.stat").exists();
        let hierarchy = hierarchies().into_iter().find(counts).expect("memory is counted on this host");
        // Version 2 counts in a folder what the one above hands down to it.
        let _ = fs::write(hierarchy.join("cgroup.subtree_control"), "+memory");
        let folder = hierarchy.join(name);
        fs::create_dir(&folder).expect("as root");
        let file = ["memory.limit_in_bytes", "memory.max"].into_iter().find(|file| folder.join(file).exists());
        fs::write(folder.join(file.expect("it has a limit")), bytes.to_string()).expect("limited");
        Self(folder)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_machine_that_the_host_kills_for_want_of_memory_is_a_failed_pod() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let events = Events::follow(&host.containerd);
        let name = format!("kata-rs-limited-{}", std::process::id());
        let _limited = Limited::make(&name, 160 * MIB);
        let cgroup = format!("/{name}/pod");
        let running = Running::start(&host.containerd, &["--cgroup", &cgroup], &host.python, &["python3", "-c", HOG]);
        let topics = events.until(&running.id, "/tasks/exit");
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]);
        let task = host.containerd.run(["task", "rm", &running.id]);
        assert!(task.stderr.contains("137") || task.code() == 137, "{} {}", task.code(), task.stderr);
    }
    before.assert_nothing_new();
}

#[test]
fn a_paused_container_does_nothing_and_can_be_killed() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    if emulated() {
        // What the guest's freezer does does not depend on the kind of KVM.
        return;
    }
    let host = host();
    let running = Running::start(&host.containerd, &[], &host.busybox, &["sh", "-c", "while :; do :; done"]);
    host.containerd.run(["task", "pause", &running.id]).success();
    let usage = || running.figures().cpu_usec;
    let frozen = usage();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(usage(), frozen, "nothing computes");
    host.containerd.run(["task", "resume", &running.id]).success();
    eventually("it computes again", || usage() > frozen);
    host.containerd.run(["task", "pause", &running.id]).success();
    host.containerd.run(["task", "kill", "--signal", "SIGKILL", &running.id]).success();
    eventually("it ends", || {
        host.containerd.run(["task", "ls"]).success().lines().any(|l| l.contains(&running.id) && l.contains("STOPPED"))
    });
}
