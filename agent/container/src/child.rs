//! The child's side: a process with one thread that does what it is told, step by step, and becomes a program.
//!
//! It starts as a copy of the agent's binary, never of the agent's memory. It takes one order, is reborn as a sibling (a child
//! of the agent) in the namespaces asked for, and runs the steps. The first that fails is reported by name and ends it.

mod identity;
mod mounts;
mod nodes;
mod program;
mod rootfs;
mod terminal;

use crate::plan::Namespace;
use crate::procfs::Procfs;
use crate::signals;
use crate::stage::STAGE_NAME;
use crate::steps::{Failure, FailureKind, Step};
use crate::sys::{self, Sibling};
use crate::wire::{self, Birth, Order, Report, Role};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
    move_into_thread_name_spaces,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// If this process was started as a stage, serves as one and does not return. Call it first thing in `main`, before any
/// thread exists and before anything is opened.
pub fn stage_main_if_asked() {
    if std::env::args_os().next().is_some_and(|name| name == STAGE_NAME) {
        sys::exit_now(i32::from(serve().is_err()));
    }
}

/// Why a step failed; the step's name and subject are added by the caller.
#[derive(Debug)]
pub(crate) struct StepError {
    errno: i32,
    note: Option<String>,
    kind: FailureKind,
}

impl From<Errno> for StepError {
    fn from(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error(), note: None, kind: FailureKind::Other }
    }
}

impl From<io::Error> for StepError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, note: None, kind: FailureKind::Other },
            None => Self::because(error.to_string()),
        }
    }
}

impl StepError {
    /// A reason of our own, not the kernel's.
    fn because(note: impl Into<String>) -> Self {
        Self { errno: 0, note: Some(note.into()), kind: FailureKind::Other }
    }

    /// Not allowed, as against not possible.
    fn is_refusal(&self) -> bool {
        [Errno::PERM, Errno::ACCESS].iter().any(|errno| errno.raw_os_error() == self.errno)
    }

    fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

fn serve() -> io::Result<()> {
    // The socket came as stdin; taken away from there at once, because 0 is to be the program's.
    sys::close_all_but_stdio()?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    // Nobody may trace or look into this process through /proc once it has joined a container.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::empty());
    // Now, while nobody waits, and for the program: the standard library has just made this process ignore SIGPIPE.
    signals::reset();
    let Some((roles, fds)) = wire::receive(socket.as_fd())? else { return Ok(()) };
    let mut cast = Cast::default();
    roles.into_iter().zip(fds).for_each(|(role, fd)| cast.take(role, fd));
    let Some(order) = cast.order.take() else { return Err(io::ErrorKind::InvalidData.into()) };
    let Order { birth, steps } = Order::from_file(order)?;
    match bear(&birth, &cast) {
        Ok(Sibling::Caller(pid, pidfd)) => Report::Born { pid }.send(socket.as_fd(), Some(pidfd.as_fd())),
        Ok(Sibling::Newborn) => match see_the_cgroup(&birth, &cast) {
            Ok(()) => live(socket, cast, steps),
            Err(error) => report(&socket, failure("join the container", None, error.into())),
        },
        Err((name, subject, error)) => report(&socket, failure(name, subject, error)),
    }
}

/// Descriptors that came with the order.
#[derive(Default)]
struct Cast {
    order: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
    target: Option<OwnedFd>,
    stdio: [Option<OwnedFd>; 3],
}

impl Cast {
    fn take(&mut self, role: u8, fd: OwnedFd) {
        let place = match role {
            role if role == Role::Order as u8 => &mut self.order,
            role if role == Role::Cgroup as u8 => &mut self.cgroup,
            role if role == Role::Target as u8 => &mut self.target,
            role if role == Role::Stdin as u8 => &mut self.stdio[0],
            role if role == Role::Stdout as u8 => &mut self.stdio[1],
            role if role == Role::Stderr as u8 => &mut self.stdio[2],
            _ => return,
        };
        *place = Some(fd);
    }
}

type BirthError = (&'static str, Option<String>, StepError);

/// Joins what is to be joined, and makes the sibling in what is to be new.
fn bear(birth: &Birth, cast: &Cast) -> Result<Sibling, BirthError> {
    for (kind, path) in &birth.join {
        let fail = |error: Errno| ("join the namespace", Some(path.display().to_string()), error.into());
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
        move_into_link_name_space(fd.as_fd(), Some(link_type(*kind))).map_err(fail)?;
    }
    if birth.join_target {
        let fail = |error: Errno| ("join the container", None, error.into());
        let target = cast.target.as_ref().ok_or(Errno::BADF).map_err(fail)?;
        let all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(target.as_fd(), all).map_err(fail)?;
    }
    let flags = birth.new.iter().fold(0, |flags, kind| flags | clone_flag(*kind));
    let cgroup = cast.cgroup.as_ref().map(OwnedFd::as_fd);
    sys::clone_sibling(flags, cgroup).map_err(|error| ("make the process", None, error.into()))
}

/// Joins the container's cgroup namespace, last: from inside it the kernel would refuse to move a newborn into the container's cgroup,
/// as the stage's own lies outside (nsdelegate, kernel/cgroup/cgroup.c, cgroup_procs_write_permission).
fn see_the_cgroup(birth: &Birth, cast: &Cast) -> Result<(), Errno> {
    match cast.target.as_ref().filter(|_| birth.join_target) {
        Some(target) => move_into_thread_name_spaces(target.as_fd(), ThreadNameSpaceType::CONTROL_GROUP),
        None => Ok(()),
    }
}

fn link_type(kind: Namespace) -> LinkNameSpaceType {
    match kind {
        Namespace::Mount => LinkNameSpaceType::Mount,
        Namespace::Pid => LinkNameSpaceType::ProcessID,
        Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
        Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        Namespace::Cgroup => LinkNameSpaceType::ControlGroup,
    }
}

/// CLONE_NEW* of linux/sched.h.
fn clone_flag(kind: Namespace) -> u64 {
    match kind {
        Namespace::Mount => 0x0002_0000,
        Namespace::Cgroup => 0x0200_0000,
        Namespace::Uts => 0x0400_0000,
        Namespace::Ipc => 0x0800_0000,
        Namespace::Pid => 0x2000_0000,
    }
}

fn live(socket: OwnedFd, cast: Cast, steps: Vec<Step>) -> io::Result<()> {
    let mut newborn = Newborn::new(socket, cast.stdio);
    // The target and the cgroup are the caller's affair from here on.
    drop((cast.cgroup, cast.target));
    for step in &steps {
        if let Err(error) = newborn.run(step) {
            let kind = error.kind;
            let subject = match step {
                Step::Execute { .. } => newborn.program_name.clone(),
                other => other.subject(),
            };
            report(&newborn.socket, failure(step.name(), subject, error))?;
            sys::exit_now(if kind == FailureKind::CommandNotFound { 127 } else { 126 });
        }
    }
    Ok(())
}

fn failure(step: &str, subject: Option<String>, error: StepError) -> Failure {
    Failure {
        step: step.to_owned(),
        subject: subject.map(shorten),
        errno: error.errno,
        note: error.note.map(shorten),
        kind: error.kind,
    }
}

/// A message must fit a packet, and arguments of a program can be long.
fn shorten(text: String) -> String {
    const LONGEST: usize = 1024;
    text.chars().take(LONGEST).collect()
}

fn report(socket: &OwnedFd, failure: Failure) -> io::Result<()> {
    Report::Failed(failure).send(socket.as_fd(), None)
}

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// What the steps leave for one another.
struct Newborn {
    socket: OwnedFd,
    stdio: [Option<OwnedFd>; 3],
    proc: Option<Procfs>,
    /// The container's root directory, until it is `/`.
    root: Option<OwnedFd>,
    /// Device number of the root's file system, once that is known to be no procfs.
    root_device: Option<u64>,
    /// /dev/null of the guest, checked to be it.
    null: Option<OwnedFd>,
    /// Mounts to make read-only in the end.
    readonly_at_last: Vec<OwnedFd>,
    terminal: Option<terminal::Pair>,
    /// A working directory that root may not enter, but perhaps the user.
    still_to_enter: Option<std::path::PathBuf>,
    program: Option<sys::Program>,
    program_name: Option<String>,
}

impl Newborn {
    fn new(socket: OwnedFd, stdio: [Option<OwnedFd>; 3]) -> Self {
        Self {
            socket,
            stdio,
            proc: None,
            root: None,
            root_device: None,
            null: None,
            readonly_at_last: Vec::new(),
            terminal: None,
            still_to_enter: None,
            program: None,
            program_name: None,
        }
    }

    fn run(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::CgroupNamespace => Ok(sys::unshare_cgroup_namespace()?),
            Step::IsolateMounts { follow } => self.isolate_mounts(*follow),
            Step::OpenProc => {
                self.proc = Some(Procfs::open()?);
                Ok(())
            }
            Step::Keyring => Ok(sys::join_new_session_keyring()?),
            Step::Rootfs(rootfs) => self.mount_rootfs(rootfs),
            Step::Mount(mount) => self.mount(mount),
            Step::Device(device) => self.make_device(device),
            Step::Link { path, target } => self.make_link(path, target),
            Step::MakeDirectory(path) => self.make_directory(path),
            Step::Terminal { size, owner, console } => self.open_terminal(*size, *owner, *console),
            Step::ReadOnlyPath(path) => self.make_readonly(path),
            Step::MaskPath(path) => self.mask(path),
            Step::FinishMounts => self.finish_mounts(),
            Step::Pivot(rootfs) => self.pivot(rootfs),
            Step::Hostname(name) => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Domainname(name) => Ok(rustix::system::setdomainname(name.as_bytes())?),
            Step::Sysctl(sysctl) => self.write_proc(&format!("sys/{}", sysctl.path), &sysctl.value),
            Step::Rlimit(limit) => Ok(sys::set_rlimit(limit.resource, limit.soft, limit.hard)?),
            Step::OomScore(score) => match self.write_proc("self/oom_score_adj", &score.to_string()) {
                // Where lowering it is not ours to do, the process runs with what it has, as elsewhere.
                Err(error) if error.is_refusal() => Ok(()),
                outcome => outcome,
            },
            Step::Stdio { owner } => self.set_up_stdio(*owner),
            Step::EnterDirectory(path) => self.enter_directory(path),
            Step::Identity(identity) => self.become_user(identity),
            Step::FindProgram { args, env, uid } => self.find_program(args, env, *uid),
            Step::Gate => self.wait_at_gate(),
            Step::HoldPids => self.hold_pids(),
            Step::Execute { filter, drop_to } => Err(self.execute(filter.as_ref(), drop_to.as_ref())),
        }
    }

    fn root_fd(&self) -> Result<BorrowedFd<'_>, StepError> {
        self.root.as_ref().map(OwnedFd::as_fd).ok_or_else(|| StepError::because("there is no root file system yet"))
    }

    fn write_proc(&self, path: &str, value: &str) -> Result<(), StepError> {
        let proc = self.proc.as_ref().ok_or_else(|| StepError::because("there is no procfs yet"))?;
        Ok(proc.write(path, value)?)
    }

    /// A process that ignores the ends of its children has none to reap: the kernel reaps them, and also the orphans that it is given
    /// (kernel/exit.c, reparent_leader).
    fn hold_pids(&mut self) -> Result<(), StepError> {
        sys::ignore_ends_of_children();
        rustix::thread::set_capabilities(None, NO_CAPABILITIES)?;
        rustix::thread::set_no_new_privs(true)?;
        Report::Ready.send(self.socket.as_fd(), None)?;
        sys::sleep_until_killed()
    }

    fn wait_at_gate(&mut self) -> Result<(), StepError> {
        let console = self.terminal.take().map(terminal::Pair::into_agents_end);
        Report::Ready.send(self.socket.as_fd(), console.as_ref().map(OwnedFd::as_fd))?;
        drop(console);
        match wire::receive(self.socket.as_fd())? {
            Some((bytes, _)) if bytes == wire::START => Ok(()),
            // The agent has let go of the gate: nobody will ever start this process.
            _ => sys::exit_now(0),
        }
    }
}
