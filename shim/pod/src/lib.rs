//! A pod on the host: one machine, one file server, one share tree, one record, and the containers inside.
//!
//! This crate enforces one rule: it knows nothing of containerd. The shim and the `kata-rs` command are both thin fronts of it.
//!
//! - [`Installation`] says where our own files are.
//! - [`PodSpec`] says what pod to make; [`Pod::launch`] makes it, writing each acquisition into the [record] before it happens.
//! - [`Pod`] is a cheap handle to the one task that owns the pod's state; every method sends it a message.
//! - [`ProcessStreams`] are the host's ends of a process's stdio.
#![forbid(unsafe_code)]
#![allow(clippy::todo, reason = "the lead's skeleton; the bodies follow")]
#![allow(missing_docs, unused_variables, clippy::unused_async)]

use std::{collections::BTreeMap, os::unix::net::UnixStream, path::PathBuf, time::SystemTime};

pub use vmm_control::Report;

/// Where our own files are. Found from the running binary, or KATA_RS_PREFIX.
#[derive(Debug, Clone)]
pub struct Installation {
    pub vmm: PathBuf,
    pub virtiofsd: PathBuf,
    pub kernel_hw: PathBuf,
    pub kernel_pvm: PathBuf,
    pub guest_image: PathBuf,
}

impl Installation {
    pub fn find() -> Result<Self, PodError> {
        todo!()
    }
}

/// What pod to make.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub id: String,
    /// Folder of this pod's run-time state (record, share tree, sockets), made by launch, removed at the end: for the shim `/run/kata-rs/<namespace>/<id>`.
    pub state_dir: PathBuf,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub hostname: String,
    pub sysctls: BTreeMap<String, String>,
    pub resolv_conf: String,
    /// More words on the guest's command line, from the operator's configuration only.
    pub extra_cmdline: String,
}

/// A mount as containerd or a user names it (type, source, options), applied on the host by us.
#[derive(Debug, Clone)]
pub struct HostMount {
    pub fs_type: String,
    pub source: String,
    pub options: Vec<String>,
}

/// What the container's root is on the host.
#[derive(Debug, Clone)]
pub enum RootFs {
    /// Mounts to apply in order (containerd's snapshot).
    Mounts(Vec<HostMount>),
    /// A folder that is there already; shared as it is.
    Folder(PathBuf),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct StdioWanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// A terminal: stdin and stdout are its two directions, stderr is ignored. Size (columns, rows), 0 when unknown.
    pub terminal: Option<(u16, u16)>,
}

/// The host's ends of a process's stdio: connected unix streams, each used in one direction; end of file is a half close.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    pub stdin: Option<UnixStream>,
    pub stdout: Option<UnixStream>,
    pub stderr: Option<UnixStream>,
}

#[derive(Debug)]
pub struct ContainerSpec {
    pub id: String,
    /// The bundle's config.json as the host has it. The pod translates mount sources into the guest's paths.
    pub oci: oci_spec::runtime::Spec,
    pub rootfs: RootFs,
    pub stdio: StdioWanted,
}

#[derive(Debug)]
pub struct ExecSpec {
    pub container_id: String,
    pub exec_id: String,
    pub process: oci_spec::runtime::Process,
    pub stdio: StdioWanted,
}

/// A container's first process (`exec_id` empty) or an exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    pub container_id: String,
    pub exec_id: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0-255, 128 + signal, 137 when the machine died under it.
    pub status: u32,
    pub at: SystemTime,
    pub oom_killed: bool,
}

/// What kind of error, for fronts to translate into their own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    Unimplemented,
    /// The machine is gone.
    Unavailable,
    DeadlineExceeded,
    Internal,
}

/// Any failure of a pod: names the object, the cause and the next thing to try; carries the tail of the guest's console where that tells more.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PodError {
    pub kind: ErrorKind,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A handle to a running pod.
#[derive(Clone)]
pub struct Pod {}

impl Pod {
    /// Boots the machine and greets the agent. On failure everything is undone before this returns.
    pub async fn launch(installation: &Installation, spec: PodSpec) -> Result<Self, PodError> {
        todo!()
    }
    /// Makes a container; its first process waits at the gate. The pid is the guest's.
    pub async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        todo!()
    }
    /// Registers an exec; nothing runs yet, so a missing command is reported by start.
    pub async fn add_exec(&self, exec: ExecSpec) -> Result<ProcessStreams, PodError> {
        todo!()
    }
    /// Opens the gate (container) or runs the exec. Returns the guest's pid.
    pub async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        todo!()
    }
    pub async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        todo!()
    }
    /// Waits for the end of a process, or of the machine (status 137). Any number of callers.
    pub async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError> {
        todo!()
    }
    pub async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError> {
        todo!()
    }
    pub async fn delete(&self, process: &ProcessId) -> Result<Exit, PodError> {
        todo!()
    }
    pub async fn pids(&self, container_id: &str) -> Result<Vec<u32>, PodError> {
        todo!()
    }
    pub async fn stats(&self, container_id: &str) -> Result<agent_protocol::messages::StatsResponse, PodError> {
        todo!()
    }
    pub async fn update(&self, container_id: &str, resources: oci_spec::runtime::LinuxResources) -> Result<(), PodError> {
        todo!()
    }
    pub async fn pause(&self, container_id: &str) -> Result<(), PodError> {
        todo!()
    }
    pub async fn resume(&self, container_id: &str) -> Result<(), PodError> {
        todo!()
    }
    /// Boot marks and counters of the VMM.
    pub async fn report(&self) -> Result<Report, PodError> {
        todo!()
    }
    /// Host pid of the VMM, what containerd shows as the task's pid.
    pub fn vmm_pid(&self) -> u32 {
        todo!()
    }
    /// Resolves when the machine is gone, with a sentence that says how.
    pub async fn gone(&self) -> String {
        todo!()
    }
    /// Powers off (agent, then VMM stop, then SIGKILL, each with a deadline) and undoes every acquisition. Idempotent; lists what it could not undo.
    pub async fn stop(&self) -> Result<(), PodError> {
        todo!()
    }
}

/// Undoes what a dead shim or command left behind, from the record in `state_dir`. Needs no guest, well inside 5 s. Fine when there is nothing.
pub fn clean_up(state_dir: &std::path::Path) -> Result<(), PodError> {
    todo!()
}
