//! A child process of the pod, held by its pidfd: never signalled by number, so never the wrong one.

use std::{
    io,
    os::fd::OwnedFd,
    process::{Child, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::unix::AsyncFd;

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Spawned {
    what: &'static str,
    pid: i32,
    pidfd: OwnedFd,
    child: Mutex<Child>,
}

impl Spawned {
    /// Takes hold of a child that was just spawned; its pid cannot have been reused, as nobody has reaped it. One that cannot be held (no descriptor
    /// is left) is killed: dropping a [`Child`] would let it run.
    pub(crate) fn hold(what: &'static str, mut child: Child) -> io::Result<Self> {
        let opened = i32::try_from(child.id()).map_err(io::Error::other).and_then(|pid| Ok((pid, open_pidfd(pid)?)));
        match opened {
            Ok((pid, pidfd)) => Ok(Self { what, pid, pidfd, child: Mutex::new(child) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// What it is, for people.
    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    /// Its pid on the host.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// SIGKILL; fine when it is dead.
    pub(crate) fn kill(&self) {
        if let Err(errno) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            log::debug!("{} {}: {errno}", self.what, self.pid);
        }
    }

    /// Waits for its end. Each waiter has a descriptor of its own, as epoll(7) takes each only once.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        #[allow(
            deprecated,
            reason = "the safe call; its hole is for types that close their descriptor early, and an owned one cannot"
        )]
        let pidfd = AsyncFd::with_interest(self.pidfd.try_clone()?, tokio::io::Interest::READABLE)?;
        pidfd.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Waits for its end, at most so long.
    pub(crate) async fn ended_within(&self, deadline: Duration) -> bool {
        matches!(tokio::time::timeout(deadline, self.ended()).await, Ok(Ok(())))
    }

    /// How it ended, and no zombie left; `None` while it lives.
    pub(crate) fn reap(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Kills it and makes sure that it is gone.
    pub(crate) async fn end(&self, deadline: Duration) -> Result<(), String> {
        self.kill();
        let gone = self.ended_within(deadline).await;
        self.reap();
        if gone { Ok(()) } else { Err(format!("the {} (pid {}) does not die of SIGKILL", self.what, self.pid)) }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.reap().is_some() {
            return;
        }
        self.kill();
        if wait_for_end(&self.pidfd, Duration::from_secs(2)) {
            self.reap();
        }
    }
}

/// A pidfd of any process.
pub(crate) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Blocks until the process has ended (a zombie counts), at most so long.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, deadline: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(deadline.subsec_nanos()),
    };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(ready) if ready > 0)
}

/// Start time of a process in clock ticks since the host's boot (proc(5), field 22 of stat).
pub(crate) fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

/// The name of a program may hold spaces and parentheses, so fields are counted from the last one; field 3 follows it.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sleeper() -> Spawned {
        Spawned::hold("sleeper", Command::new("sleep").arg("1000").spawn().expect("spawned")).expect("held")
    }

    #[test]
    fn start_time_is_read_past_a_wicked_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_start_ticks(stat), Some(4242));
        assert_eq!(parse_start_ticks("garbage"), None);
        assert!(start_ticks(i32::try_from(std::process::id()).expect("small")).expect("read") > 0);
    }

    #[tokio::test]
    async fn a_killed_process_ends_and_leaves_no_zombie() {
        let sleeper = sleeper();
        assert!(!sleeper.ended_within(Duration::from_millis(1)).await);
        assert_eq!(sleeper.end(Duration::from_secs(5)).await, Ok(()));
        assert!(!std::path::Path::new(&format!("/proc/{}", sleeper.pid())).exists());
        assert_eq!(sleeper.end(Duration::from_secs(5)).await, Ok(()), "twice is fine");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let pid = sleeper().pid();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
