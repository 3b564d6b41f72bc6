//! Pods without a pause container: the shim as containerd 2.x drives it with `sandboxer = "shim"`, on this host's KVM.
//!
//! Debian's containerd is older than that service; so the shim is driven by hand, in the order of containerd's own controller.

use std::{fs, path::Path, sync::Arc};

use containerd_shim_protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{Message, well_known_types::any::Any},
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, SandboxMetricsRequest, SandboxMetricsResponse,
        SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
        StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
        WaitSandboxResponse,
    },
    ttrpc::Code,
};
use rustix::process::Signal;
use serde_json::Value;
use tests::{
    command,
    conformance::{Answer, Bundle, Shim, Stdio, Subject, Task, refused},
    containerd::RUNTIME,
    needs,
};

const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// What the pod's containers may use in sum, as the kubelet tells it.
const MEMORY_LIMIT: u64 = 300 << 20;

/// A sandbox of its own shim.
struct Sandbox<'host> {
    subject: &'host Subject,
    shim: Arc<Shim>,
    bundle: Bundle,
}

impl<'host> Sandbox<'host> {
    /// A shim for a sandbox: its bundle has no configuration.
    fn shim(subject: &'host Subject) -> Self {
        let mut bundle = Bundle::new(subject, &[]).expect("a bundle");
        bundle.spec = Value::Null;
        let shim = Arc::new(Shim::start(subject, &bundle).expect("a shim"));
        Self { subject, shim, bundle }
    }

    /// A sandbox that is ready, and the pid that stands for it.
    fn ready(subject: &'host Subject) -> (Self, u32) {
        let sandbox = Self::shim(subject);
        sandbox.create().expect("created");
        let pid = sandbox.start().expect("started").pid;
        (sandbox, pid)
    }

    fn id(&self) -> String {
        self.bundle.id.clone()
    }

    fn create(&self) -> Answer<CreateSandboxResponse> {
        let options = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: sandbox_config(), ..Any::default() };
        let request = CreateSandboxRequest {
            sandbox_id: self.id(),
            bundle_path: self.bundle.folder.display().to_string(),
            options: Some(options).into(),
            ..CreateSandboxRequest::default()
        };
        self.shim.call_as(SANDBOX, "CreateSandbox", &request)
    }

    fn start(&self) -> Answer<StartSandboxResponse> {
        let request = StartSandboxRequest { sandbox_id: self.id(), ..StartSandboxRequest::default() };
        self.shim.call_as(SANDBOX, "StartSandbox", &request)
    }

    fn status(&self) -> SandboxStatusResponse {
        let request = SandboxStatusRequest { sandbox_id: self.id(), ..SandboxStatusRequest::default() };
        self.shim.call_as(SANDBOX, "SandboxStatus", &request).expect("status")
    }

    /// Its memory, whichever version of cgroups the figures are in.
    fn memory(&self) -> u64 {
        let request = SandboxMetricsRequest { sandbox_id: self.id(), ..SandboxMetricsRequest::default() };
        let answer: SandboxMetricsResponse = self.shim.call_as(SANDBOX, "SandboxMetrics", &request).expect("metrics");
        let figures = answer.metrics.unwrap_or_default().data.unwrap_or_default();
        match figures.type_url.as_str() {
            "io.containerd.cgroups.v1.Metrics" => {
                v1::Metrics::parse_from_bytes(&figures.value).expect("figures").memory.usage.usage
            }
            _ => v2::Metrics::parse_from_bytes(&figures.value).expect("figures").memory.usage,
        }
    }

    /// The same as the host's kernel counts it.
    fn memory_on_the_host(&self) -> u64 {
        let count = |root: &str, file: &str| {
            let folder = Path::new(root).join("kata-rs-test-pods").join(self.id());
            fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok())
        };
        let version_1 = count("/sys/fs/cgroup/memory", "memory.usage_in_bytes");
        version_1.or_else(|| count("/sys/fs/cgroup", "memory.current")).expect("a cgroup with memory")
    }

    fn stop(&self) {
        let request = StopSandboxRequest { sandbox_id: self.id(), ..StopSandboxRequest::default() };
        let _: StopSandboxResponse = self.shim.call_as(SANDBOX, "StopSandbox", &request).expect("stopped");
    }

    fn wait(&self) -> u32 {
        let request = WaitSandboxRequest { sandbox_id: self.id(), ..WaitSandboxRequest::default() };
        self.shim.call_as::<_, WaitSandboxResponse>(SANDBOX, "WaitSandbox", &request).expect("waited").exit_status
    }

    fn shut_down(&self) {
        let request = ShutdownSandboxRequest { sandbox_id: self.id(), ..ShutdownSandboxRequest::default() };
        let _: ShutdownSandboxResponse = self.shim.call_as(SANDBOX, "ShutdownSandbox", &request).expect("shut down");
        self.shim.wait_for_end().expect("gone");
    }

    /// A container in it, made as containerd 2.x does: without another `start` of the shim.
    fn container(&self, words: &[&str]) -> (Task, Stdio) {
        self.container_with(words, |_| ())
    }

    /// One with another configuration.
    fn container_with(&self, words: &[&str], change: impl FnOnce(&mut Value)) -> (Task, Stdio) {
        let mut bundle = Bundle::beside(self.subject, &self.id(), words).expect("a bundle");
        change(&mut bundle.spec);
        bundle.write().expect("written");
        let stdio = Stdio::output(&bundle.folder, "init").expect("fifos");
        let task = Task { shim: Arc::clone(&self.shim), bundle };
        task.create(&stdio).expect("created");
        task.start("").expect("started");
        (task, stdio)
    }
}

/// `PodSandboxConfig { hostname: "web-0", linux: { cgroup_parent, resources: { memory_limit_in_bytes } } }` on the wire (k8s.io/cri-api,
/// runtime.v1).
fn sandbox_config() -> Vec<u8> {
    let mut memory = vec![0x20];
    let mut rest = MEMORY_LIMIT;
    while rest >= 0x80 {
        memory.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    memory.push(u8::try_from(rest).expect("seven bits"));
    let message = |key: u8, bytes: &[u8]| {
        let mut out = vec![key, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    };
    let mut config = message(0x12, b"web-0");
    let mut linux = message(0x0a, b"/kata-rs-test-pods");
    linux.extend(message(0x2a, &memory));
    config.extend(message(0x42, &linux));
    config
}

fn subject() -> Subject {
    Subject::new(RUNTIME).expect("our shim")
}

fn state_dir(sandbox: &Sandbox<'_>) -> std::path::PathBuf {
    Path::new("/run/kata-rs").join(sandbox.subject.namespace()).join(sandbox.id())
}

#[test]
fn containers_run_in_a_sandbox_that_has_none_of_its_own() {
    needs!(Kvm, Root, Stage);
    let subject = subject();
    let (sandbox, pid) = Sandbox::ready(&subject);
    let program = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    assert!(program.ends_with("kata-rs-vmm"), "{}", program.display());
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read");
    assert!(cgroups.contains(&format!("/kata-rs-test-pods/{}", sandbox.id())), "{cgroups}");
    assert_eq!(sandbox.status().state, "SANDBOX_READY");

    let words = [
        "sh",
        "-c",
        "awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo; cat /etc/hostname; grep -c localhost /etc/hosts; exit 7",
    ];
    let (one, stdio) = sandbox.container(&words);
    assert_eq!(one.wait("").expect("waited").exit_status, 7);
    let text = stdio.whole().expect("read");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1..], ["web-0", "2"], "what a pause container would have shown");
    let memory: f64 = lines[0].parse().expect("a number");
    let limit = MEMORY_LIMIT as f64;
    assert!((limit..limit * 1.4).contains(&memory), "the machine of a pod with {limit} bytes has {memory}");
    one.delete("").expect("deleted");
    drop(one.shutdown());

    let (two, _stdio) = sandbox.container(&["sleep", "1000"]);
    assert_eq!(sandbox.status().pid, pid, "it is the same machine, and outlived its last container");
    let (told, counted) = (sandbox.memory(), sandbox.memory_on_the_host());
    assert!(told.abs_diff(counted) < counted / 10, "the pod costs the host {counted} bytes, and {told} are told");
    assert_eq!(one.told(), ["create", "start", "exit 7", "delete 7"]);

    sandbox.stop();
    assert_eq!(two.wait("").expect("waited").exit_status, 137);
    two.delete("").expect("deleted");
    assert_eq!((sandbox.wait(), sandbox.status().state.as_str()), (0, "SANDBOX_NOTREADY"));
    sandbox.shut_down();
    assert!(!Path::new(&format!("/proc/{pid}")).exists() && !state_dir(&sandbox).exists());
    let left =
        fs::read_dir("/sys/fs/cgroup").expect("read").flatten().map(|entry| entry.path().join("kata-rs-test-pods"));
    assert!(left.into_iter().all(|folder| !folder.join(sandbox.id()).exists()), "its cgroup is left");
}

#[test]
fn containers_of_a_sandbox_share_their_processes_when_they_join_it() {
    needs!(Kvm, Root, Stage);
    let subject = subject();
    let (sandbox, pid) = Sandbox::ready(&subject);
    let join = |spec: &mut Value| spec["linux"]["namespaces"][0]["path"] = format!("/proc/{pid}/ns/pid").into();
    let (one, _stdio) = sandbox.container_with(&["sleep", "4321"], join);
    let (two, stdio) = sandbox.container_with(&["sh", "-c", "echo $$; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], join);
    assert_eq!(two.wait("").expect("waited").exit_status, 0);
    let text = stdio.whole().expect("read");
    assert!(!text.starts_with("1\n") && text.contains("sleep 4321"), "{text}");
    two.delete("").expect("deleted");
    sandbox.stop();
    one.wait("").expect("waited");
    one.delete("").expect("deleted");
    sandbox.shut_down();
}

#[test]
fn a_sandbox_that_was_never_started_leaves_nothing() {
    needs!(Kvm, Root, Stage);
    let subject = subject();
    let sandbox = Sandbox::shim(&subject);
    refused(sandbox.start(), Code::NOT_FOUND).expect("nothing to start yet");
    sandbox.create().expect("created");
    refused(sandbox.create(), Code::ALREADY_EXISTS).expect("once");
    sandbox.shut_down();
    assert!(!state_dir(&sandbox).exists());
}

#[test]
fn a_machine_that_the_host_kills_for_memory_is_a_failed_pod() {
    needs!(Kvm, Root, Stage);
    let subject = subject();
    let (sandbox, pid) = Sandbox::ready(&subject);
    let (greedy, _stdio) = sandbox.container(&["sh", "-c", "sleep 1; head -c 250m /dev/zero | tail"]);
    let cgroup = MemoryCgroup::with_limit(&sandbox.id(), 64 << 20);
    cgroup.take(pid);
    assert_eq!(greedy.wait("").expect("waited").exit_status, 137);
    assert_eq!(sandbox.wait(), 137, "never a success");
    assert!(cgroup.kills() > 0, "it was the host's kernel that killed it");
    sandbox.stop();
    greedy.delete("").expect("deleted");
    sandbox.shut_down();
}

#[test]
fn a_machine_that_is_killed_ends_its_sandbox_and_all_that_is_in_it() {
    needs!(Kvm, Root, Stage);
    let subject = subject();
    let (sandbox, pid) = Sandbox::ready(&subject);
    let (one, _stdio) = sandbox.container(&["sleep", "1000"]);
    command::signal(pid, Signal::KILL);
    assert_eq!((sandbox.wait(), one.wait("").expect("waited").exit_status), (137, 137));
    one.delete("").expect("deleted");
    sandbox.shut_down();
    assert!(!state_dir(&sandbox).exists());
}

/// A cgroup of the host with a limit of memory, of whichever version the host has.
struct MemoryCgroup {
    folder: std::path::PathBuf,
    version_1: bool,
}

impl MemoryCgroup {
    fn with_limit(name: &str, bytes: u64) -> Self {
        let version_1 = Path::new("/sys/fs/cgroup/memory/tasks").exists();
        let root = Path::new(if version_1 { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" });
        let cgroup = Self { folder: root.join(format!("kata-rs-test-{name}")), version_1 };
        fs::create_dir(&cgroup.folder).expect("a cgroup");
        let limit = if version_1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(cgroup.folder.join(limit), bytes.to_string()).expect("a limit");
        cgroup
    }

    // What a process has already stays where it is counted; what it takes from now on counts here.
    fn take(&self, pid: u32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).expect("moved");
    }

    fn kills(&self) -> u64 {
        let file = if self.version_1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.folder.join(file)).expect("read");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a count");
        line.trim().parse().expect("a number")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
