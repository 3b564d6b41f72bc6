//! Commands with a deadline, so that a hang is a failure with a name.

use std::{
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Longest that any one command of a test takes, the emulated machine included.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What a command did.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Exit code; 128 + signal when killed.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output, after checking for success.
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs to the end, within [`DEADLINE`].
pub fn run(command: &mut Command) -> Finished {
    run_for(command, DEADLINE)
}

/// Runs to the end, within the given time; standard input is empty unless set.
pub fn run_for(command: &mut Command, deadline: Duration) -> Finished {
    let text = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{text} does not start: {error}"));
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    let status = wait_for(&mut child, deadline).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{text} did not end within {deadline:?}");
    });
    let text_of = |gathered: mpsc::Receiver<Vec<u8>>| {
        String::from_utf8_lossy(&gathered.recv_timeout(deadline).unwrap_or_default()).into_owned()
    };
    Finished { status, stdout: text_of(stdout), stderr: text_of(stderr) }
}

fn gather(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for the child's end by its pidfd; `None` when the time is over.
pub fn wait_for(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
    let timeout =
        Timespec { tv_sec: i64::try_from(deadline.as_secs()).ok()?, tv_nsec: i64::from(deadline.subsec_nanos()) };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
        Ok(0) => None,
        _ => child.wait().ok(),
    }
}

/// Sends a signal to a process by number.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The process may have ended by itself just before.
        let _ = kill_process(pid, signal);
    }
}
