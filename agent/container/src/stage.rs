//! The agent's side: a process prepared ahead of time, told once what to become, and let go at Start.
//!
//! ```text
//!   Stage::prepare() --create / exec--> Created --start--> Running
//!        (waiting)                     (at its gate)     (its program)
//! ```
//! Dropping a `Stage` or a `Gate` ends the process behind it. Every call blocks until the child has answered, at most
//! [`ANSWER_DEADLINE`] for each answer.
//!
//! A stage costs one execve of the agent's own small binary, which is why it can be prepared before it is needed; a container
//! then costs one clone3, and the execve of its program.

use crate::cgroup::Cgroup;
use crate::plan::{ContainerPlan, ExecPlan, Namespace};
use crate::steps::{self, Failure, Step};
use crate::terminal::TerminalSize;
use crate::wire::{self, Birth, Order, Report, Role};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a child may take for one answer. Mounts over a share that does not answer are what takes long.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The same for an exec, which mounts nothing. A container's own root can stop an exec as it is born.
const EXEC_DEADLINE: Duration = Duration::from_secs(20);

/// The name under which the agent's binary knows that it is a stage.
pub(crate) const STAGE_NAME: &str = "kata-rs-stage";

/// Stdio of a process.
#[derive(Debug)]
pub enum StdioFds {
    /// Three open files. For a stream that nobody wants, pass /dev/null.
    Pipes {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A terminal made in the container, whose other end comes back in [`Created::console`].
    Terminal {
        /// Its size at birth, over what the specification says.
        size: Option<TerminalSize>,
    },
}

/// A container as far as a further process needs it.
#[derive(Debug)]
pub struct ContainerHandle<'a> {
    /// Pid of its first process.
    pub init_pid: u32,
    /// Descriptor of that process.
    pub pidfd: BorrowedFd<'a>,
    /// Its cgroup.
    pub cgroup: &'a Cgroup,
}

/// Why a process did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The conversation with the stage broke.
    #[error(
        "could not talk to the stage that makes the process; if it persists, look for its own message on the console"
    )]
    Talk(#[source] io::Error),
    /// The stage said nothing in time.
    #[error("the stage did not answer within {} s; a mount it makes may be stuck", ANSWER_DEADLINE.as_secs())]
    Silent,
    /// The child ended without a report.
    #[error("the process ended before it was ready and without saying why; it may have been killed or out of memory")]
    Died,
    /// A step failed.
    #[error("{0}")]
    Failed(Failure),
    /// The plan and the stdio given for it do not go together.
    #[error("the process {}; make both agree", if *wants_terminal { "wants a terminal and was given pipes" } else { "was given a terminal and wants pipes" })]
    Stdio {
        /// What the plan says.
        wants_terminal: bool,
    },
}

impl StageError {
    /// The step that failed, if one did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

fn talk(error: io::Error) -> StageError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => StageError::Silent,
        _ => StageError::Talk(error),
    }
}

/// A process that waits to be told what to become.
#[derive(Debug)]
pub struct Stage {
    socket: OwnedFd,
    pid: u32,
    pidfd: OwnedFd,
}

impl Stage {
    /// Executes this program again as a stage. Its `main` must begin with [`crate::stage_main_if_asked`].
    ///
    /// # Errors
    /// When no process can be made.
    pub fn prepare() -> io::Result<Self> {
        Self::prepare_from(Path::new("/proc/self/exe"))
    }

    /// As [`Stage::prepare`], executing another program that begins in the same way.
    ///
    /// # Errors
    /// As [`Stage::prepare`].
    pub fn prepare_from(program: &Path) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE))?;
        // As stdin, which the standard library can hand over without a fork of this process's memory.
        let child = Command::new(program)
            .arg0(STAGE_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        // It waits for its order, so this is still its pid.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { socket, pid: child.id(), pidfd })
    }

    /// Pid of the stage itself, for a reaper of all children to know. A stage that has been used is reaped here; one that is
    /// dropped unused ends, and is the caller's to reap.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A copy of its end of the conversation: whoever shuts it down ends the wait of [`Stage::create`] or [`Stage::exec`] in another thread,
    /// and the process that is being made.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn conversation(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Makes a container and its first process, in `cgroup`, stopped at its gate.
    ///
    /// # Errors
    /// The step that failed; the half-made process has been killed, and its mounts went with it.
    pub fn create(self, plan: &ContainerPlan, cgroup: &Cgroup, stdio: StdioFds) -> Result<Created, StageError> {
        // The cgroup namespace shows what its maker is in, so the newborn makes it for itself, as a step.
        let new = plan.namespaces.new.iter().copied().filter(|kind| *kind != Namespace::Cgroup).collect();
        let birth = Birth { join: plan.namespaces.join.clone(), join_target: false, new };
        let order = Order { birth, steps: sized(steps::of_container(plan), &stdio) };
        self.make(&order, plan.process.terminal, &[(Role::Cgroup, cgroup.directory())], stdio)
    }

    /// Makes a further process in the namespaces and the cgroup of a container, stopped at its gate.
    ///
    /// # Errors
    /// As [`Stage::create`].
    pub fn exec(self, target: &ContainerHandle<'_>, plan: &ExecPlan, stdio: StdioFds) -> Result<Created, StageError> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(EXEC_DEADLINE)).map_err(|error| talk(error.into()))?;
        let birth = Birth { join_target: true, ..Birth::default() };
        let order = Order { birth, steps: sized(steps::of_exec(plan), &stdio) };
        let cgroup = target.cgroup.for_exec(target.init_pid).map_err(talk)?;
        let along = [(Role::Target, target.pidfd), (Role::Cgroup, cgroup.as_fd())];
        self.make(&order, plan.terminal, &along, stdio)
    }

    /// Becomes the first process of a new pid namespace, which is returned: it does nothing but let the orphans in there be reaped, and lasts
    /// until it is killed. It is a child of the process that prepared the stage.
    ///
    /// # Errors
    /// As [`Stage::create`].
    pub fn hold_pids(self) -> Result<OwnedFd, StageError> {
        let birth = Birth { new: vec![Namespace::Pid], ..Birth::default() };
        Order { birth, steps: vec![Step::HoldPids] }.send(self.socket.as_fd(), &[]).map_err(talk)?;
        let holder = Birthing { socket: self.socket, stage: self.pidfd, born: None, ready: None }.wait()?;
        // It has not been reaped, so this is its own.
        let namespace = std::fs::File::open(format!("/proc/{}/ns/pid", holder.pid)).map_err(talk)?;
        Ok(namespace.into())
    }

    fn make(
        self,
        order: &Order,
        wants_terminal: bool,
        along: &[(Role, BorrowedFd<'_>)],
        stdio: StdioFds,
    ) -> Result<Created, StageError> {
        if wants_terminal != matches!(stdio, StdioFds::Terminal { .. }) {
            return Err(StageError::Stdio { wants_terminal });
        }
        let mut along = along.to_vec();
        if let StdioFds::Pipes { stdin, stdout, stderr } = &stdio {
            along.extend([
                (Role::Stdin, stdin.as_fd()),
                (Role::Stdout, stdout.as_fd()),
                (Role::Stderr, stderr.as_fd()),
            ]);
        }
        order.send(self.socket.as_fd(), &along).map_err(talk)?;
        // Ours are closed now, so that the end of the child's is the end of the stream.
        drop(stdio);
        Birthing { socket: self.socket, stage: self.pidfd, born: None, ready: None }.wait()
    }
}

/// The size that comes with the request for stdio is newer than the one in the specification.
fn sized(mut steps: Vec<Step>, stdio: &StdioFds) -> Vec<Step> {
    if let StdioFds::Terminal { size: Some(newer) } = stdio {
        for step in &mut steps {
            if let Step::Terminal { size, .. } = step {
                *size = Some(*newer);
            }
        }
    }
    steps
}

/// Waits for both reports, which come from two processes in any order.
struct Birthing {
    socket: OwnedFd,
    stage: OwnedFd,
    born: Option<(u32, OwnedFd)>,
    /// The terminal, if any, once the newborn is at its gate.
    ready: Option<Option<OwnedFd>>,
}

impl Birthing {
    fn wait(mut self) -> Result<Created, StageError> {
        let outcome = self.collect();
        if outcome.is_err() {
            self.born.iter().for_each(|(_, newborn)| end(newborn));
            end(&self.stage);
        }
        reap(&self.stage);
        match (outcome?, self.born, self.ready) {
            ((), Some((pid, pidfd)), Some(console)) => {
                Ok(Created { pid, pidfd, console, gate: Gate { socket: self.socket } })
            }
            _ => Err(StageError::Died),
        }
    }

    /// A failure of the newborn may overtake the news of its birth, which is needed to reap it.
    fn collect(&mut self) -> Result<(), StageError> {
        let mut failed = None;
        while self.born.is_none() || (self.ready.is_none() && failed.is_none()) {
            let Some((bytes, mut fds)) = wire::receive(self.socket.as_fd()).map_err(talk)? else {
                return Err(failed.map_or(StageError::Died, StageError::Failed));
            };
            match (read_report(&bytes)?, fds.pop()) {
                (Report::Born { pid }, Some(pidfd)) => self.born = Some((pid, pidfd)),
                (Report::Born { .. }, None) => return Err(StageError::Died),
                (Report::Ready, console) => self.ready = Some(console),
                (Report::Failed(failure), _) => failed = Some(failure),
            }
        }
        failed.map_or(Ok(()), |failure| Err(StageError::Failed(failure)))
    }
}

/// Ends and reaps a process that failed, or is stuck. An unreaped one would keep the first process of its pid namespace from
/// ever ending.
fn end(process: &OwnedFd) {
    // It may have ended already, and then there is nothing left to do.
    let _ = pidfd_send_signal(process, Signal::KILL);
    reap(process);
}

/// Waits for the end of a child. If somebody who reaps every child was quicker, that is as well.
fn reap(process: &OwnedFd) {
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {}
}

fn read_report(bytes: &[u8]) -> Result<Report, StageError> {
    serde_json::from_slice(bytes).map_err(|error| StageError::Talk(error.into()))
}

/// A process that has everything but its program.
#[derive(Debug)]
pub struct Created {
    /// Its pid, a child of the process that prepared the stage.
    pub pid: u32,
    /// A descriptor for it.
    pub pidfd: OwnedFd,
    /// The agent's end of its terminal.
    pub console: Option<OwnedFd>,
    /// Where it waits.
    pub gate: Gate,
}

/// A process that has become its program.
#[derive(Debug)]
pub struct Running {
    /// Its pid.
    pub pid: u32,
    /// A descriptor for it.
    pub pidfd: OwnedFd,
    /// The agent's end of its terminal.
    pub console: Option<OwnedFd>,
}

impl Created {
    /// Opens the gate.
    ///
    /// # Errors
    /// As [`Gate::start`].
    pub fn start(self) -> Result<Running, StageError> {
        self.gate.start()?;
        Ok(Running { pid: self.pid, pidfd: self.pidfd, console: self.console })
    }
}

/// Where a created process waits. Dropped without being opened, the process ends.
#[derive(Debug)]
pub struct Gate {
    socket: OwnedFd,
}

impl Gate {
    /// Lets the process execute its program, and returns once it has.
    ///
    /// A process that is killed at this moment counts as started: its exit tells the rest.
    ///
    /// # Errors
    /// When execve fails; the process then ends with 127 or 126, and is to be reaped like any other.
    pub fn start(self) -> Result<(), StageError> {
        match wire::send(self.socket.as_fd(), wire::START, &[]) {
            // It was killed at the gate, and whoever waits for it will see that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(StageError::Died),
            outcome => outcome.map_err(talk)?,
        }
        let answer = match wire::receive(self.socket.as_fd()) {
            // Killed with our word unread (unix(7): the other end closed with data in its queue).
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(StageError::Died),
            answer => answer.map_err(talk)?,
        };
        match answer {
            None => Ok(()),
            Some((bytes, _)) => match read_report(&bytes)? {
                Report::Failed(failure) => Err(StageError::Failed(failure)),
                other => Err(StageError::Talk(io::Error::other(format!("unexpected answer {other:?}")))),
            },
        }
    }
}
