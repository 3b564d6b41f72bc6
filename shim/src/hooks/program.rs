//! One hook, run to its end.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use oci_spec::runtime::Hook;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::words::Words;
use crate::doom::Doom;

/// What ends a hook besides its own timeout.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits<'a> {
    /// Nobody wants its container any more.
    pub unwanted: Option<&'a Doom>,
    /// The end of the time of whoever runs it.
    pub deadline: Option<Instant>,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It does not start.
    #[error("{0}; is it there, and executable?")]
    Start(#[source] io::Error),
    /// It cannot be talked to or waited for.
    #[error("the host does not give what it takes to run it: {0}")]
    Host(#[from] io::Error),
    /// It ended badly.
    #[error("{status}; it said: {words}")]
    Status { status: ExitStatus, words: String },
    /// It took too long, by its own measure.
    #[error("it did not end within its timeout of {0:?} and was killed")]
    Timeout(Duration),
    /// It took too long for whoever ran it.
    #[error("it was killed, as nobody could wait for it any longer")]
    Over,
}

/// Runs it in `folder`, with `state` on its standard input and no environment but its own. One for which no time is left is not begun.
pub(super) fn run(hook: &Hook, folder: &Path, state: &[u8], limits: Limits<'_>) -> Result<(), Failure> {
    if limits.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        return Err(Failure::Over);
    }
    let mut input = File::from(memfd_create("state", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    input.write_all(state)?;
    input.seek(SeekFrom::Start(0))?;
    let (pipe, into) = io::pipe()?;
    let mut words = Words::of(pipe)?;
    let mut command = command(hook);
    command.current_dir(folder).stdin(input).stdout(into.try_clone()?).stderr(into);
    let child = command.spawn().map_err(Failure::Start)?;
    // With it go our ends for writing.
    drop(command);
    let status = end_of(child, &mut words, timeout(hook), limits)?;
    if status.success() { Ok(()) } else { Err(Failure::Status { status, words: words.text() }) }
}

fn command(hook: &Hook) -> Command {
    let mut command = Command::new(hook.path());
    let mut words = hook.args().iter().flatten();
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let environment = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    // A group of its own, so that a kill takes along what it has started.
    command.args(words).env_clear().envs(environment).stdin(Stdio::null()).process_group(0);
    command
}

fn timeout(hook: &Hook) -> Option<Duration> {
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// Waits for its end; without a timeout for as long as it is wanted.
fn end_of(
    mut child: Child,
    words: &mut Words,
    timeout: Option<Duration>,
    limits: Limits<'_>,
) -> Result<ExitStatus, Failure> {
    let ended = wait_for(&child, words, timeout, limits);
    if ended.is_err() {
        let group = Pid::from_child(&child);
        // It may have ended just now, and its group with it.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    ended.map(|()| status)
}

fn wait_for(child: &Child, words: &mut Words, timeout: Option<Duration>, limits: Limits<'_>) -> Result<(), Failure> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(io::Error::from)?;
    let unwanted = limits.unwanted.map(Doom::event).transpose()?;
    let own_end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let now = Instant::now();
        match (timeout, own_end, limits.deadline) {
            (Some(timeout), Some(end), _) if end <= now => return Err(Failure::Timeout(timeout)),
            (.., Some(end)) if end <= now => return Err(Failure::Over),
            _ => {}
        }
        let next = own_end.into_iter().chain(limits.deadline).min().map(|end| end - now);
        match next_happening(&pidfd, unwanted, words, next)? {
            Happening::Ended => {
                words.read();
                return Ok(());
            }
            Happening::Unwanted => return Err(Failure::Over),
            Happening::Says => words.read(),
            Happening::TimePasses => {}
        }
    }
}

/// What happens to a hook that runs.
enum Happening {
    Ended,
    Unwanted,
    Says,
    TimePasses,
}

fn next_happening<'a>(
    pidfd: &'a OwnedFd,
    unwanted: Option<BorrowedFd<'a>>,
    words: &'a Words,
    within: Option<Duration>,
) -> io::Result<Happening> {
    let within = within.and_then(|within| Timespec::try_from(within).ok());
    // Where there is nothing to wait for, the end of the hook stands in, of which the first place tells.
    let place = |fd: Option<BorrowedFd<'a>>| match fd {
        Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
        None => PollFd::new(pidfd, PollFlags::empty()),
    };
    let mut places = [PollFd::new(pidfd, PollFlags::IN), place(unwanted), place(words.pipe())];
    rustix::io::retry_on_intr(|| poll(&mut places, within.as_ref()))?;
    Ok(match places.map(|place| !place.revents().is_empty()) {
        [true, ..] => Happening::Ended,
        [_, true, _] => Happening::Unwanted,
        [.., true] => Happening::Says,
        _ => Happening::TimePasses,
    })
}
