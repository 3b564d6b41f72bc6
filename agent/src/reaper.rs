//! The one place that reaps.
//!
//! PID 1 inherits every orphan of the machine, so it must wait for children it never made, and nobody else may wait: a second
//! waiter could take a status that belongs to a container. A status whose owner has not come yet (a short process can be over before
//! its pid is known) is kept for who had announced by then that a pid is coming ([`Reaper::expect`]); other statuses are orphans'.
//! An announcement that came later is about another process, even if the kernel has given it the same number.
//!
//! When the service runs inside another process (tests), that process has children of its own: then only claimed pids are waited for.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, wait, waitpid},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Whose children are ours to reap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// We are PID 1: everybody's.
    Everybody,
    /// We are a guest in another process: claimed pids only.
    Claimed,
}

/// Status for a child that somebody else reaped: nothing is known of its end.
const UNKNOWN_STATUS: u32 = 255;

#[derive(Default)]
struct Table {
    owners: HashMap<u32, oneshot::Sender<u32>>,
    /// Ended before they were claimed, by pid; empty while nobody expects a pid.
    early: HashMap<u32, Early>,
    /// Serials of the expectations that live.
    expected: BTreeSet<u64>,
    next_serial: u64,
}

/// A status without an owner so far.
struct Early {
    status: u32,
    /// Expectations below this serial were there when it came; later ones are about later processes.
    before: u64,
}

/// Routes the statuses of children to their owners; clones share it.
#[derive(Clone)]
pub struct Reaper {
    family: Family,
    table: Arc<Mutex<Table>>,
}

/// A promise that a pid will be claimed soon; statuses are kept while it lives.
pub struct Expectation {
    reaper: Reaper,
    serial: u64,
}

impl Reaper {
    /// A reaper that reaps nothing until [`Reaper::run`].
    pub fn new(family: Family) -> Self {
        Self { family, table: Arc::default() }
    }

    /// Reaps for ever.
    pub async fn run(self, mut children: Signal) {
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return;
            }
        }
    }

    /// The signal that [`Reaper::run`] listens to; make it before the first child.
    pub fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// To be called before a child is made whose pid will be claimed.
    pub fn expect(&self) -> Expectation {
        let mut table = self.table();
        let serial = table.next_serial;
        table.next_serial += 1;
        table.expected.insert(serial);
        Expectation { reaper: self.clone(), serial }
    }

    fn reap(&self) {
        match self.family {
            Family::Everybody => self.reap_everybody(),
            Family::Claimed => self.reap_claimed(),
        }
    }

    fn reap_everybody(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(raw(pid), exit_status(status)),
                Err(Errno::INTR) => {}
                // No child at all, or none that has ended.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn reap_claimed(&self) {
        let claimed: Vec<u32> = self.table().owners.keys().copied().collect();
        for pid in claimed {
            self.reap_one(pid);
        }
    }

    fn reap_one(&self, pid: u32) {
        let Some(child) = pid.try_into().ok().and_then(Pid::from_raw) else { return };
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => self.ended(pid, exit_status(status)),
            Err(Errno::CHILD) => self.ended(pid, UNKNOWN_STATUS),
            Ok(None) | Err(_) => {}
        }
    }

    fn ended(&self, pid: u32, status: u32) {
        let mut table = self.table();
        match table.owners.remove(&pid) {
            // An owner that gave up waiting is no loss.
            Some(owner) => drop(owner.send(status)),
            None if !table.expected.is_empty() => {
                let before = table.next_serial;
                table.early.insert(pid, Early { status, before });
            }
            None => log::trace!("reaped orphan {pid}: {status}"),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds this lock")
    }
}

impl Expectation {
    /// The pid is known now; its status arrives here, at once if it is over already.
    pub fn claim(self, pid: u32) -> oneshot::Receiver<u32> {
        let (sender, receiver) = oneshot::channel();
        let early = {
            let mut table = self.reaper.table();
            match table.early.get(&pid).filter(|early| self.serial < early.before).map(|early| early.status) {
                Some(status) => {
                    table.early.remove(&pid);
                    Some((sender, status))
                }
                None => {
                    table.owners.insert(pid, sender);
                    None
                }
            }
        };
        match early {
            Some((sender, status)) => drop(sender.send(status)),
            // Its SIGCHLD may have been handled before the claim.
            None if self.reaper.family == Family::Claimed => self.reaper.reap_one(pid),
            None => {}
        }
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.expected.remove(&self.serial);
        // What no living expectation can claim any more is an orphan's.
        let oldest = table.expected.first().copied();
        table.early.retain(|_, early| oldest.is_some_and(|oldest| oldest < early.before));
    }
}

fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// What a shell would say: the exit code, or 128 + signal.
fn exit_status(status: WaitStatus) -> u32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code.unsigned_abs() & 0xff,
        (None, Some(signal)) => 128 + signal.unsigned_abs(),
        (None, None) => UNKNOWN_STATUS,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(script: &str) -> u32 {
        #[allow(clippy::zombie_processes, reason = "the reaper under test reaps it")]
        Command::new("/bin/sh").args(["-c", script]).spawn().unwrap().id()
    }

    #[tokio::test]
    async fn a_claimed_child_tells_its_status() {
        let reaper = Reaper::new(Family::Claimed);
        tokio::spawn(reaper.clone().run(Reaper::listen().unwrap()));
        let expectation = reaper.expect();
        assert_eq!(expectation.claim(shell("exit 42")).await, Ok(42));
    }

    #[tokio::test]
    async fn a_killed_child_tells_its_signal() {
        let reaper = Reaper::new(Family::Claimed);
        tokio::spawn(reaper.clone().run(Reaper::listen().unwrap()));
        let expectation = reaper.expect();
        assert_eq!(expectation.claim(shell("kill -9 $$")).await, Ok(137));
    }

    #[tokio::test]
    async fn a_status_that_came_before_its_owner_is_kept_while_a_pid_is_expected() {
        let reaper = Reaper::new(Family::Everybody);
        let expectation = reaper.expect();
        reaper.ended(77, 5);
        assert_eq!(expectation.claim(77).await, Ok(5));
    }

    #[tokio::test]
    async fn statuses_of_orphans_are_forgotten() {
        let reaper = Reaper::new(Family::Everybody);
        reaper.ended(76, 1);
        let expectation = reaper.expect();
        reaper.ended(77, 5);
        assert_eq!(reaper.table().early.len(), 1, "76 ended while nobody expected a pid");
        drop(expectation);
        assert!(reaper.table().early.is_empty());
    }

    #[tokio::test]
    async fn a_pid_that_is_used_again_does_not_get_the_status_of_its_predecessor() {
        let reaper = Reaper::new(Family::Everybody);
        let long = reaper.expect();
        reaper.ended(77, 5);
        let mut successor = reaper.expect().claim(77);
        assert!(successor.try_recv().is_err(), "the new 77 lives");
        reaper.ended(77, 6);
        assert_eq!(successor.await, Ok(6));
        drop(long);
    }

    #[tokio::test]
    async fn statuses_are_forgotten_with_the_last_that_could_claim_them_however_many_follow() {
        let reaper = Reaper::new(Family::Everybody);
        let mut living = reaper.expect();
        for pid in 1..1000 {
            reaper.ended(pid, 0);
            // Somebody expects a pid at any time.
            let next = reaper.expect();
            drop(std::mem::replace(&mut living, next));
        }
        assert_eq!(reaper.table().early.len(), 0);
        drop(living);
    }

    #[tokio::test]
    async fn each_owner_gets_its_own_status() {
        let reaper = Reaper::new(Family::Everybody);
        let (first, second) = (reaper.expect().claim(10), reaper.expect().claim(11));
        reaper.ended(11, 2);
        reaper.ended(10, 1);
        assert_eq!((first.await, second.await), (Ok(1), Ok(2)));
    }
}
