//! The life of one process (a container's first, or an exec) as containerd sees it. Pure: no clock, no task, no pod.
//!
//! ```text
//!             request_start        started
//!   Created ────────────────> Starting ────> Running <──> Paused
//!      │  ^                      │  │           │            │
//!      │  └─────── start_failed ─┘  └─ ended ───┴─── ended ──┤
//!      └───────────────────── ended ──────────────────────> Stopped
//! ```
//! An exec whose start is refused is stopped, too, but nobody is told: it never was. (The first process of a container was there, at its gate,
//! and has an end.) A process can end before the answer to its start has come back. Then its exit is kept, and told right after the start:
//! containerd hears `TaskStart` before `TaskExit`, and `TaskExit` exactly once. [`Announcement`]s come out in the order to publish.

use pod::{ErrorKind, Exit};

use crate::refusal::Refusal;

/// Kills for want of memory that are told of one container. A guest could tell of them without end, and each is an event for containerd.
const KILLS_TOLD_MAX: u32 = 1024;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made; waits for its start.
    Created,
    /// Start was asked and not yet answered.
    Starting,
    /// Runs.
    Running,
    /// Frozen with its container.
    Paused,
    /// Over.
    Stopped,
}

/// What containerd must hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// It runs now.
    Started,
    /// The kernel in the machine killed it for want of memory.
    OutOfMemory,
    /// It is over.
    Exited(Exit),
    /// It could not be started: who waits is let go, and containerd, which never heard of a start, hears of no end.
    NeverRan(Exit),
}

/// One process's life.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    exit: Option<Exit>,
    told: bool,
    kills_told: u32,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: Phase::Created, exit: None, told: false, kills_told: 0 }
    }
}

impl Lifecycle {
    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Start is asked.
    ///
    /// # Errors
    /// It was started before.
    pub fn request_start(&mut self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created => {
                self.phase = Phase::Starting;
                Ok(())
            }
            Phase::Stopped => Err(refuse("cannot start a process that has ended; delete it and make it again")),
            _ => Err(refuse("the process has been started already")),
        }
    }

    /// Start is answered: it runs (and may have ended since).
    pub fn started(&mut self) -> Vec<Announcement> {
        let mut news = Vec::new();
        if self.phase == Phase::Starting {
            self.phase = Phase::Running;
            news.push(Announcement::Started);
            news.extend(self.tell_exit());
        }
        news
    }

    /// Start is answered: it does not run.
    pub fn start_failed(&mut self) -> Vec<Announcement> {
        if self.phase == Phase::Starting {
            self.phase = Phase::Created;
        }
        self.tell_exit()
    }

    /// The kernel in the machine has killed one of the container's processes for want of memory; the first of them may go on. A kill under a start
    /// that is not answered yet is told with it, if it was the end.
    pub fn out_of_memory(&mut self) -> Vec<Announcement> {
        let runs = matches!(self.phase, Phase::Running | Phase::Paused);
        if !runs || self.kills_told >= KILLS_TOLD_MAX {
            return Vec::new();
        }
        self.kills_told += 1;
        vec![Announcement::OutOfMemory]
    }

    /// Start is answered: it does not run, and never will.
    pub fn start_refused(&mut self, exit: Exit) -> Vec<Announcement> {
        if self.phase != Phase::Starting || self.exit.is_some() {
            return self.start_failed();
        }
        (self.phase, self.exit, self.told) = (Phase::Stopped, Some(exit), true);
        vec![Announcement::NeverRan(exit)]
    }

    /// It has ended. Only the first end counts.
    pub fn ended(&mut self, exit: Exit) -> Vec<Announcement> {
        self.exit.get_or_insert(exit);
        if self.phase == Phase::Starting { Vec::new() } else { self.tell_exit() }
    }

    /// Whether it can be frozen now.
    ///
    /// # Errors
    /// It does not run, or is frozen already.
    pub fn check_pause(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Running => Ok(()),
            Phase::Paused => Err(refuse("cannot pause what is paused already; resume it first")),
            _ => Err(refuse("cannot pause what does not run")),
        }
    }

    /// Whether it can be thawed now.
    ///
    /// # Errors
    /// It is not frozen.
    pub fn check_resume(&self) -> Result<(), Refusal> {
        if self.phase == Phase::Paused { Ok(()) } else { Err(refuse("cannot resume what is not paused")) }
    }

    /// Nobody knows it any more, because its container is deleted. This is its end, if it had none, and after it nothing is told. One whose start
    /// is not answered yet has never run, for all that anybody has heard.
    pub fn forgotten(&mut self, exit: Exit) -> Vec<Announcement> {
        if self.phase != Phase::Starting {
            return self.ended(exit);
        }
        let exit = *self.exit.get_or_insert(exit);
        (self.phase, self.told) = (Phase::Stopped, true);
        vec![Announcement::NeverRan(exit)]
    }

    /// Its container is frozen; whether that is news: it may have ended meanwhile.
    pub fn paused(&mut self) -> bool {
        let runs = self.phase == Phase::Running;
        if runs {
            self.phase = Phase::Paused;
        }
        runs
    }

    /// Its container is thawed; whether that is news.
    pub fn resumed(&mut self) -> bool {
        let frozen = self.phase == Phase::Paused;
        if frozen {
            self.phase = Phase::Running;
        }
        frozen
    }

    /// Whether it may be deleted now.
    ///
    /// # Errors
    /// It runs.
    pub fn check_delete(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created | Phase::Stopped => Ok(()),
            _ => Err(refuse("cannot delete a process that runs; kill it first")),
        }
    }

    /// Whether it may get a signal now.
    ///
    /// # Errors
    /// It has ended: not found, which is what containerd and the kubelet expect.
    pub fn check_signal(&self) -> Result<(), Refusal> {
        match self.exit {
            None => Ok(()),
            Some(_) => Err(Refusal::new(ErrorKind::NotFound, "process already finished")),
        }
    }

    fn tell_exit(&mut self) -> Vec<Announcement> {
        let Some(exit) = self.exit else { return Vec::new() };
        self.phase = Phase::Stopped;
        if std::mem::replace(&mut self.told, true) {
            return Vec::new();
        }
        let untold_kill = exit.oom_killed && self.kills_told == 0;
        untold_kill.then_some(Announcement::OutOfMemory).into_iter().chain([Announcement::Exited(exit)]).collect()
    }
}

fn refuse(sentence: &str) -> Refusal {
    Refusal::new(ErrorKind::FailedPrecondition, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn exit(status: u32) -> Exit {
        Exit { status, at: UNIX_EPOCH, oom_killed: false }
    }

    #[test]
    fn a_process_that_ends_before_its_start_is_answered_is_told_in_order() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        assert_eq!(life.ended(exit(3)), []);
        assert_eq!(life.started(), [Announcement::Started, Announcement::Exited(exit(3))]);
        assert_eq!(life.phase(), Phase::Stopped);
    }

    #[test]
    fn a_failed_start_leaves_a_process_that_can_be_deleted() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        assert!(life.check_delete().is_err());
        assert_eq!(life.start_failed(), []);
        assert_eq!(life.check_delete(), Ok(()));
    }

    #[test]
    fn a_refused_start_is_an_end_for_who_waits_and_no_news() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        assert_eq!(life.start_refused(exit(127)), [Announcement::NeverRan(exit(127))]);
        assert_eq!((life.ended(exit(0)), life.exit()), (Vec::new(), Some(exit(127))));
        assert_eq!(life.check_delete(), Ok(()));
    }

    #[test]
    fn running_processes_are_not_deleted_and_ended_ones_get_no_signals() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        let _ = life.started();
        assert_eq!(life.check_delete().expect_err("refused").kind, ErrorKind::FailedPrecondition);
        assert_eq!(life.check_signal(), Ok(()));
        let _ = life.ended(exit(0));
        assert_eq!(life.check_signal().expect_err("refused").kind, ErrorKind::NotFound);
        assert_eq!(life.check_delete(), Ok(()));
    }

    #[test]
    fn an_oom_kill_is_told_before_the_exit() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        let _ = life.started();
        let killed = Exit { oom_killed: true, ..exit(137) };
        assert_eq!(life.ended(killed), [Announcement::OutOfMemory, Announcement::Exited(killed)]);
    }

    #[test]
    fn a_kill_of_a_child_is_told_at_once_and_not_again_at_the_end() {
        let mut life = Lifecycle::default();
        assert_eq!(life.out_of_memory(), [], "nothing is told before the start");
        life.request_start().expect("asked");
        assert_eq!(life.out_of_memory(), []);
        let _ = life.started();
        assert_eq!(life.out_of_memory(), [Announcement::OutOfMemory]);
        assert_eq!(life.out_of_memory(), [Announcement::OutOfMemory], "the next kill is another event");
        let end = Exit { oom_killed: true, ..exit(0) };
        assert_eq!(life.ended(end), [Announcement::Exited(end)]);
        assert_eq!(life.out_of_memory(), [], "nothing is told after the end");
    }

    #[test]
    fn a_guest_cannot_tell_of_kills_without_end() {
        let mut life = Lifecycle::default();
        life.request_start().expect("asked");
        let _ = life.started();
        let told: usize = (0..2 * KILLS_TOLD_MAX).map(|_| life.out_of_memory().len()).sum();
        assert_eq!(told, KILLS_TOLD_MAX as usize);
    }

    #[test]
    fn pausing_is_for_what_runs() {
        let mut life = Lifecycle::default();
        assert!(life.check_pause().is_err());
        life.paused();
        assert_eq!(life.phase(), Phase::Created);
        life.request_start().expect("asked");
        let _ = life.started();
        assert_eq!((life.check_pause(), life.check_resume().is_err()), (Ok(()), true));
        life.paused();
        assert_eq!(life.phase(), Phase::Paused);
        assert_eq!((life.check_pause().is_err(), life.check_resume()), (true, Ok(())));
        life.resumed();
        assert_eq!(life.phase(), Phase::Running);
    }

    proptest! {
        #[test]
        fn whatever_happens_exit_is_told_at_most_once_and_never_before_start(steps in prop::collection::vec(0_u8..7, 0..40)) {
            let mut life = Lifecycle::default();
            let mut news = Vec::new();
            for step in steps {
                match step {
                    0 => drop(life.request_start()),
                    1 => news.extend(life.started()),
                    2 => news.extend(life.start_failed()),
                    3 => news.extend(life.ended(exit(u32::try_from(news.len()).expect("small")))),
                    4 => assert!(!life.paused() || life.phase() == Phase::Paused),
                    5 => news.extend(life.start_refused(exit(127))),
                    _ => assert!(!life.resumed() || life.phase() == Phase::Running),
                }
            }
            let exits = news.iter().filter(|item| matches!(item, Announcement::Exited(_) | Announcement::NeverRan(_))).count();
            prop_assert!(exits <= 1);
            let exit_place = news.iter().position(|item| matches!(item, Announcement::Exited(_)));
            let start_place = news.iter().position(|item| *item == Announcement::Started);
            if let (Some(exit_place), Some(start_place)) = (exit_place, start_place) {
                prop_assert!(start_place < exit_place);
            }
            prop_assert_eq!(exits == 1, life.phase() == Phase::Stopped);
        }

        #[test]
        fn after_a_delete_nothing_is_told_and_who_waits_was_told_once(
            before in prop::collection::vec(0_u8..7, 0..20),
            after in prop::collection::vec(0_u8..7, 1..20),
        ) {
            let mut life = Lifecycle::default();
            let step = |life: &mut Lifecycle, kind: u8| match kind {
                0 => life.request_start().map(|()| Vec::new()).unwrap_or_default(),
                1 => life.started(),
                2 => life.start_failed(),
                3 => life.ended(exit(u32::from(kind))),
                4 => life.start_refused(exit(127)),
                5 => life.out_of_memory(),
                _ => life.paused().then_some(Announcement::Started).into_iter().collect(),
            };
            let over = |news: &Announcement| matches!(news, Announcement::Exited(_) | Announcement::NeverRan(_));
            let mut news: Vec<_> = before.into_iter().flat_map(|kind| step(&mut life, kind)).collect();
            news.extend(life.forgotten(exit(137)));
            prop_assert_eq!(news.iter().filter(|item| over(item)).count(), 1);
            prop_assert!(life.exit().is_some());
            let late: Vec<_> = after.into_iter().flat_map(|kind| step(&mut life, kind)).collect();
            prop_assert_eq!(late, []);
        }
    }
}
