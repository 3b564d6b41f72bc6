//! A logging program: containerd's `binary://` protocol, from the side of the shim.
//!
//! The program gets the read ends of two pipes as descriptors 3 (output) and 4 (errors), and the write end of a third as 5; it reads
//! nothing before it is ready, which it says by closing the third. It knows whose output it reads from `CONTAINER_ID` and
//! `CONTAINER_NAMESPACE`, which are all of its environment. The end of both pipes is its word to write down what it has and to end.
//!
//! ```text
//!   start ──> waits for ready ──> Logger (runs) ──> end: both pipes closed ──> it ends, or SIGTERM, or SIGKILL
//!                  └── deadline, or it cannot be started: refused, and killed
//! ```
//! It is a child of the shim, hence in the pod's cgroup, and a program that is killed breaks its container's output alone.

use std::{
    io,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use pod::ErrorKind;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{io::AsyncReadExt, net::unix::pipe, process::Child, time::timeout};

use super::target::Program;
use crate::refusal::Refusal;

/// Descriptors of the program: output, errors, and what it closes when it is ready.
const OUTPUT_FD: i32 = 3;
const ERRORS_FD: i32 = 4;
const READY_FD: i32 = 5;
/// How long a program may take to be ready; loggers that open a network connection first take seconds.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to write down what it has, once its pipes have ended; containerd's own shim gives as much.
const END_PATIENCE: Duration = Duration::from_secs(12);
/// How long it may take to end after SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(2);

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id, or the exec's, as containerd's own shim has it.
    pub id: &'a str,
}

/// A program that reads. Dropping it kills it.
pub struct Logger {
    child: Child,
    name: String,
}

/// The ends to write to.
pub struct LoggerPipes {
    /// Standard output.
    pub output: OwnedFd,
    /// Standard error.
    pub errors: OwnedFd,
}

impl Logger {
    /// Starts `program` and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, ends without the word that it owes, or is not ready in time.
    pub async fn start(program: &Program, owner: Owner<'_>) -> Result<(Self, LoggerPipes), Refusal> {
        let name = program.path.display().to_string();
        let started = spawn(program, owner).map_err(|error| {
            Refusal::new(
                ErrorKind::InvalidArgument,
                format!("cannot start the logging program {name}: {error}; is it there, and executable?"),
            )
        });
        let (child, pipes, ready) = started?;
        let logger = Self { child, name };
        logger.wait_until_ready(ready, program.must_say).await?;
        Ok((logger, pipes))
    }

    async fn wait_until_ready(&self, ready: pipe::Receiver, must_say: bool) -> Result<(), Refusal> {
        let mut ready = ready;
        let refuse = |kind, what: &str| Err(Refusal::new(kind, format!("the logging program {} {what}", self.name)));
        match timeout(READY_DEADLINE, ready.read(&mut [0; 1])).await {
            Ok(Ok(0)) if must_say => {
                refuse(ErrorKind::FailedPrecondition, "ended without saying that it is ready: its own log may tell why")
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => refuse(ErrorKind::Internal, &format!("cannot be heard: {error}")),
            Err(_) => refuse(
                ErrorKind::DeadlineExceeded,
                &format!("was not ready within {READY_DEADLINE:?}: it says so by closing descriptor {READY_FD}"),
            ),
        }
    }

    /// Waits until it has written down what it got; both of its pipes must have been closed.
    pub async fn end(self) {
        self.end_within(END_PATIENCE, TERM_PATIENCE).await;
    }

    async fn end_within(mut self, patience: Duration, after_term: Duration) {
        if timeout(patience, self.child.wait()).await.is_ok() {
            return;
        }
        log::warn!("the logging program {} does not end after its input has: it gets SIGTERM, then SIGKILL", self.name);
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(after_term, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn spawn(program: &Program, owner: Owner<'_>) -> io::Result<(Child, LoggerPipes, pipe::Receiver)> {
    let (output, our_output) = io::pipe()?;
    let (errors, our_errors) = io::pipe()?;
    let (ready, its_ready) = io::pipe()?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.words)
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
    let mappings =
        vec![mapping(output.into(), OUTPUT_FD), mapping(errors.into(), ERRORS_FD), mapping(its_ready.into(), READY_FD)];
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let mut command = tokio::process::Command::from(command);
    // Our copies of its ends go with the command, or the end of `ready` would never be seen.
    let child = command.kill_on_drop(true).spawn()?;
    drop(command);
    let pipes = LoggerPipes { output: without_blocking(our_output)?, errors: without_blocking(our_errors)? };
    Ok((child, pipes, pipe::Receiver::from_owned_fd(ready.into())?))
}

fn without_blocking(end: io::PipeWriter) -> io::Result<OwnedFd> {
    let end = OwnedFd::from(end);
    rustix::io::ioctl_fionbio(&end, true)?;
    Ok(end)
}

#[cfg(test)]
mod tests;
