//! The life of one process of a pod (a container's first, or an exec) as a pure state machine.
//!
//! ```text
//!            Made           StartAsked         Started
//!  Creating ------> Created ----------> Starting -------> Running
//!     | MakeFailed     |                   |  | StartFailed   |
//!     v                +------ Exited -----+--+--- Exited ----+
//!  (forgotten)                               v
//!     ^  Deleted               DeleteAsked
//!     +---------- Deleting <---------------- Ended <-- MachineGone, from any living state
//!                     | DeleteFailed           ^
//!                     +------------------------+
//! ```
//! An exec that was registered and never started is deleted from Created: nothing of it runs. A container's first process is alive at its gate,
//! so it must end first. An exit may overtake the answer to a start; it counts.

use crate::{ErrorKind, Exit};

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made.
    Creating,
    /// At its gate, or registered.
    Created,
    /// The gate is being opened.
    Starting,
    /// Running.
    Running,
    /// Ended; stored once.
    Ended(Exit),
    /// Being forgotten. `None` for an exec that never ran.
    Deleting(Option<Exit>),
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The agent has made it.
    Made,
    /// It could not be made.
    MakeFailed,
    /// Somebody wants it started.
    StartAsked,
    /// The agent has started it.
    Started,
    /// It could not be started; the exit is what waiters get.
    StartFailed(Exit),
    /// It has ended.
    Exited(Exit),
    /// Somebody wants it signalled, resized, paused ...; it must be alive.
    UseAsked,
    /// Somebody wants it forgotten.
    DeleteAsked,
    /// It is forgotten.
    Deleted,
    /// It could not be forgotten; may be tried again.
    DeleteFailed,
    /// The machine died under it; the exit is the one for that.
    MachineGone(Exit),
}

/// Why an event does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Still being made.
    BeingCreated,
    /// Started already.
    AlreadyStarted,
    /// Ended already.
    AlreadyEnded,
    /// Still alive.
    StillAlive,
    /// Being deleted.
    BeingDeleted,
}

impl Refusal {
    /// Words that complete "container x ...".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::BeingCreated => "is still being created",
            Self::AlreadyStarted => "is started already",
            Self::AlreadyEnded => "has ended: process already finished",
            Self::StillAlive => "is still running: kill it and wait for its end first",
            Self::BeingDeleted => "is being deleted",
        }
    }

    /// For fronts; a signal to what has ended is "not found", as with every runtime.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::AlreadyEnded => ErrorKind::NotFound,
            _ => ErrorKind::FailedPrecondition,
        }
    }
}

/// What comes of an event: a state, or `None` when the process is forgotten.
pub(crate) fn next(state: State, event: Event, is_exec: bool) -> Result<Option<State>, Refusal> {
    use Event::*;
    use State::*;
    Ok(Some(match (state, event) {
        (Creating, Made) => Created,
        (Creating, MakeFailed) | (Deleting(_), Deleted) => return Ok(None),
        (Created, StartAsked) => Starting,
        (Starting, Started) => Running,
        (Starting, StartFailed(exit)) => Ended(exit),
        (Created | Starting | Running, Exited(exit) | MachineGone(exit)) => Ended(exit),
        (Ended(exit), DeleteAsked) => Deleting(Some(exit)),
        (Created, DeleteAsked) if is_exec => Deleting(None),
        (Deleting(Some(exit)), DeleteFailed) => Ended(exit),
        (Deleting(None), DeleteFailed) => Created,
        (Created | Starting | Running, UseAsked) => state,
        // News that comes late or twice changes nothing.
        (_, Made | MakeFailed | Started | StartFailed(_) | Exited(_) | Deleted | DeleteFailed | MachineGone(_)) => {
            state
        }
        (Creating, StartAsked | UseAsked | DeleteAsked) => return Err(Refusal::BeingCreated),
        (Starting | Running, StartAsked) => return Err(Refusal::AlreadyStarted),
        (Created | Starting | Running, DeleteAsked) => return Err(Refusal::StillAlive),
        (Ended(_), StartAsked | UseAsked) => return Err(Refusal::AlreadyEnded),
        (Deleting(_), StartAsked | UseAsked | DeleteAsked) => return Err(Refusal::BeingDeleted),
    }))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at: SystemTime::UNIX_EPOCH, oom_killed: false }
    }

    fn life(events: &[Event]) -> Option<State> {
        events.iter().try_fold(State::Creating, |state, event| next(state, *event, false).expect("allowed"))
    }

    #[test]
    fn an_ordinary_life() {
        use Event::*;
        assert_eq!(life(&[Made, StartAsked, Started, Exited(exit(3))]), Some(State::Ended(exit(3))));
        assert_eq!(life(&[Made, StartAsked, Started, Exited(exit(3)), DeleteAsked, Deleted]), None);
    }

    #[test]
    fn an_exit_may_overtake_the_answer_to_start() {
        use Event::*;
        assert_eq!(life(&[Made, StartAsked, Exited(exit(0)), Started]), Some(State::Ended(exit(0))));
    }

    #[test]
    fn a_failed_delete_may_be_tried_again() {
        use Event::*;
        let again = life(&[Made, Exited(exit(9)), DeleteAsked, DeleteFailed]).expect("kept");
        assert_eq!(next(again, DeleteAsked, false), Ok(Some(State::Deleting(Some(exit(9))))));
    }

    #[test]
    fn an_exec_that_never_ran_is_deleted_at_once_but_a_container_at_its_gate_is_not() {
        assert_eq!(next(State::Created, Event::DeleteAsked, true), Ok(Some(State::Deleting(None))));
        assert_eq!(next(State::Created, Event::DeleteAsked, false), Err(Refusal::StillAlive));
    }

    #[test]
    fn the_dead_are_not_found_by_signals() {
        let refusal = next(State::Ended(exit(0)), Event::UseAsked, false).expect_err("dead");
        assert_eq!(refusal.kind(), ErrorKind::NotFound);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        (0u8..11, 0u32..256).prop_map(|(kind, status)| match kind {
            0 => Event::Made,
            1 => Event::MakeFailed,
            2 => Event::StartAsked,
            3 => Event::Started,
            4 => Event::StartFailed(exit(status)),
            5 => Event::Exited(exit(status)),
            6 => Event::UseAsked,
            7 => Event::DeleteAsked,
            8 => Event::Deleted,
            9 => Event::DeleteFailed,
            _ => Event::MachineGone(exit(137)),
        })
    }

    proptest! {
        #[test]
        fn the_first_exit_counts_for_ever(events in proptest::collection::vec(any_event(), 0..40), is_exec: bool) {
            let mut state = State::Creating;
            let mut first: Option<Exit> = None;
            for event in events {
                match next(state, event, is_exec) {
                    Ok(Some(after)) => state = after,
                    Ok(None) => return Ok(()),
                    Err(_) => continue,
                }
                let known = match state { State::Ended(exit) => Some(exit), State::Deleting(exit) => exit, _ => None };
                prop_assert!(first.is_none() || known == first, "{first:?} became {known:?}");
                first = first.or(known);
            }
        }

        #[test]
        fn nothing_outlives_the_machine(events in proptest::collection::vec(any_event(), 0..40), is_exec: bool) {
            let mut state = State::Creating;
            for event in events {
                match next(state, event, is_exec) {
                    Ok(Some(after)) => state = after,
                    Ok(None) => return Ok(()),
                    Err(_) => {}
                }
            }
            let after = next(state, Event::MachineGone(exit(137)), is_exec).expect("news is never refused");
            prop_assert!(!matches!(after, Some(State::Created | State::Starting | State::Running)));
        }
    }
}
