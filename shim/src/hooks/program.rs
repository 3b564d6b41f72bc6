//! One hook, run to its end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use oci_spec::runtime::Hook;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Most of a hook's words that an error has: the last ones.
const WORDS_LEN_MAX: u64 = 2048;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It does not start, or cannot be waited for.
    #[error("{0}; is it there, and executable?")]
    Run(#[from] io::Error),
    /// It ended badly.
    #[error("{status}; it said: {words}")]
    Status { status: ExitStatus, words: String },
    /// It took too long, by its own measure.
    #[error("it did not end within its timeout of {0:?} and was killed")]
    Timeout(Duration),
}

/// Runs it in `folder`, with `state` on its standard input and no environment but its own.
pub(super) fn run(hook: &Hook, folder: &Path, state: &[u8]) -> Result<(), Failure> {
    // A file, and not pipes: nobody has to read while it runs, and what it leaves running holds nobody up.
    let mut said = File::from(memfd_create("hook", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    let mut input = File::from(memfd_create("state", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
    input.write_all(state)?;
    input.seek(SeekFrom::Start(0))?;
    let mut command = command(hook);
    command.current_dir(folder).stdin(input).stdout(said.try_clone()?).stderr(said.try_clone()?);
    let status = end_of(command.spawn()?, timeout(hook))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Status { status, words: last_words(&mut said)? })
}

fn command(hook: &Hook) -> Command {
    let mut command = Command::new(hook.path());
    let mut words = hook.args().iter().flatten();
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let environment = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    command.args(words).env_clear().envs(environment).stdin(Stdio::null());
    command
}

fn timeout(hook: &Hook) -> Option<Duration> {
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// Waits for its end; without a timeout for as long as it takes.
fn end_of(mut child: Child, timeout: Option<Duration>) -> Result<ExitStatus, Failure> {
    if let Some(timeout) = timeout.filter(|timeout| !ends_within(&child, *timeout)) {
        child.kill()?;
        child.wait()?;
        return Err(Failure::Timeout(timeout));
    }
    Ok(child.wait()?)
}

fn ends_within(child: &Child, timeout: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return true };
    let timeout = Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)))
        .is_ok_and(|ended| ended > 0)
}

fn last_words(said: &mut File) -> io::Result<String> {
    let len = said.metadata()?.len();
    said.seek(SeekFrom::Start(len.saturating_sub(WORDS_LEN_MAX)))?;
    let mut words = Vec::new();
    said.take(WORDS_LEN_MAX).read_to_end(&mut words)?;
    Ok(String::from_utf8_lossy(&words).trim().to_owned())
}
