//! The passt program: user-space network of Debian's package of the same name. It needs no right but to open sockets, changes nothing of the host,
//! and ends with the stream that it inherits, so also with a command that was killed.

use std::{
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};

use super::{
    NetworkError,
    plan::Plan,
    wire::{self, Frames},
};

/// The program.
const PROGRAM: &str = "passt";
/// Its end of the stream.
const FD: i32 = 3;
/// How long it may take to answer: it starts in a few hundredths of a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is kept of its words.
const WORDS_LEN_MAX: u64 = 2048;

/// Where the program is, if it is anywhere.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|file| file.is_file())
}

/// A passt that answers. Dropping it ends it.
#[derive(Debug)]
pub struct Passt {
    child: Child,
}

impl Passt {
    /// Starts it, and waits until it answers or says why it does not. The stream is its network, of which something may have been read already.
    pub fn start(plan: &Plan) -> Result<(Self, UnixStream, Frames), NetworkError> {
        let program = find().ok_or(NetworkError::NotInstalled)?;
        let failed = |source| NetworkError::NotStarted { program: program.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&program);
        command.args(plan.arguments(FD)).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pod::inherit_nothing_else(&mut command);
        let mapping = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: FD };
        command.fd_mappings(vec![mapping]).expect("one descriptor, one number");
        let mut child = command.spawn().map_err(failed)?;
        // Its end must be nobody's but its own, or its death would not be seen.
        drop(command);
        let stderr = child.stderr.take().expect("asked for");
        let passt = Self { child };
        match passt.answers(&ours, plan) {
            Ok(frames) => {
                listen_on(stderr).map_err(failed)?;
                Ok((passt, ours, frames))
            }
            Err(error) => Err(passt.last_words(stderr, &error)),
        }
    }

    fn answers(&self, stream: &UnixStream, plan: &Plan) -> io::Result<Frames> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut frames = Frames::default();
        for question in plan.questions() {
            wire::send(stream, &question)?;
            while frames.next()?.is_none() {
                if !frames.read(stream)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        stream.set_read_timeout(None)?;
        Ok(frames)
    }

    fn last_words(mut self, stderr: ChildStderr, error: &io::Error) -> NetworkError {
        if error.kind() == io::ErrorKind::WouldBlock {
            return NetworkError::Silent;
        }
        let mut words = String::new();
        // What it could not say is told by its status.
        let _ = stderr.take(WORDS_LEN_MAX).read_to_string(&mut words);
        let status = self.child.wait().map_or_else(
            |error| error.to_string(),
            |status| match status.signal() {
                Some(signal) => format!("killed by signal {signal}"),
                None => format!("exit status {}", status.code().unwrap_or_default()),
            },
        );
        NetworkError::Refused { words: if words.trim().is_empty() { status } else { in_one_line(&words) } }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It has nothing to lose, and may have ended with its stream.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads on, so that it never waits for a reader. It tells of the guest's frames there, so nobody shows it.
fn listen_on(mut stderr: ChildStderr) -> io::Result<()> {
    let listening = move || drop(io::copy(&mut stderr, &mut io::sink()));
    thread::Builder::new().name("passt's words".to_owned()).spawn(listening).map(drop)
}

fn in_one_line(words: &str) -> String {
    words.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
