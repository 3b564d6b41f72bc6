//! One hook, run to its end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use oci_spec::runtime::Hook;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::doom::Doom;

/// Most of a hook's words that an error has: the last ones.
const WORDS_LEN_MAX: u64 = 2048;
/// Most that a hook may say: its writes fail from there on. What it says is memory of the host until it has ended.
const SAID_LEN_MAX: u64 = 16 << 20;

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

/// Runs it in `folder`, with `state` on its standard input and no environment but its own.
pub(super) fn run(hook: &Hook, folder: &Path, state: &[u8], limits: Limits<'_>) -> Result<(), Failure> {
    // A file, and not pipes: nobody has to read while it runs, and what it leaves running holds nobody up.
    let mut said = bounded_file()?;
    let mut input = File::from(memfd_create("state", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    input.write_all(state)?;
    input.seek(SeekFrom::Start(0))?;
    let mut command = command(hook);
    command.current_dir(folder).stdin(input).stdout(said.try_clone()?).stderr(said.try_clone()?);
    let status = end_of(command.spawn().map_err(Failure::Start)?, timeout(hook), limits)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Status { status, words: last_words(&mut said)? })
}

/// A file of [`SAID_LEN_MAX`] that does not grow; what is not written costs nothing.
fn bounded_file() -> io::Result<File> {
    let file = memfd_create("hook", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, SAID_LEN_MAX)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
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
fn end_of(mut child: Child, timeout: Option<Duration>, limits: Limits<'_>) -> Result<ExitStatus, Failure> {
    let ended = wait_for(&child, timeout, limits);
    if ended.is_err() {
        let group = Pid::from_child(&child);
        // It may have ended just now, and its group with it.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    ended.map(|()| status)
}

fn wait_for(child: &Child, timeout: Option<Duration>, limits: Limits<'_>) -> Result<(), Failure> {
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
        let mut waits = vec![PollFd::new(&pidfd, PollFlags::IN)];
        waits.extend(unwanted.iter().map(|unwanted| PollFd::new(unwanted, PollFlags::IN)));
        let longest = next.and_then(|next| Timespec::try_from(next).ok());
        rustix::io::retry_on_intr(|| poll(&mut waits, longest.as_ref())).map_err(io::Error::from)?;
        if !waits[0].revents().is_empty() {
            return Ok(());
        }
        if waits.get(1).is_some_and(|unwanted| !unwanted.revents().is_empty()) {
            return Err(Failure::Over);
        }
    }
}

/// The end of what it said; the position of a file that has one writer after the other is how much there is.
fn last_words(said: &mut File) -> io::Result<String> {
    let len = said.stream_position()?;
    said.seek(SeekFrom::Start(len.saturating_sub(WORDS_LEN_MAX)))?;
    let mut words = Vec::new();
    said.take(len.min(WORDS_LEN_MAX)).read_to_end(&mut words)?;
    Ok(String::from_utf8_lossy(&words).trim().to_owned())
}
