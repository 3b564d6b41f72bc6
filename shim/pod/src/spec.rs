//! The words of the crate: what pod, container and process are asked for, and how a process ended.

use std::{collections::BTreeMap, os::unix::net::UnixStream, path::PathBuf, time::SystemTime};

/// What pod to make.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Name of the pod; letters, digits, `_`, `.`, `-`.
    pub id: String,
    /// Folder of this pod's run-time state (record, share tree, sockets), made by launch, removed at the end: for the shim
    /// `/run/kata-rs/<namespace>/<id>`. Must not exist. Empty ancestors are removed too, up to one named `kata-rs`.
    pub state_dir: PathBuf,
    /// Virtual CPUs; fewer are taken, with a warning, where the host's KVM has fewer to give.
    pub vcpus: u8,
    /// Memory of the machine in MiB; the host backs only what the guest touches.
    pub memory_mib: u32,
    /// Host name of the guest.
    pub hostname: String,
    /// Sysctls of the whole pod.
    pub sysctls: BTreeMap<String, String>,
    /// `/etc/resolv.conf` of the guest, empty for none.
    pub resolv_conf: String,
    /// Where its network is.
    pub network: PodNetwork,
    /// What holds for each interface of it.
    pub interface_rules: InterfaceRules,
    /// More words on the guest's command line, from the operator's configuration only.
    pub extra_cmdline: String,
}

/// The network namespace whose interfaces the guest gets: those that are there when the pod begins, and those that come later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// None: the guest has its loopback, and nobody can give it more.
    #[default]
    None,
    /// One that is made with the pod and belongs to it: empty, until somebody who knows the VMM's pid puts something there.
    Own,
    /// One that somebody else has made, and filled before the pod.
    Namespace(PathBuf),
}

/// What the operator lets pass at each interface of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterfaceRules {
    /// Most that it sends, in Mbit/s; 0 for no limit.
    pub transmit_mbit: u32,
    /// Most that it receives, in Mbit/s; 0 for no limit.
    pub receive_mbit: u32,
    /// It may send from any hardware address.
    pub any_source: bool,
    /// The host's kernel moves its frames, where the host has vhost-net. Not with a limit.
    pub vhost: bool,
}

/// A mount as containerd or a user names it (type, source, options), applied on the host by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// `overlay` or `bind`; others are refused with a sentence.
    pub fs_type: String,
    /// What to mount: a path for `bind`.
    pub source: String,
    /// Options in the style of fstab.
    pub options: Vec<String>,
}

/// What the container's root is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootFs {
    /// Mounts to apply in order (containerd's snapshot).
    Mounts(Vec<HostMount>),
    /// A folder that is there already; shared as it is.
    Folder(PathBuf),
}

/// Which of its stdio a process gets as streams; the rest is /dev/null.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdioWanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal: stdin and stdout are its two directions, stderr is ignored. Size (columns, rows), 0 when unknown.
    pub terminal: Option<(u16, u16)>,
}

/// The host's ends of a process's stdio: connected unix streams, nonblocking, each used in one direction; end of file is a half close.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    /// Write here what the process reads; shut down writing for its end of file.
    pub stdin: Option<UnixStream>,
    /// Read here what the process writes.
    pub stdout: Option<UnixStream>,
    /// Read here what the process writes to standard error.
    pub stderr: Option<UnixStream>,
}

/// What container to make.
#[derive(Debug)]
pub struct ContainerSpec {
    /// Name of the container; letters, digits, `_`, `.`, `-`.
    pub id: String,
    /// The bundle's config.json as the host has it. The pod translates mount sources into the guest's paths.
    pub oci: oci_spec::runtime::Spec,
    /// Its root file system.
    pub rootfs: RootFs,
    /// Its stdio.
    pub stdio: StdioWanted,
}

/// What further process to run in a container.
#[derive(Debug)]
pub struct ExecSpec {
    /// In which container.
    pub container_id: String,
    /// Name of the exec, unique in its container.
    pub exec_id: String,
    /// The OCI process.
    pub process: oci_spec::runtime::Process,
    /// Its stdio.
    pub stdio: StdioWanted,
}

/// A container's first process (`exec_id` empty) or an exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// The container.
    pub container_id: String,
    /// The exec, empty for the first process.
    pub exec_id: String,
}

impl ProcessId {
    /// The first process of a container.
    pub fn first(container_id: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), exec_id: String::new() }
    }

    /// Is this an exec?
    pub fn is_exec(&self) -> bool {
        !self.exec_id.is_empty()
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_exec() {
            write!(f, "exec {} of container {}", self.exec_id, self.container_id)
        } else {
            write!(f, "container {}", self.container_id)
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0-255, 128 + signal, 137 when the machine died under it.
    pub status: u32,
    /// When the host learnt of it, on the host's clock: the guest's is not trusted.
    pub at: SystemTime,
    /// The guest's OOM killer ended a process of the container.
    pub oom_killed: bool,
}
