//! The nouns of a plan: plain data, all of it public, all of it able to travel to the stage.

use super::{CapabilitySets, Warning};
use crate::cgroup::{DeviceProgram, Limits};
use crate::seccomp::Program;
use crate::terminal::TerminalSize;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything decided about a container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPlan {
    /// The container's name, also its cgroup's.
    pub id: String,
    /// Namespaces made and joined.
    pub namespaces: NamespacePlan,
    /// The root directory.
    pub rootfs: RootfsPlan,
    /// Mounts in the order they are made.
    pub mounts: Vec<MountPlan>,
    /// Whether /dev is the runtime's to fill: device nodes, standard links, ptmx.
    pub populate_dev: bool,
    /// Device nodes to make; empty unless `populate_dev`.
    pub devices: Vec<DevicePlan>,
    /// Whether every device is allowed; then the nodes asked for are a list of all that the host has, not of what is needed.
    pub every_device: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only with all that is mounted below them.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name, only with a UTS namespace of its own.
    pub hostname: Option<String>,
    /// NIS domain name, only with a UTS namespace of its own.
    pub domainname: Option<String>,
    /// Kernel parameters, by path below /proc/sys.
    pub sysctls: Vec<Sysctl>,
    /// The cgroup and its limits.
    pub cgroup: CgroupPlan,
    /// The first process.
    pub process: ExecPlan,
    /// What was asked for and left out, each with its reason: for the log.
    pub warnings: Vec<Warning>,
}

impl ContainerPlan {
    /// Lets it join a pid namespace, which a path of the guest names, in place of one of its own.
    pub fn join_pid_namespace(&mut self, path: PathBuf) {
        self.namespaces.new.retain(|kind| *kind != Namespace::Pid);
        self.namespaces.join.retain(|(kind, _)| *kind != Namespace::Pid);
        self.namespaces.join.push((Namespace::Pid, path));
    }

    /// Of all the host's devices, leaves those that the guest has too.
    pub fn keep_devices_of_guest(&mut self, has: impl Fn(&DevicePlan) -> bool) {
        if self.every_device {
            self.devices.retain(|device| device.kind == DeviceKind::Fifo || has(device));
        }
    }
}

/// Everything decided about one process of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The program and its arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Working directory inside the container.
    pub cwd: PathBuf,
    /// Who the process is.
    pub user: UserPlan,
    /// Its capabilities.
    pub capabilities: CapabilitySets,
    /// Resource limits of setrlimit(2).
    pub rlimits: Vec<RlimitPlan>,
    /// Whether execve may ever grant more than the process has.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Option<Program>,
    /// Written to oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// Whether stdio is a terminal.
    pub terminal: bool,
    /// Size of the terminal at birth.
    pub console_size: Option<TerminalSize>,
}

/// Kinds of namespaces that a container in a machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Namespace {
    /// Mounts: always a new one.
    Mount,
    /// Process ids.
    Pid,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// The view of the cgroup tree.
    Cgroup,
}

/// Namespaces of a container; a kind in neither list is shared with the guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespacePlan {
    /// Made for this container.
    pub new: Vec<Namespace>,
    /// Joined, with the guest's path of each.
    pub join: Vec<(Namespace, PathBuf)>,
}

/// The root directory of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Where it is in the guest.
    pub path: PathBuf,
    /// Whether the root mount is made read-only in the end.
    pub readonly: bool,
    /// Propagation of the root mount, private when absent.
    pub propagation: Option<Propagation>,
}

/// Propagation of a mount, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// The kind.
    pub kind: PropagationKind,
    /// Whether it holds for the mounts below as well.
    pub recursive: bool,
}

/// Kinds of propagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PropagationKind {
    /// Nothing comes in or goes out.
    Private,
    /// Mounts come in and do not go out.
    Slave,
    /// Mounts travel both ways.
    Shared,
    /// Private, and cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    /// Reads the words of mount options: `slave`, `rslave`, and so on.
    pub fn from_word(word: &str) -> Option<Self> {
        let (kind, recursive) = match word {
            "private" => (PropagationKind::Private, false),
            "rprivate" => (PropagationKind::Private, true),
            "slave" => (PropagationKind::Slave, false),
            "rslave" => (PropagationKind::Slave, true),
            "shared" => (PropagationKind::Shared, false),
            "rshared" => (PropagationKind::Shared, true),
            "unbindable" => (PropagationKind::Unbindable, false),
            "runbindable" => (PropagationKind::Unbindable, true),
            _ => return None,
        };
        Some(Self { kind, recursive })
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path in the container, free of `..`.
    pub destination: PathBuf,
    /// What is mounted.
    pub what: MountKind,
    /// Attributes of this mount.
    pub attributes: MountAttributes,
    /// Attributes of this mount and every mount below it.
    pub recursive_attributes: MountAttributes,
    /// Propagation, when asked for.
    pub propagation: Option<Propagation>,
    /// Made read-only only after everything else has been put below it.
    pub readonly_at_last: bool,
}

impl MountPlan {
    /// Whether a directory or file of the guest is mounted.
    pub fn is_bind(&self) -> bool {
        matches!(self.what, MountKind::Bind { .. })
    }

    /// Whether a new file system of this type is mounted.
    pub fn is_new(&self, wanted: &str) -> bool {
        matches!(&self.what, MountKind::New { fstype, .. } if fstype == wanted)
    }

    /// Where the mount is, for messages.
    pub fn destination(&self) -> &Path {
        &self.destination
    }
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MountKind {
    /// A directory or file of the guest.
    Bind {
        /// Its path in the guest.
        source: PathBuf,
        /// Whether the mounts below it come along.
        recursive: bool,
    },
    /// A file system of its own.
    New {
        /// The kernel's name of the type.
        fstype: String,
        /// Shown as the device in /proc/mounts.
        source: String,
        /// Options of the file system: `key=value` or a flag.
        options: Vec<(String, Option<String>)>,
    },
}

/// Attribute bits of mount_setattr(2): which are cleared, then which are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes {
    /// Bits set.
    pub set: u64,
    /// Bits cleared.
    pub clear: u64,
}

impl MountAttributes {
    /// Whether nothing is asked for.
    pub fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// One device node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Character, block or FIFO.
    pub kind: DeviceKind,
    /// Major number, 0 for a FIFO.
    pub major: u32,
    /// Minor number, 0 for a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// One kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Path below /proc/sys.
    pub path: String,
    /// What is written.
    pub value: String,
}

/// A container's cgroup.
#[derive(Clone, Debug, PartialEq)]
pub struct CgroupPlan {
    /// Path below the root of the cgroup tree.
    pub path: PathBuf,
    /// Limits to write.
    pub limits: Limits,
    /// Which devices may be made and opened.
    pub devices: DeviceProgram,
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPlan {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask; 0022 when absent.
    pub umask: Option<u32>,
}

/// One resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitPlan {
    /// `RLIMIT_*` of setrlimit(2), x86_64.
    pub resource: u32,
    /// Soft limit, 2^64-1 for none.
    pub soft: u64,
    /// Hard limit, 2^64-1 for none.
    pub hard: u64,
}
