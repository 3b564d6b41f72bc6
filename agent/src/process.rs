//! The life of one process, as a pure function from state and event to state.
//!
//! ```text
//!  container's first process:  Creating --Created--> Created --StartAsked--> Starting --Started--> Running --Ended--> Stopped
//!  exec:                       Registered -----------------StartAsked------> Starting --Started--> Running --Ended--> Stopped
//! ```
//! `Ended` is possible wherever there is a pid: a created process can be killed at its gate, and a short one can be over before the
//! report of its start arrives. A failed start ends in `Stopped`, too, so that waiters are released and deletion is possible.
//! What is deliberately absent: a way out of `Stopped`.

use std::time::SystemTime;

/// Status of a process that never ran, when there is none of a better meaning (a shell says 127 for a missing program).
pub const NEVER_RAN_STATUS: u32 = 255;

/// Status of a process that SIGKILL ended: 128 + 9.
pub const KILLED_STATUS: u32 = 137;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0-255, or 128 + signal.
    pub status: u32,
    /// When we reaped it, by the guest's clock.
    pub at: SystemTime,
    /// The OOM killer ended a process of its container.
    pub oom_killed: bool,
}

/// Where in its life a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The container is being made.
    Creating,
    /// The first process waits at its gate.
    Created {
        /// Its pid in the guest.
        pid: u32,
    },
    /// An exec is known, nothing of it exists.
    Registered,
    /// Start was asked; the first process has a pid already, an exec not yet.
    Starting {
        /// Its pid in the guest, if it exists.
        pid: Option<u32>,
    },
    /// It runs.
    Running {
        /// Its pid in the guest.
        pid: u32,
    },
    /// It is over.
    Stopped {
        /// The pid it had; 0 if there never was one.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
}

/// What can happen to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The container was made.
    Created {
        /// Pid of its first process.
        pid: u32,
    },
    /// Somebody wants it to run.
    StartAsked,
    /// It runs.
    Started {
        /// Its pid in the guest.
        pid: u32,
    },
    /// It could not be made to run.
    StartFailed {
        /// The status that its waiters are told.
        status: u32,
        /// When.
        at: SystemTime,
    },
    /// It was reaped.
    Ended(Exit),
}

/// An event that does not fit the state: a request at the wrong time, or a fault of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is {}", .state.name())]
pub struct Refusal {
    /// The state that refused.
    pub state: State,
}

impl State {
    /// The next state; the same inputs give the same answer.
    pub fn next(self, event: Event) -> Result<Self, Refusal> {
        use Event as E;
        use State as S;
        Ok(match (self, event) {
            (S::Creating, E::Created { pid }) => S::Created { pid },
            (S::Created { pid }, E::StartAsked) => S::Starting { pid: Some(pid) },
            (S::Registered, E::StartAsked) => S::Starting { pid: None },
            (S::Starting { .. }, E::Started { pid }) => S::Running { pid },
            (S::Starting { pid: Some(pid) }, E::StartFailed { status, at }) => {
                S::Stopped { pid, exit: never_ran(status, at) }
            }
            (S::Starting { pid: None }, E::StartFailed { status, at }) => {
                S::Stopped { pid: 0, exit: never_ran(status, at) }
            }
            (S::Created { pid } | S::Starting { pid: Some(pid) } | S::Running { pid }, E::Ended(exit)) => {
                S::Stopped { pid, exit }
            }
            // Over before the report of its start arrived.
            (stopped @ S::Stopped { .. }, E::Started { .. } | E::StartFailed { .. } | E::Ended(_)) => stopped,
            (state, _) => return Err(Refusal { state }),
        })
    }

    /// The pid to send signals to, while there is one.
    pub fn living_pid(self) -> Option<u32> {
        match self {
            Self::Created { pid } | Self::Starting { pid: Some(pid) } | Self::Running { pid } => Some(pid),
            Self::Creating | Self::Registered | Self::Starting { pid: None } | Self::Stopped { .. } => None,
        }
    }

    /// How it ended, once it has.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// Word for error messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created but not started",
            Self::Registered => "registered but not started",
            Self::Starting { .. } => "being started",
            Self::Running { .. } => "running",
            Self::Stopped { .. } => "stopped",
        }
    }
}

fn never_ran(status: u32, at: SystemTime) -> Exit {
    Exit { status, at, oom_killed: false }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: SystemTime = SystemTime::UNIX_EPOCH;

    fn exit(status: u32) -> Exit {
        Exit { status, at: AT, oom_killed: false }
    }

    fn run(start: State, events: &[Event]) -> Result<State, Refusal> {
        events.iter().try_fold(start, |state, event| state.next(*event))
    }

    #[test]
    fn a_container_lives_from_creating_to_stopped() {
        let life = [Event::Created { pid: 7 }, Event::StartAsked, Event::Started { pid: 7 }, Event::Ended(exit(3))];
        assert_eq!(run(State::Creating, &life), Ok(State::Stopped { pid: 7, exit: exit(3) }));
    }

    #[test]
    fn an_exec_gets_its_pid_at_start() {
        let life = [Event::StartAsked, Event::Started { pid: 9 }];
        assert_eq!(run(State::Registered, &life), Ok(State::Running { pid: 9 }));
    }

    #[test]
    fn an_end_before_the_report_of_the_start_is_kept() {
        let life = [Event::Created { pid: 7 }, Event::StartAsked, Event::Ended(exit(3)), Event::Started { pid: 7 }];
        assert_eq!(run(State::Creating, &life), Ok(State::Stopped { pid: 7, exit: exit(3) }));
    }

    #[test]
    fn a_process_starts_once() {
        let life = [Event::Created { pid: 7 }, Event::StartAsked, Event::StartAsked];
        assert_eq!(run(State::Creating, &life), Err(Refusal { state: State::Starting { pid: Some(7) } }));
    }

    #[test]
    fn a_failed_exec_is_over_without_a_pid() {
        let life = [Event::StartAsked, Event::StartFailed { status: 127, at: AT }];
        assert_eq!(run(State::Registered, &life), Ok(State::Stopped { pid: 0, exit: exit(127) }));
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (1..5_u32).prop_map(|pid| Event::Created { pid }),
            Just(Event::StartAsked),
            (1..5_u32).prop_map(|pid| Event::Started { pid }),
            Just(Event::StartFailed { status: 127, at: AT }),
            (0..256_u32).prop_map(|status| Event::Ended(exit(status))),
        ];
        proptest::collection::vec(event, 0..12)
    }

    proptest! {
        #[test]
        fn nothing_leaves_stopped_and_its_exit_never_changes(events in events(), exec: bool) {
            let mut state = if exec { State::Registered } else { State::Creating };
            for event in events {
                let before = state;
                match state.next(event) {
                    Ok(next) => state = next,
                    Err(refusal) => prop_assert_eq!(refusal.state, before),
                }
                if before.exit().is_some() {
                    prop_assert_eq!(state, before);
                }
            }
        }

        #[test]
        fn a_signal_goes_only_to_a_process_that_was_made_and_not_reaped(events in events(), exec: bool) {
            let mut state = if exec { State::Registered } else { State::Creating };
            let mut made = false;
            let mut over = false;
            for event in events {
                if let Ok(next) = state.next(event) {
                    made |= matches!(event, Event::Created { .. } | Event::Started { .. });
                    over |= matches!(event, Event::Ended(_) | Event::StartFailed { .. });
                    state = next;
                }
                prop_assert_eq!(state.living_pid().is_some(), made && !over, "{:?}", state);
            }
        }
    }
}
