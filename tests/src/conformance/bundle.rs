//! A bundle as containerd makes it: a folder with config.json, a mount point, and the mounts of the root.

use std::{
    fs,
    path::{Path, PathBuf},
};

use containerd_shim_protos::api::Mount;
use serde_json::{Value, json};

use super::Subject;

/// Capabilities that containerd gives by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// Annotation with which CRI names the pod of a container.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// A bundle; config.json is written when a shim is started for it.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// The folder.
    pub folder: PathBuf,
    /// What goes into config.json, if it is not null; a test changes what it is about.
    pub spec: Value,
    /// The mounts of the root: busybox below a layer of its own.
    pub rootfs: Vec<Mount>,
}

impl Bundle {
    /// A container of its own that runs these words in busybox.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(subject: &Subject, words: &[&str]) -> anyhow::Result<Self> {
        let id = subject.fresh_id();
        let folder = subject.folder().join(&id);
        let layer = |name: &str| folder.join(name).display().to_string();
        for name in ["rootfs", "upper", "work"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let rootfs = Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={}", subject.busybox().display()),
                format!("upperdir={}", layer("upper")),
                format!("workdir={}", layer("work")),
            ],
            ..Mount::default()
        };
        let spec = spec(&id, words);
        Ok(Self { id, folder, spec, rootfs: vec![rootfs] })
    }

    /// A container in the pod of another.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn beside(subject: &Subject, sandbox: &str, words: &[&str]) -> anyhow::Result<Self> {
        let mut bundle = Self::new(subject, words)?;
        bundle.spec["annotations"] = json!({ SANDBOX_ID: sandbox, "io.kubernetes.cri.container-type": "container" });
        Ok(bundle)
    }

    /// The sandbox container of a pod, which others can join.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn sandbox(subject: &Subject) -> anyhow::Result<Self> {
        let mut bundle = Self::new(subject, &["sleep", "1000"])?;
        bundle.spec["annotations"] = json!({ SANDBOX_ID: bundle.id, "io.kubernetes.cri.container-type": "sandbox" });
        Ok(bundle)
    }

    /// Writes config.json. The bundle of a sandbox of containerd's sandbox service has none.
    ///
    /// # Errors
    /// The folder is gone.
    pub fn write(&self) -> anyhow::Result<()> {
        if self.spec.is_null() {
            return Ok(());
        }
        Ok(fs::write(self.folder.join("config.json"), serde_json::to_vec_pretty(&self.spec)?)?)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Is anything mounted in the bundle?
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn has_mounts(&self) -> anyhow::Result<bool> {
        has_mounts_below(&self.folder)
    }
}

fn has_mounts_below(folder: &Path) -> anyhow::Result<bool> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let inside = format!(" {}/", folder.display());
    Ok(text.lines().any(|line| line.contains(&inside)))
}

/// An exec's process, as OCI describes it.
pub fn process(words: &[&str]) -> Value {
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": words,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
        "noNewPrivileges": true,
    })
}

fn spec(id: &str, words: &[&str]) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "process": process(words),
        "root": { "path": "rootfs" },
        "hostname": "conformance",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}
