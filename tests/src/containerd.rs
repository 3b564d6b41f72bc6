//! A private containerd: own root, state and socket, gone with the value.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{Finished, NetworkNamespace, command, node::cri_config, prefix};

/// The runtime under test.
pub const RUNTIME: &str = "io.containerd.kata-rs.v2";
/// What it is compared with.
pub const RUNC: &str = "io.containerd.runc.v2";

/// Where the CRI plugin keeps all of its own.
const KUBELETS_NAMESPACE: &str = "k8s.io";

/// Time for containerd to come up, the emulated machine included.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running containerd.
pub struct Containerd {
    folder: TempDir,
    daemon: Mutex<Daemon>,
    namespace: String,
    next: AtomicU32,
    surroundings: Surroundings,
}

/// What containerd and its shims find around them, the same after a restart.
#[derive(Default)]
struct Surroundings {
    environment: Vec<(String, String)>,
    /// Where they are; the test's own network unless one is given.
    network: Option<Arc<NetworkNamespace>>,
}

impl Surroundings {
    fn with(environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { environment, network: None }
    }
}

impl Containerd {
    /// Starts one and waits until it says that it serves.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more environment for it and its shims.
    pub fn start_with(environment: &[(&str, &str)]) -> Self {
        let config = |folder: &TempDir| config(folder, &["io.containerd.grpc.v1.cri"]);
        Self::start_as(config, format!("kata-rs-test-{}", std::process::id()), Surroundings::with(environment))
    }

    /// Starts one with the CRI plugin; images and tasks are those of the kubelet's namespace.
    pub fn start_for_pods() -> Self {
        Self::start_for_pods_with(&[])
    }

    /// The same, with more environment for it and its shims.
    pub fn start_for_pods_with(environment: &[(&str, &str)]) -> Self {
        let config = |folder: &TempDir| config(folder, &[]) + &cri_config(folder.path());
        Self::start_as(config, KUBELETS_NAMESPACE.to_owned(), Surroundings::with(environment))
    }

    /// Starts one with the CRI plugin in a network of its own, and with more handlers of pods, whose table the function writes.
    pub fn start_for_pods_in(network: Arc<NetworkNamespace>, handlers: impl FnOnce(&Path) -> String) -> Self {
        let config = |folder: &TempDir| config(folder, &[]) + &cri_config(folder.path()) + &handlers(folder.path());
        let surroundings = Surroundings { environment: Vec::new(), network: Some(network) };
        Self::start_as(config, KUBELETS_NAMESPACE.to_owned(), surroundings)
    }

    fn start_as(config: impl FnOnce(&TempDir) -> String, namespace: String, surroundings: Surroundings) -> Self {
        let folder = tempfile::Builder::new().prefix("kata-rs-containerd-").tempdir().expect("a temporary folder");
        fs::write(folder.path().join("config.toml"), config(&folder)).expect("writable");
        show_log_on_panic(folder.path().join("containerd.log"));
        let daemon = Mutex::new(Daemon::start(&folder, &surroundings));
        Self { folder, daemon, namespace, next: AtomicU32::new(1), surroundings }
    }

    /// Stops it with a signal and starts it anew on the same folders; pods go on meanwhile.
    pub fn restart(&self, with: rustix::process::Signal) {
        self.away(with, || ());
    }

    /// The same, with something done while it is away.
    pub fn away<T>(&self, with: rustix::process::Signal, meanwhile: impl FnOnce() -> T) -> T {
        let mut daemon = self.daemon();
        daemon.end(with, START_DEADLINE).expect("containerd ends when told");
        let done = meanwhile();
        *daemon = Daemon::start(&self.folder, &self.surroundings);
        done
    }

    fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Does it have this file open?
    pub fn has_open(&self, path: &Path) -> bool {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.daemon().child.id())).into_iter().flatten();
        descriptors.flatten().any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|open| open == path))
    }

    /// The containerd namespace of the test.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where all of it is. It goes with the value, and with the test program.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// containerd's socket.
    pub fn address(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    /// A container id that was not used before.
    pub fn fresh_id(&self) -> String {
        format!("c{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A `ctr` command, not started yet.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.address()).args(["--namespace", &self.namespace]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        command::run(&mut self.ctr(arguments))
    }

    /// Imports an archive of ours and returns the image's name.
    pub fn import(&self, image: &str) -> String {
        self.run(["images".as_ref(), "import".as_ref(), prefix::image(image).as_os_str()]).success();
        format!("docker.io/library/kata-rs-{image}:latest")
    }

    /// `ctr run --rm` with our runtime.
    pub fn run_container(&self, flags: &[&str], image: &str, arguments: &[&str]) -> Finished {
        self.run(self.container_arguments(RUNTIME, flags, image, &self.fresh_id(), arguments))
    }

    /// The words after `ctr` for a container that is removed at its end.
    pub fn container_arguments(
        &self,
        runtime: &str,
        flags: &[&str],
        image: &str,
        id: &str,
        arguments: &[&str],
    ) -> Vec<String> {
        let mut words = vec!["run", "--rm", "--runtime", runtime];
        words.extend(flags);
        words.extend([image, id]);
        words.extend(arguments);
        words.into_iter().map(str::to_owned).collect()
    }
}

/// The process.
struct Daemon {
    child: Child,
    guard: Guard,
}

impl Daemon {
    fn start(folder: &TempDir, surroundings: &Surroundings) -> Self {
        let child = spawn(folder, surroundings);
        let guard = Guard::of(&child, folder);
        Self { child, guard }
    }

    /// Its status, unless it has not ended in time.
    fn end(&mut self, signal: rustix::process::Signal, deadline: Duration) -> Option<ExitStatus> {
        // The guard first: it would take a containerd that is being ended for one that is left.
        self.guard.dismiss();
        command::signal(self.child.id(), signal);
        command::wait_for(&mut self.child, deadline)
    }
}

/// Ends a containerd whose test program ended without dropping it, as programs do with what is in a static, and when they are killed.
struct Guard {
    shell: Child,
}

impl Guard {
    /// Waits for the end of its standard input, which only this process holds open.
    fn of(containerd: &Child, folder: &TempDir) -> Self {
        let script = "cat; kill $0 && while kill -0 $0; do sleep 0.1; done; rm -rf --one-file-system \"$1\"";
        let shell = Command::new("sh")
            .args(["-c", script, &containerd.id().to_string()])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        Self { shell }
    }
}

impl Guard {
    fn dismiss(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.dismiss();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let mut daemon = self.daemon();
        if daemon.end(rustix::process::Signal::TERM, Duration::from_secs(10)).is_none() {
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
    }
}

fn spawn(folder: &TempDir, surroundings: &Surroundings) -> Child {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("containerd");
    command
        .arg("--config")
        .arg(folder.path().join("config.toml"))
        .env("PATH", format!("{}:{path}", prefix::path().join("bin").display()))
        .envs(surroundings.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let spawned = match &surroundings.network {
        Some(network) => network.run(|| command.spawn()),
        None => command.spawn(),
    };
    let mut child = spawned.expect("containerd is installed: `make deps`");
    let log = child.stderr.take().expect("asked for");
    let (ready, is_ready) = mpsc::channel();
    let copy = fs::File::create(folder.path().join("containerd.log")).expect("writable");
    thread::spawn(move || watch(log, copy, &ready));
    is_ready.recv_timeout(START_DEADLINE).expect("containerd comes up: see containerd.log");
    child
}

/// Lines of the log that a failed test shows: the shim's own are among them.
const LOG_TAIL_LINES: usize = 30;

/// A test that fails shows what containerd and the shims said last.
fn show_log_on_panic(log: PathBuf) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.contains("level=info")).collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        eprintln!("the end of containerd's log:\n{}", tail.join("\n"));
    }));
}

/// Keeps the log, and tells when containerd serves.
fn watch(log: impl std::io::Read, mut copy: fs::File, ready: &mpsc::Sender<()>) {
    use std::io::Write;
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let _ = writeln!(copy, "{line}");
        if line.contains("containerd successfully booted") {
            let _ = ready.send(());
        }
    }
}

fn config(folder: &TempDir, without: &[&str]) -> String {
    let folder = folder.path().display();
    let without: String = without.iter().map(|plugin| format!("\"{plugin}\", ")).collect();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{without}"io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"#
    )
}
