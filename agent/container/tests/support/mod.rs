//! A root file system of busybox, a specification to change, and processes to talk to.

use container::{
    Cgroup, ContainerHandle, ContainerPlan, Created, GuestFacts, Stage, StageError, StdioFds, TerminalSize,
    exit_status, plan, plan_exec,
};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// The pod of a test, or None (said by name) where its requirements are missing. In CI a missing requirement is a failure.
macro_rules! needs_root {
    () => {
        support::Pod::if_possible(std::thread::current().name().unwrap_or("a test"))
    };
}
pub(crate) use needs_root;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container's root, specification and cgroup.
pub struct Pod {
    root: TempDir,
    pub spec: Value,
    id: String,
    guest: GuestFacts,
    cgroups: RefCell<Vec<Cgroup>>,
    planned: RefCell<Option<ContainerPlan>>,
}

impl Pod {
    pub fn if_possible(test: &str) -> Option<Self> {
        let missing = if !rustix::process::geteuid().is_root() {
            "root"
        } else if cgroup_root().is_none() {
            "a cgroup2 tree"
        } else {
            return Some(Self::new());
        };
        assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}, and in CI nothing is skipped");
        eprintln!("skipped: {test} needs {missing}");
        None
    }

    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        fill(root.path());
        let id = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let guest = GuestFacts::read_at(&cgroup_root().expect("checked")).expect("facts");
        let spec = specification(root.path());
        Self { root, spec, id, guest, cgroups: RefCell::default(), planned: RefCell::default() }
    }

    pub fn id(&mut self, suffix: &str) {
        self.id = format!("{}-{suffix}", self.id);
    }

    pub fn mount(&mut self, mount: Value) {
        self.spec["mounts"].as_array_mut().expect("mounts").push(mount);
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn write_file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("written");
    }

    pub fn write_program(&self, path: &str, text: &str) {
        self.write_file(path, text);
        fs::set_permissions(self.root.path().join(path), fs::Permissions::from_mode(0o755)).expect("mode");
    }

    pub fn read_file(&self, path: &str) -> String {
        fs::read_to_string(self.root.path().join(path)).expect("read")
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.root.path().join(path).exists()
    }

    pub fn symlink(&self, target: &Path, path: &str) {
        symlink(target, self.root.path().join(path)).expect("a link");
    }

    pub fn remove_dir(&self, path: &str) {
        fs::remove_dir(self.root.path().join(path)).expect("removed");
    }

    pub fn shell(&self, script: &str) -> Launch<'_> {
        self.command(&["sh", "-c", script])
    }

    pub fn command(&self, args: &[&str]) -> Launch<'_> {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Launch { pod: self, args, terminal: None, target: None }
    }

    pub fn exec<'a>(&'a self, target: &'a Process, args: &[&str]) -> Launch<'a> {
        Launch { target: Some(target), ..self.command(args) }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for cgroup in self.cgroups.borrow().iter() {
            let _ = cgroup.kill();
            if let Err(error) = cgroup.remove() {
                eprintln!("left behind: {error}");
            }
        }
    }
}

/// A process about to be made.
pub struct Launch<'a> {
    pod: &'a Pod,
    args: Vec<String>,
    terminal: Option<TerminalSize>,
    target: Option<&'a Process>,
}

impl Launch<'_> {
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }

    pub fn run(self) -> Ended {
        self.create().start().expect("started").close_and_wait()
    }

    pub fn create(self) -> Gated {
        self.try_create()
            .unwrap_or_else(|error| panic!("not created: {error}: {:?}", std::error::Error::source(&error)))
    }

    pub fn try_create(self) -> Result<Gated, StageError> {
        let mut spec = self.pod.spec.clone();
        spec["process"]["args"] = json!(self.args);
        let (stdio, ours) = match self.terminal {
            Some(size) => (StdioFds::Terminal { size: Some(size) }, Ours::default()),
            None => pipes(),
        };
        let created = match self.target {
            None => self.pod.create(spec, stdio),
            Some(target) => self.pod.create_exec(&spec["process"], target, stdio),
        }?;
        Ok(Gated { created, ours })
    }
}

impl Pod {
    fn create(&self, spec: Value, stdio: StdioFds) -> Result<Created, StageError> {
        let spec = serde_json::from_value(spec).expect("a specification");
        let plan = plan(&self.id, &spec, &self.guest).expect("a plan");
        let cgroup = Cgroup::create(&self.guest.cgroup_root, &plan.cgroup.path).expect("a cgroup");
        cgroup.apply(&plan.cgroup.limits).expect("limits");
        cgroup.attach_devices(&plan.cgroup.devices, None).expect("device rules");
        let created = stage().create(&plan, &cgroup, stdio);
        *self.planned.borrow_mut() = Some(plan);
        self.cgroups.borrow_mut().push(cgroup);
        created
    }

    fn create_exec(&self, process: &Value, target: &Process, stdio: StdioFds) -> Result<Created, StageError> {
        let process = serde_json::from_value(process.clone()).expect("a process");
        let planned = self.planned.borrow();
        let plan = plan_exec(&process, planned.as_ref().expect("a container"), &self.guest).expect("a plan");
        let cgroups = self.cgroups.borrow();
        let cgroup = cgroups.last().expect("a cgroup");
        stage().exec(&ContainerHandle { init_pid: target.pid, pidfd: target.pidfd.as_fd(), cgroup }, &plan, stdio)
    }
}

/// A prepared stage.
pub fn stage() -> Stage {
    Stage::prepare_from(Path::new(env!("CARGO_BIN_EXE_container-stage"))).expect("a stage")
}

#[derive(Default)]
struct Ours {
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

fn pipes() -> (StdioFds, Ours) {
    let pair = || std::io::pipe().expect("a pipe");
    let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (pair(), pair(), pair());
    let file = |fd: OwnedFd| Some(File::from(fd));
    let ours = Ours { stdin: file(our_stdin.into()), stdout: file(our_stdout.into()), stderr: file(our_stderr.into()) };
    (StdioFds::Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }, ours)
}

/// A process at its gate.
pub struct Gated {
    created: Created,
    ours: Ours,
}

impl std::fmt::Debug for Gated {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.created.fmt(out)
    }
}

impl Gated {
    pub fn start(self) -> Result<Process, StageError> {
        let running = self.created.start()?;
        let console = running.console.map(File::from);
        Ok(Process { pid: running.pid, pidfd: running.pidfd, console, ours: self.ours, so_far: String::new() })
    }

    /// Lets go of the gate, and waits for the end.
    pub fn abandon(self) -> Ended {
        let pid = self.created.pid;
        drop(self);
        Ended { stdout: String::new(), stderr: String::new(), code: reap(pid) }
    }
}

/// A running process.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    console: Option<File>,
    ours: Ours,
    so_far: String,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub code: u32,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn duplicate(&self) -> Self {
        let pidfd = self.pidfd.try_clone().expect("a descriptor");
        Self { pid: self.pid, pidfd, console: None, ours: Ours::default(), so_far: String::new() }
    }

    pub fn signal(&mut self, signal: i32) {
        let signal = Signal::from_named_raw(signal).expect("a signal");
        pidfd_send_signal(&self.pidfd, signal).expect("sent");
    }

    pub fn write_stdin(&mut self, text: &str) {
        let stdin = self.ours.stdin.as_mut().expect("a pipe");
        stdin.write_all(text.as_bytes()).expect("written");
    }

    pub fn resize(&self, size: TerminalSize) {
        container::terminal::resize(self.console.as_ref().expect("a terminal").as_fd(), size).expect("resized");
    }

    /// Reads until `text` has come.
    pub fn read_until(&mut self, text: &str) {
        let source = self.console.as_mut().or(self.ours.stdout.as_mut()).expect("something to read");
        let mut byte = [0];
        while !self.so_far.contains(text) {
            source.read_exact(&mut byte).expect("more to read");
            self.so_far.push(char::from(byte[0]));
        }
        let mut rest = [0];
        while !self.so_far.ends_with('\n') {
            source.read_exact(&mut rest).expect("the end of the line");
            self.so_far.push(char::from(rest[0]));
        }
    }

    pub fn wait(&mut self) -> Ended {
        self.ours.stdin = None;
        let mut stdout = std::mem::take(&mut self.so_far);
        // A terminal whose last user has gone answers EIO, which is its end.
        if let Some(console) = &mut self.console {
            let mut bytes = Vec::new();
            let _ = console.read_to_end(&mut bytes);
            stdout.push_str(&String::from_utf8_lossy(&bytes));
        }
        let mut stderr = String::new();
        if let Some(file) = &mut self.ours.stdout {
            file.read_to_string(&mut stdout).expect("read");
        }
        if let Some(file) = &mut self.ours.stderr {
            file.read_to_string(&mut stderr).expect("read");
        }
        Ended { stdout, stderr, code: reap(self.pid) }
    }

    pub fn close_and_wait(mut self) -> Ended {
        self.wait()
    }
}

/// Waits for a child of this process.
pub fn reap(pid: u32) -> u32 {
    let pid = Pid::from_raw(pid.cast_signed());
    let (_, status) = waitpid(pid, WaitOptions::empty()).expect("our child").expect("ended");
    exit_status(ExitStatus::from_raw(status.as_raw()))
}

/// A tmpfs mounted on this machine for as long as this lives.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path) -> Self {
        rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mounted");
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn cgroup_root() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.join("cgroup.controllers").exists())
}

const APPLETS: [&str; 29] = [
    "mknod", "sh", "ls", "cat", "echo", "grep", "id", "stat", "readlink", "hostname", "stty", "tty", "test", "sleep",
    "mkdir", "touch", "wc", "true", "pwd", "uniq", "umask", "env", "kill", "mount", "ps", "rm", "ln", "head", "dd",
];

/// A busybox with what it is linked to.
fn fill(root: &Path) {
    for directory in ["bin", "lib64", "etc", "proc", "sys", "dev", "tmp", "home/app"] {
        fs::create_dir_all(root.join(directory)).expect("directories");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
    let busybox = Path::new("/bin/busybox");
    // By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
    let copied = Command::new("cp").arg(busybox).arg(root.join("bin/busybox")).status().expect("cp runs");
    assert!(copied.success(), "busybox is installed");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    let linked = Command::new("ldd").arg(busybox).output().expect("ldd runs");
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("a parent")).expect("directories");
        fs::copy(library, copy).expect("copied");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).expect("written");
}

fn specification(root: &Path) -> Value {
    let some = json!(["CAP_CHOWN", "CAP_KILL"]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": root},
        "process": {
            "args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": {"bounding": some, "effective": some, "permitted": some}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}
    })
}
