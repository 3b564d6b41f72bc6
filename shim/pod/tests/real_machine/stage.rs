//! A place for a pod on a real machine, and what is looked at there.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use pod::{ContainerSpec, Installation, Pod, PodError, PodNetwork, PodSpec, ProcessId, RootFs, StdioWanted};
use serde_json::json;

pub(crate) struct Stage {
    pub(crate) root: tempfile::TempDir,
    pub(crate) installation: Installation,
    pub(crate) mounts_before: String,
}

/// With KATA_RS_TEST_LOG set, what the library logs is shown.
pub(crate) struct ToStderr;

impl log::Log for ToStderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

pub(crate) fn host_mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("read")
}

impl Stage {
    pub(crate) fn new(test: &str) -> Option<Self> {
        if std::env::var_os("KATA_RS_TEST_LOG").is_some() && log::set_logger(&ToStderr).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
        let staged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stage");
        let installation = Installation::at(&std::env::var_os("KATA_RS_PREFIX").map_or(staged, PathBuf::from));
        let missing = [
            ("root", !rustix::process::geteuid().is_root()),
            ("/dev/kvm", !Path::new("/dev/kvm").exists()),
            ("an installation (make build)", !installation.vmm.exists() || !installation.guest_image.exists()),
            ("/bin/busybox", !Path::new("/bin/busybox").exists()),
        ];
        if let Some((what, _)) = missing.iter().find(|(_, missing)| *missing) {
            assert!(std::env::var_os("CI").is_none(), "{test} needs {what}, and in CI nothing is skipped");
            eprintln!("skipped: {test} needs {what}");
            return None;
        }
        let root = tempfile::tempdir().expect("a folder");
        make_rootfs(&root.path().join("rootfs"));
        Some(Self { root, installation, mounts_before: host_mounts() })
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.path().join("kata-rs/test/p1")
    }

    pub(crate) fn pod_spec(&self) -> PodSpec {
        PodSpec {
            id: "p1".into(),
            state_dir: self.state_dir(),
            vcpus: 1,
            memory_mib: 128,
            hostname: "real".into(),
            sysctls: Default::default(),
            resolv_conf: String::new(),
            network: PodNetwork::None,
            interface_rules: Default::default(),
            extra_cmdline: String::new(),
        }
    }

    pub(crate) async fn launch(&self) -> Result<Pod, PodError> {
        Pod::launch(&self.installation, self.pod_spec()).await
    }

    pub(crate) fn container(&self, script: &str, mounts: serde_json::Value) -> ContainerSpec {
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        ];
        all.extend(mounts.as_array().expect("a list").iter().cloned());
        let oci = json!({
            "ociVersion": "1.0.2",
            "process": process(script),
            "root": {"path": "rootfs"},
            "hostname": "inside",
            "mounts": all,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]}
        });
        ContainerSpec {
            id: "c1".into(),
            oci: serde_json::from_value(oci).expect("a spec"),
            rootfs: RootFs::Folder(self.root.path().join("rootfs")),
            stdio: StdioWanted { stdin: true, stdout: true, stderr: true, terminal: None },
        }
    }

    /// No file, mount or process of the pod is there.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(!self.state_dir().exists() && !self.root.path().join("kata-rs").exists(), "files are left");
        assert_eq!(host_mounts(), self.mounts_before, "mounts are left");
        let ours = self.root.path().to_str().expect("plain").to_owned();
        let left: Vec<String> = std::fs::read_dir("/proc")
            .expect("read")
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
            .filter(|line| line.contains(&ours))
            .collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
    }
}

pub(crate) fn process(script: &str) -> serde_json::Value {
    json!({"cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

/// A root filesystem with busybox and what it is linked to.
pub(crate) fn make_rootfs(rootfs: &Path) {
    let bin = rootfs.join("bin");
    std::fs::create_dir_all(&bin).expect("made");
    ["proc", "dev", "tmp", "data"].iter().for_each(|name| std::fs::create_dir(rootfs.join(name)).expect("made"));
    // By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
    let copied = Command::new("cp").arg("/bin/busybox").arg(bin.join("busybox")).status().expect("cp runs");
    assert!(copied.success());
    for applet in
        ["sh", "echo", "cat", "sleep", "hostname", "uname", "wc", "chown", "stat", "touch", "mkdir", "ls", "head"]
    {
        std::fs::hard_link(bin.join("busybox"), bin.join(applet)).expect("linked");
    }
    let listed = Command::new("ldd").arg("/bin/busybox").output().expect("ldd");
    for library in String::from_utf8_lossy(&listed.stdout).split_ascii_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = rootfs.join(&library[1..]);
        std::fs::create_dir_all(target.parent().expect("has one")).expect("made");
        std::fs::copy(library, target).expect("copied");
    }
}

pub(crate) fn first() -> ProcessId {
    ProcessId::first("c1")
}

pub(crate) async fn read_all(stream: Option<UnixStream>) -> String {
    let mut stream = stream.expect("wanted");
    stream.set_nonblocking(false).expect("a socket");
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    read.await.expect("ran").expect("read")
}

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}
