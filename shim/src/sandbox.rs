//! The life of a pod as containerd's sandbox service sees it. Pure: no clock, no task, no machine.
//!
//! ```text
//!                 create            start, up           stop, or the machine's end
//!   (not created) ──────> Created ────────────> Ready ───────────────────────────> Ended
//!                            └──────────────────────── stop, or a failed boot ───────^
//! ```
//! A sandbox ends once, and the first end counts: a machine that dies under a sandbox that is being stopped was stopped, and one that
//! was stopped after its machine had died has failed. To stop what has ended is no error; to start it is.

use std::time::SystemTime;

use pod::{ErrorKind, Exit};

use crate::refusal::Refusal;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made; its machine boots.
    Created,
    /// It runs; containers can be made in it.
    Ready,
    /// Over.
    Ended(Exit),
}

/// One sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sandbox {
    phase: Phase,
    created_at: SystemTime,
    stopping: bool,
}

impl Sandbox {
    /// One that was made at `now`.
    pub fn new(now: SystemTime) -> Self {
        Self { phase: Phase::Created, created_at: now, stopping: false }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When it was made.
    pub fn created_at(&self) -> SystemTime {
        self.created_at
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Ended(exit) => Some(exit),
            Phase::Created | Phase::Ready => None,
        }
    }

    /// The word of CRI for its state.
    pub fn state(&self) -> &'static str {
        match self.phase {
            Phase::Ready => "SANDBOX_READY",
            Phase::Created | Phase::Ended(_) => "SANDBOX_NOTREADY",
        }
    }

    /// Whether it may be started now.
    ///
    /// # Errors
    /// It was started or stopped before.
    pub fn check_start(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created if !self.stopping => Ok(()),
            Phase::Ready => Err(refuse("the sandbox has been started already")),
            Phase::Created | Phase::Ended(_) => {
                Err(refuse("cannot start a sandbox that has been stopped; make it again"))
            }
        }
    }

    /// Its machine is up and its start was asked.
    ///
    /// # Errors
    /// It was stopped meanwhile, or another start was first.
    pub fn started(&mut self) -> Result<(), Refusal> {
        self.check_start()?;
        self.phase = Phase::Ready;
        Ok(())
    }

    /// It is to be stopped. False when somebody else has said so before, or it is over.
    pub fn request_stop(&mut self) -> bool {
        self.exit().is_none() && !std::mem::replace(&mut self.stopping, true)
    }

    /// Its machine is gone, as it was told to or not. Only the first end counts.
    pub fn ended(&mut self, status_of_a_failure: u32, now: SystemTime) -> Exit {
        let status = if self.stopping { 0 } else { status_of_a_failure };
        let exit = self.exit().unwrap_or(Exit { status, at: now, oom_killed: false });
        self.phase = Phase::Ended(exit);
        exit
    }
}

fn refuse(sentence: &str) -> Refusal {
    Refusal::new(ErrorKind::FailedPrecondition, sentence)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn second(number: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(number)
    }

    #[test]
    fn a_sandbox_is_ready_between_its_start_and_its_end() {
        let mut sandbox = Sandbox::new(second(1));
        assert_eq!((sandbox.state(), sandbox.created_at()), ("SANDBOX_NOTREADY", second(1)));
        sandbox.started().expect("started");
        assert_eq!(sandbox.state(), "SANDBOX_READY");
        assert!(sandbox.request_stop());
        assert_eq!(sandbox.state(), "SANDBOX_READY", "its machine is still there");
        assert_eq!(sandbox.ended(137, second(2)), Exit { status: 0, at: second(2), oom_killed: false });
        assert_eq!(sandbox.state(), "SANDBOX_NOTREADY");
    }

    #[test]
    fn a_machine_that_dies_by_itself_is_a_failed_sandbox_whatever_comes_after() {
        let mut sandbox = Sandbox::new(second(1));
        sandbox.started().expect("started");
        assert_eq!(sandbox.ended(137, second(2)).status, 137);
        assert!(!sandbox.request_stop());
        assert_eq!(sandbox.ended(137, second(3)), Exit { status: 137, at: second(2), oom_killed: false });
    }

    #[test]
    fn a_start_comes_once_and_not_after_a_stop() {
        let mut sandbox = Sandbox::new(second(1));
        sandbox.started().expect("started");
        assert_eq!(sandbox.check_start().expect_err("twice").kind, ErrorKind::FailedPrecondition);
        let mut stopped = Sandbox::new(second(1));
        assert!(stopped.request_stop());
        assert_eq!(stopped.started().expect_err("stopped").kind, ErrorKind::FailedPrecondition);
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_one_exit_and_nothing_after_it(steps in prop::collection::vec(0_u8..3, 0..30)) {
            let mut sandbox = Sandbox::new(second(0));
            let mut first = None;
            for (now, step) in (1..).zip(steps) {
                match step {
                    0 => drop(sandbox.started()),
                    1 => drop(sandbox.request_stop()),
                    _ => {
                        let exit = sandbox.ended(137, second(now));
                        prop_assert_eq!(*first.get_or_insert(exit), exit);
                    }
                }
                prop_assert_eq!(sandbox.exit(), first);
                prop_assert!(first.is_none() || sandbox.check_start().is_err());
            }
        }
    }
}
