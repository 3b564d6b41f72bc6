//! What a pod costs and may use: its cgroup on the host, its figures, its limits, and what happens when memory is short.
//!
//! Tests hold on hosts with either version of cgroups. One containerd serves all of them, one after the other.

mod figures;
mod host_cgroup;
mod memory;

use std::{
    fs,
    path::PathBuf,
    sync::{LazyLock, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    TaskClient,
    api::{StatsRequest, UpdateTaskRequest},
    protobuf::well_known_types::any::Any,
    ttrpc::{Client, context},
};
use tests::{Containerd, Finished, containerd::RUNTIME, pids_of, requirement::emulated};

use self::figures::Figures;

/// Longest that something may take to be so; in the emulated machine everything takes longer.
fn patience() -> Duration {
    Duration::from_secs(if emulated() { 300 } else { 60 })
}
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

/// Mount points of this host's hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    text.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
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
