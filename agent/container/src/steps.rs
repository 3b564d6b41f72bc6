//! What the child does, as data: a closed list of steps, and which of them make a container or an exec, in which order.
//!
//! The order matters and is explained where it does. What a step does is in `child`; nothing is decided there.

use crate::plan::{
    ContainerPlan, DevicePlan, ExecPlan, MountPlan, Namespace, PropagationKind, RlimitPlan, RootfsPlan, Sysctl,
};
use crate::terminal::TerminalSize;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One step of a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Own view of the cgroup tree, rooted where this process was born.
    CgroupNamespace,
    /// No mount made here is seen outside; with `follow`, mounts made outside later still come in.
    IsolateMounts { follow: bool },
    /// A procfs of our own, that no container can have prepared.
    OpenProc,
    /// An empty session keyring.
    Keyring,
    /// The root directory becomes a mount of its own.
    Rootfs(RootfsPlan),
    /// One mount.
    Mount(MountPlan),
    /// One device node.
    Device(DevicePlan),
    /// A symbolic link, replacing what is there.
    Link { path: PathBuf, target: PathBuf },
    /// The working directory is made if it is missing.
    MakeDirectory(PathBuf),
    /// A new terminal in the container's devpts; with `console` it is bound on /dev/console.
    Terminal { size: Option<TerminalSize>, owner: u32, console: bool },
    /// A path is made read-only.
    ReadOnlyPath(PathBuf),
    /// A path is hidden.
    MaskPath(PathBuf),
    /// Mounts that had to stay writable so far become read-only.
    FinishMounts,
    /// The root directory becomes `/`, and the guest's is let go.
    Pivot(RootfsPlan),
    /// Host name.
    Hostname(String),
    /// NIS domain name.
    Domainname(String),
    /// One kernel parameter.
    Sysctl(Sysctl),
    /// One resource limit.
    Rlimit(RlimitPlan),
    /// Badness for the OOM killer.
    OomScore(i32),
    /// A session of its own, with the terminal (if any) as the controlling one, and descriptors 0, 1, 2.
    Stdio { owner: u32 },
    /// The working directory is entered.
    EnterDirectory(PathBuf),
    /// User, groups and capabilities; then what is looked up and executed, after the gate.
    Identity(Box<ExecPlan>),
    /// The program is found.
    FindProgram(Box<ExecPlan>),
    /// Waits for Start.
    Gate,
    /// System call filter, and execve.
    Execute,
}

impl Step {
    /// What the step does, for a message: "could not <this>".
    pub fn name(&self) -> &'static str {
        match self {
            Self::CgroupNamespace => "make the cgroup namespace",
            Self::IsolateMounts { .. } => "isolate the mounts",
            Self::OpenProc => "open a procfs",
            Self::Keyring => "make a session keyring",
            Self::Rootfs(_) => "mount the root file system",
            Self::Mount(_) => "mount",
            Self::Device(_) => "make the device",
            Self::Link { .. } => "make the link",
            Self::MakeDirectory(_) => "make the working directory",
            Self::Terminal { .. } => "open a terminal",
            Self::ReadOnlyPath(_) => "make read-only",
            Self::MaskPath(_) => "mask",
            Self::FinishMounts => "make the mounts read-only",
            Self::Pivot(_) => "change the root directory",
            Self::Hostname(_) => "set the host name",
            Self::Domainname(_) => "set the domain name",
            Self::Sysctl(_) => "set the kernel parameter",
            Self::Rlimit(_) => "set a resource limit",
            Self::OomScore(_) => "set oom_score_adj",
            Self::Stdio { .. } => "set up stdio",
            Self::EnterDirectory(_) => "enter the working directory",
            Self::Identity(_) => "become the user",
            Self::FindProgram(_) => "find the program",
            Self::Gate => "wait to be started",
            Self::Execute => "execute the program",
        }
    }

    /// The path or name the step is about, for a message.
    pub fn subject(&self) -> Option<String> {
        let path = |path: &PathBuf| Some(path.display().to_string());
        match self {
            Self::Rootfs(rootfs) | Self::Pivot(rootfs) => path(&rootfs.path),
            Self::Mount(mount) => path(&mount.destination),
            Self::Device(device) => path(&device.path),
            Self::Link { path: at, .. } | Self::MakeDirectory(at) | Self::ReadOnlyPath(at) => path(at),
            Self::MaskPath(at) | Self::EnterDirectory(at) => path(at),
            Self::Hostname(name) | Self::Domainname(name) => Some(name.clone()),
            Self::Sysctl(sysctl) => Some(sysctl.path.clone()),
            Self::Rlimit(limit) => Some(format!("{limit:?}")),
            Self::OomScore(score) => Some(score.to_string()),
            Self::Terminal { .. } => Some("/dev/pts/ptmx".into()),
            Self::Identity(process) => Some(format!("{}:{}", process.user.uid, process.user.gid)),
            _ => None,
        }
    }
}

/// Why a child ended before it became its program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it was doing.
    pub step: String,
    /// To what.
    pub subject: Option<String>,
    /// The kernel's error number, 0 when it was not the kernel who refused.
    pub errno: i32,
    /// What is known beyond the number.
    pub note: Option<String>,
    /// What kind of failure it is.
    pub kind: FailureKind,
}

/// Failures that callers treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such program: shells answer 127.
    CommandNotFound,
    /// It is there and cannot be executed: shells answer 126.
    CommandNotExecutable,
    /// Anything else.
    Other,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tools look for these words after `exec:`, as every OCI runtime prints them.
        if self.kind != FailureKind::Other {
            let program = self.subject.as_deref().unwrap_or_default();
            let reason = self.note.clone().unwrap_or_else(|| describe(self.errno));
            return write!(out, "exec: {program:?}: {reason}");
        }
        write!(out, "could not {}", self.step)?;
        if let Some(subject) = &self.subject {
            write!(out, " {subject}")?;
        }
        if self.errno != 0 {
            write!(out, ": {}", describe(self.errno))?;
        }
        self.note.iter().try_for_each(|note| write!(out, ": {note}"))
    }
}

/// The C library's text, in lower case like the rest of a sentence.
pub(crate) fn describe(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// Steps that make a container and its first process.
pub fn of_container(plan: &ContainerPlan) -> Vec<Step> {
    let mut steps = Vec::new();
    // First, so that nothing done below shows under the agent's cgroup.
    if plan.namespaces.new.contains(&Namespace::Cgroup) {
        steps.push(Step::CgroupNamespace);
    }
    steps.push(Step::IsolateMounts { follow: follows(plan) });
    steps.push(Step::OpenProc);
    steps.push(Step::Keyring);
    steps.push(Step::Rootfs(plan.rootfs.clone()));
    steps.extend(plan.mounts.iter().cloned().map(Step::Mount));
    if plan.populate_dev {
        steps.extend(plan.devices.iter().cloned().map(Step::Device));
        steps.extend(LINKS.iter().map(|(path, target)| Step::Link { path: path.into(), target: target.into() }));
    }
    steps.push(Step::MakeDirectory(plan.process.cwd.clone()));
    if plan.process.terminal {
        steps.push(terminal(&plan.process, plan.populate_dev));
    }
    // Before the pivot: masks are made of the guest's own /dev/null, which no container can have replaced.
    steps.extend(plan.readonly_paths.iter().cloned().map(Step::ReadOnlyPath));
    steps.extend(plan.masked_paths.iter().cloned().map(Step::MaskPath));
    steps.push(Step::FinishMounts);
    steps.push(Step::Pivot(plan.rootfs.clone()));
    steps.extend(plan.hostname.iter().cloned().map(Step::Hostname));
    steps.extend(plan.domainname.iter().cloned().map(Step::Domainname));
    steps.extend(plan.sysctls.iter().cloned().map(Step::Sysctl));
    steps.extend(of_process(&plan.process));
    steps
}

/// Steps that make a further process in the namespaces of a container, which have been joined.
pub fn of_exec(plan: &ExecPlan) -> Vec<Step> {
    let mut steps = vec![Step::OpenProc, Step::Keyring];
    if plan.terminal {
        steps.push(terminal(plan, false));
    }
    steps.extend(of_process(plan));
    steps
}

fn of_process(plan: &ExecPlan) -> Vec<Step> {
    let mut steps = Vec::new();
    // While still root: limits can be raised and the score lowered.
    steps.extend(plan.rlimits.iter().copied().map(Step::Rlimit));
    steps.extend(plan.oom_score_adj.map(Step::OomScore));
    steps.push(Step::Stdio { owner: plan.user.uid });
    steps.push(Step::EnterDirectory(plan.cwd.clone()));
    // As the user: a program only root may execute is not found for somebody else.
    steps.push(Step::Identity(Box::new(plan.clone())));
    steps.push(Step::FindProgram(Box::new(plan.clone())));
    steps.push(Step::Gate);
    steps.push(Step::Execute);
    steps
}

/// Links of runtime-linux, "Dev symbolic links", and the way to the container's own devpts.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

fn terminal(process: &ExecPlan, console: bool) -> Step {
    Step::Terminal { size: process.console_size, owner: process.user.uid, console }
}

/// Whether some mount, or the root, is to see what is mounted outside later.
fn follows(plan: &ContainerPlan) -> bool {
    let asked = plan.mounts.iter().map(|mount| mount.propagation).chain([plan.rootfs.propagation]);
    asked.flatten().any(|propagation| matches!(propagation.kind, PropagationKind::Slave | PropagationKind::Shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind, errno: i32, subject: &str, note: Option<&str>) -> String {
        let failure =
            Failure { step: "mount".into(), subject: Some(subject.into()), errno, note: note.map(str::to_owned), kind };
        failure.to_string()
    }

    #[test]
    fn failures_read_as_sentences_that_tools_know() {
        let missing = failure(FailureKind::CommandNotFound, 0, "nope", Some("executable file not found in $PATH"));
        assert_eq!(missing, r#"exec: "nope": executable file not found in $PATH"#);
        let denied = failure(FailureKind::CommandNotExecutable, 13, "/etc/passwd", None);
        assert_eq!(denied, r#"exec: "/etc/passwd": permission denied"#);
        assert_eq!(failure(FailureKind::Other, 2, "/data", None), "could not mount /data: no such file or directory");
    }
}
