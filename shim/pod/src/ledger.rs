//! All processes of a pod and where each stands. Pure.

use std::collections::BTreeMap;

use crate::{
    ErrorKind, Exit, PodError, ProcessId,
    container::{self, Event, State},
};

/// The processes of a pod.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    processes: BTreeMap<ProcessId, State>,
}

impl Ledger {
    /// Enters a process that is about to be made.
    pub(crate) fn enter(&mut self, process: &ProcessId) -> Result<(), PodError> {
        if process.is_exec() {
            let container = ProcessId::first(&process.container_id);
            self.apply(&container, Event::UseAsked)?;
        }
        if self.processes.contains_key(process) {
            return Err(PodError::new(
                ErrorKind::AlreadyExists,
                format!("{process} exists already: take another name, or delete it first"),
            ));
        }
        self.processes.insert(process.clone(), State::Creating);
        Ok(())
    }

    /// Lets an event happen, and tells where the process stands then; `None` when it is forgotten.
    pub(crate) fn apply(&mut self, process: &ProcessId, event: Event) -> Result<Option<State>, PodError> {
        let state = self.state(process)?;
        let after = container::next(state, event, process.is_exec())
            .map_err(|refusal| PodError::new(refusal.kind(), format!("{process} {}", refusal.words())))?;
        match after {
            Some(after) => drop(self.processes.insert(process.clone(), after)),
            None => self.forget(process),
        }
        Ok(after)
    }

    /// Where a process stands.
    pub(crate) fn state(&self, process: &ProcessId) -> Result<State, PodError> {
        let missing = || PodError::new(ErrorKind::NotFound, format!("{process} does not exist in this pod"));
        self.processes.get(process).copied().ok_or_else(missing)
    }

    /// The exit of a process, once it has one.
    pub(crate) fn exit(&self, process: &ProcessId) -> Option<Exit> {
        match self.processes.get(process)? {
            State::Ended(exit) => Some(*exit),
            State::Deleting(exit) => *exit,
            _ => None,
        }
    }

    /// The machine died: everything alive ends with this exit.
    pub(crate) fn machine_gone(&mut self, exit: Exit) {
        for (process, state) in &mut self.processes {
            if let Ok(Some(after)) = container::next(*state, Event::MachineGone(exit), process.is_exec()) {
                *state = after;
            }
        }
    }

    /// Is there a process that the guest has to end? A container's first process takes its execs along: they share its pid namespace.
    pub(crate) fn anything_alive(&self) -> bool {
        self.processes
            .values()
            .any(|s| matches!(s, State::Creating | State::Created | State::Starting | State::Running))
    }

    fn forget(&mut self, process: &ProcessId) {
        self.processes.remove(process);
        if !process.is_exec() {
            self.processes.retain(|other, _| other.container_id != process.container_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn exec(name: &str) -> ProcessId {
        ProcessId { container_id: "c".into(), exec_id: name.into() }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.enter(&ProcessId::first("c")).expect("new");
        ledger.apply(&ProcessId::first("c"), Event::Made).expect("made");
        ledger
    }

    fn exit(status: u32) -> Exit {
        Exit { status, at: SystemTime::UNIX_EPOCH, oom_killed: false }
    }

    #[test]
    fn a_name_is_used_once() {
        let error = ledger().enter(&ProcessId::first("c")).expect_err("taken");
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
    }

    #[test]
    fn an_exec_needs_a_living_container() {
        let mut ledger = ledger();
        ledger.enter(&exec("e")).expect("the container is alive");
        ledger.apply(&ProcessId::first("c"), Event::Exited(exit(0))).expect("news");
        assert_eq!(ledger.enter(&exec("late")).expect_err("dead").kind, ErrorKind::NotFound);
        let elsewhere = ProcessId { container_id: "x".into(), exec_id: "e".into() };
        assert_eq!(ledger.enter(&elsewhere).expect_err("no container").kind, ErrorKind::NotFound);
    }

    #[test]
    fn a_deleted_container_takes_its_execs_along() {
        let mut ledger = ledger();
        ledger.enter(&exec("e")).expect("new");
        for event in [Event::Exited(exit(0)), Event::DeleteAsked, Event::Deleted] {
            ledger.apply(&ProcessId::first("c"), event).expect("allowed");
        }
        assert_eq!(ledger.state(&exec("e")).expect_err("gone").kind, ErrorKind::NotFound);
        ledger.enter(&ProcessId::first("c")).expect("the name is free again");
    }

    #[test]
    fn a_dead_machine_leaves_nobody_alive_and_keeps_earlier_exits() {
        let mut ledger = ledger();
        ledger.enter(&exec("e")).expect("new");
        ledger.apply(&exec("e"), Event::Made).expect("made");
        ledger.apply(&exec("e"), Event::Exited(exit(3))).expect("news");
        assert!(ledger.anything_alive());
        ledger.machine_gone(exit(137));
        assert!(!ledger.anything_alive());
        assert_eq!(ledger.exit(&exec("e")).map(|e| e.status), Some(3));
        assert_eq!(ledger.exit(&ProcessId::first("c")).map(|e| e.status), Some(137));
    }

    /// One call or one failure, of one of the processes of a small pod.
    #[derive(Debug, Clone)]
    enum Step {
        Enter(ProcessId),
        Apply(ProcessId, Event),
        MachineGone,
    }

    fn any_process() -> impl Strategy<Value = ProcessId> {
        (0_u8..2, 0_u8..3).prop_map(|(container, exec)| ProcessId {
            container_id: format!("c{container}"),
            exec_id: if exec == 0 { String::new() } else { format!("e{exec}") },
        })
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let event = (0_u8..10, 0_u32..256).prop_map(|(kind, status)| match kind {
            0 | 1 => Event::Made,
            2 => Event::MakeFailed,
            3 => Event::StartAsked,
            4 => Event::Started,
            5 => Event::StartFailed(exit(status)),
            6 => Event::Exited(exit(status)),
            7 => Event::DeleteAsked,
            8 => Event::Deleted,
            _ => Event::DeleteFailed,
        });
        prop_oneof![
            3 => any_process().prop_map(Step::Enter),
            20 => (any_process(), event).prop_map(|(process, event)| Step::Apply(process, event)),
            1 => Just(Step::MachineGone),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn whatever_is_called_and_fails_each_life_has_one_exit_and_nothing_after_it(steps in prop::collection::vec(any_step(), 0..120)) {
            let mut ledger = Ledger::default();
            // The exits of the lives that are still in the ledger.
            let mut exits = BTreeMap::<ProcessId, Exit>::new();
            for step in steps {
                match &step {
                    Step::Enter(process) => {
                        let container = ProcessId::first(&process.container_id);
                        let container_lives = ledger.state(&container).is_ok_and(|s| matches!(s, State::Created | State::Starting | State::Running));
                        if ledger.enter(process).is_ok() {
                            prop_assert!(!exits.contains_key(process), "{process} has two lives at once");
                            prop_assert!(!process.is_exec() || container_lives, "an exec in a container that does not live");
                        }
                    }
                    Step::Apply(process, event) => {
                        if ledger.apply(process, *event).is_ok_and(|after| after.is_none()) {
                            prop_assert_eq!(ledger.state(process).map_err(|e| e.kind), Err(ErrorKind::NotFound));
                            exits.retain(|other, _| other != process && (process.is_exec() || other.container_id != process.container_id));
                        }
                    }
                    Step::MachineGone => {
                        ledger.machine_gone(exit(137));
                        prop_assert!(ledger.processes.values().all(|s| !matches!(s, State::Created | State::Starting | State::Running)));
                    }
                }
                for (process, told) in &exits {
                    prop_assert_eq!(ledger.exit(process), Some(*told), "{} changed its exit at {:?}", process, step);
                }
                let known: Vec<_> = ledger.processes.keys().filter_map(|p| Some((p.clone(), ledger.exit(p)?))).collect();
                exits.extend(known);
                for process in ledger.processes.keys().filter(|process| process.is_exec()) {
                    prop_assert!(ledger.processes.contains_key(&ProcessId::first(&process.container_id)), "{process} has outlived its container");
                }
            }
        }
    }
}
