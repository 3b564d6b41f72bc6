//! When memory is short: what the OOM killers of guest and host do, and in which order containerd is told.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
};

use tests::{Containerd, Residue, needs};

use super::{MIB, Running, eventually, hierarchies, host, patience};

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
