//! What the child does, as data: a closed list of steps, and which of them make a container or an exec, in which order.
//!
//! The order matters and is explained where it does. What a step does is in `child`; nothing is decided there.

use crate::plan::{
    CapabilitySets, ContainerPlan, DevicePlan, ExecPlan, MountPlan, Namespace, PropagationKind, RlimitPlan, RootfsPlan,
    SYS_ADMIN, Sysctl, UserPlan,
};
use crate::seccomp::Program;
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
    /// User, groups, capabilities, no_new_privs.
    Identity(Identity),
    /// The program is found, as the user; `uid` is for a home directory the environment lacks.
    FindProgram { args: Vec<String>, env: Vec<String>, uid: u32 },
    /// Waits for Start.
    Gate,
    /// Is the first process of a pid namespace, and nothing else, until it is killed.
    HoldPids,
    /// System call filter, capabilities that were only there to install it, and execve.
    Execute { filter: Option<Program>, drop_to: Option<CapabilitySets> },
}

/// Who a process becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub user: UserPlan,
    /// What it has.
    pub capabilities: CapabilitySets,
    /// What it has besides until its filter is installed.
    pub until_filtered: u64,
    pub no_new_privileges: bool,
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
            Self::FindProgram { .. } => "find the program",
            Self::Gate => "wait to be started",
            Self::HoldPids => "hold a pid namespace",
            Self::Execute { .. } => "execute the program",
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
            Self::Identity(identity) => Some(format!("{}:{}", identity.user.uid, identity.user.gid)),
            Self::FindProgram { args, .. } => args.first().cloned(),
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
    /// The working directory cannot be entered; the note is its path.
    NoDirectory,
    /// Anything else.
    Other,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (FailureKind::NoDirectory, Some(path)) = (self.kind, &self.note) {
            return write!(out, "chdir to cwd ({path:?}) set in config.json failed: {}", describe(self.errno));
        }
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
    // A filter without no_new_privs may only be installed by an administrator. It is the very last thing before the program,
    // since it may forbid anything; so that one capability is kept until then.
    let needs_admin = plan.seccomp.is_some() && !plan.no_new_privileges && plan.capabilities.effective & SYS_ADMIN == 0;
    steps.push(Step::Identity(Identity {
        user: plan.user.clone(),
        capabilities: plan.capabilities,
        until_filtered: if needs_admin { SYS_ADMIN } else { 0 },
        no_new_privileges: plan.no_new_privileges,
    }));
    // As the user: a program only root may execute is not found for somebody else.
    steps.push(Step::FindProgram { args: plan.args.clone(), env: plan.env.clone(), uid: plan.user.uid });
    steps.push(Step::Gate);
    steps.push(Step::Execute { filter: plan.seccomp.clone(), drop_to: needs_admin.then_some(plan.capabilities) });
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

    fn plan(change: impl FnOnce(&mut serde_json::Value)) -> ContainerPlan {
        let mut spec = serde_json::json!({
            "ociVersion": "1.2.0", "root": {"path": "/r"}, "process": {"args": ["x"], "cwd": "/", "user": {"uid": 1, "gid": 1}},
            "linux": {"maskedPaths": ["/m"], "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}
        });
        change(&mut spec);
        let guest = crate::GuestFacts {
            cpus: 1,
            memory_bytes: 1,
            cgroup_root: "/sys/fs/cgroup".into(),
            controllers: Default::default(),
            last_capability: 40,
        };
        crate::plan("c", &serde_json::from_value(spec).expect("a specification"), &guest).expect("planned")
    }

    fn place(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("the step is there")
    }

    #[test]
    fn masks_come_before_the_guests_null_device_is_out_of_reach_and_the_gate_after_everything_but_the_program() {
        let steps = of_container(&plan(|_| ()));
        let pivot = place(&steps, |step| matches!(step, Step::Pivot(_)));
        assert!(place(&steps, |step| matches!(step, Step::MaskPath(_))) < pivot);
        assert!(pivot < place(&steps, |step| matches!(step, Step::Identity(_))));
        assert!(matches!(&steps[steps.len() - 2..], [Step::Gate, Step::Execute { .. }]));
    }

    #[test]
    fn an_administrators_right_is_kept_for_a_filter_only_when_nothing_else_lets_it_in() {
        let extra = |plan: &ContainerPlan| {
            of_container(plan).into_iter().find_map(|step| match step {
                Step::Identity(identity) => Some(identity.until_filtered),
                _ => None,
            })
        };
        assert_eq!(extra(&plan(|_| ())), Some(SYS_ADMIN));
        assert_eq!(extra(&plan(|spec| spec["process"]["noNewPrivileges"] = true.into())), Some(0));
        assert_eq!(extra(&plan(|spec| spec["linux"]["seccomp"] = serde_json::Value::Null)), Some(0));
        let admin = serde_json::json!({"permitted": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"]});
        assert_eq!(extra(&plan(|spec| spec["process"]["capabilities"] = admin)), Some(0));
    }

    #[test]
    fn an_exec_mounts_nothing() {
        let steps = of_exec(&plan(|_| ()).process);
        assert!(steps.iter().all(|step| !matches!(step, Step::Mount(_) | Step::Rootfs(_) | Step::Pivot(_))));
    }

    #[test]
    fn failures_read_as_sentences_that_tools_know() {
        let missing = failure(FailureKind::CommandNotFound, 0, "nope", Some("executable file not found in $PATH"));
        assert_eq!(missing, r#"exec: "nope": executable file not found in $PATH"#);
        let denied = failure(FailureKind::CommandNotExecutable, 13, "/etc/passwd", None);
        assert_eq!(denied, r#"exec: "/etc/passwd": permission denied"#);
        let nowhere = failure(FailureKind::NoDirectory, 2, "0:0", Some("/nowhere"));
        assert_eq!(nowhere, r#"chdir to cwd ("/nowhere") set in config.json failed: no such file or directory"#);
        assert_eq!(failure(FailureKind::Other, 2, "/data", None), "could not mount /data: no such file or directory");
    }
}
