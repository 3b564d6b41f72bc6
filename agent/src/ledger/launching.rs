//! From a request to a running process: the table's side of a launch.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use oci_spec::runtime::{Process, Spec};
use rustix::process::Signal;
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    ENTRIES_MAX, Event, Ledger, answer,
    entry::{Deletion, Entry, Row, Ticket},
    first_of, not_found, tell, wrong_state,
};
use crate::{
    birth::{BIRTHS_MAX, Birth},
    containers::{PidsOf, ProcessName, Reply},
    launch::{Exec, Launched, StdioRequest},
    process::{Event as Step, State},
    refusal::Refusal,
    runtime::{Container, Shared},
};

/// A container to make.
pub(super) struct Wanted {
    pub spec: Box<Spec>,
    pub pids_of: PidsOf,
    pub stdio: StdioRequest,
}

impl Ledger {
    pub(super) fn create(&mut self, id: String, wanted: Wanted, reply: Reply<u32>) {
        let Wanted { spec, pids_of, stdio } = wanted;
        let shared = match self.check_new(&id).and_then(|()| self.shared_with(&pids_of)) {
            Ok(shared) => shared,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        let first = Entry::new(self.next_serial(), State::Creating);
        let row = Row {
            first,
            execs: BTreeMap::new(),
            container: None,
            turns: Arc::new(Semaphore::new(BIRTHS_MAX)),
            frozen: false,
            deletion: Deletion::NotAsked,
        };
        self.rows.insert(id.clone(), row);
        let (launcher, events) = (self.launcher.clone(), self.events.clone());
        tokio::spawn(async move {
            let outcome = launcher.create(id.clone(), spec, shared, stdio).await;
            tell(&events, Event::Made { id, outcome, reply }).await;
        });
    }

    /// A namespace whose first process has not started yet takes others in all the same; one whose first process has ended takes nobody.
    fn shared_with(&mut self, pids: &PidsOf) -> Result<Shared, Refusal> {
        let pids_of = match pids {
            PidsOf::Itself => return Ok(Shared::default()),
            PidsOf::Pod => return Ok(Shared { pids_of_pod: true, ..Shared::default() }),
            PidsOf::Container(id) => id,
        };
        let target = self.find(pids_of)?;
        if self.row(pids_of)?.first.state.exit().is_some() {
            let hint = "a container can join the processes of a running one only";
            return Err(wrong_state(format!("container {pids_of:?}"), "stopped", hint));
        }
        Ok(Shared { pids_of: Some(target), pids_of_pod: false })
    }

    pub(super) fn check_new(&self, id: &str) -> Result<(), Refusal> {
        if self.ended {
            return Err(wrong_state("the pod", "ending", "make a new pod"));
        }
        if self.rows.contains_key(id) {
            return Err(Refusal::AlreadyExists(format!("container {id:?}")));
        }
        if self.rows.len() >= ENTRIES_MAX {
            return Err(wrong_state("the pod", "full", "delete containers that have ended"));
        }
        Ok(())
    }

    pub(super) fn made(
        &mut self,
        id: String,
        outcome: Result<(Launched, Arc<dyn Container>), Refusal>,
        reply: Reply<u32>,
    ) {
        let (launched, container) = match outcome {
            Ok(made) => made,
            Err(refusal) => {
                self.rows.remove(&id);
                self.answer_end_if_nothing_lives();
                return answer(reply, Err(refusal));
            }
        };
        if self.ended {
            // It was made while everything was being ended.
            let _ = container.signal_all(Signal::KILL);
        }
        let row = self.rows.get_mut(&id).expect("a row that is being created is removed by nobody else");
        if let Some(events) = container.memory_events() {
            self.oom.watch(&id, events);
        }
        row.container = Some(container);
        row.first.master = launched.master;
        row.first.step(Step::Created { pid: launched.pid });
        let name = ProcessName { container: id, exec: String::new() };
        let ticket = Ticket { name, serial: row.first.serial };
        self.watch(ticket, launched.exit);
        answer(reply, Ok(launched.pid));
    }

    pub(super) fn add_exec(
        &mut self,
        name: &ProcessName,
        process: Box<Process>,
        stdio: StdioRequest,
    ) -> Result<(), Refusal> {
        let serial = self.next_serial();
        let row = self.row(&name.container)?;
        if name.exec.is_empty() {
            return Err(Refusal::invalid("an exec without an id", "name it"));
        }
        if row.execs.contains_key(&name.exec) {
            return Err(Refusal::AlreadyExists(name.to_string()));
        }
        if row.execs.len() >= ENTRIES_MAX {
            return Err(wrong_state(name.container.as_str(), "full of execs", "delete execs that have ended"));
        }
        if row.first.state.exit().is_some() {
            return Err(wrong_state(first_of(name), row.first.state.name(), "an exec needs a living container"));
        }
        let mut entry = Entry::new(serial, State::Registered);
        entry.pending = Some((process, stdio));
        row.execs.insert(name.exec.clone(), entry);
        Ok(())
    }

    pub(super) fn start(&mut self, name: ProcessName, reply: Reply<u32>) {
        let started = if name.exec.is_empty() { self.start_first(name, reply) } else { self.start_exec(name, reply) };
        if let Err((refusal, reply)) = started {
            answer(reply, Err(refusal));
        }
    }

    pub(super) fn start_first(&mut self, name: ProcessName, reply: Reply<u32>) -> Result<(), (Refusal, Reply<u32>)> {
        let (container, ticket) = match self.take_first_to_start(name) {
            Ok(taken) => taken,
            Err(refusal) => return Err((refusal, reply)),
        };
        let events = self.events.clone();
        tokio::spawn(async move {
            let opened = spawn_blocking(move || container.start()).await;
            let outcome = opened.unwrap_or_else(|error| Err(Refusal::failed("open the gate", error)));
            tell(&events, Event::Opened { ticket, outcome, reply }).await;
        });
        Ok(())
    }

    pub(super) fn take_first_to_start(&mut self, name: ProcessName) -> Result<(Arc<dyn Container>, Ticket), Refusal> {
        let row = self.row(&name.container)?;
        let next = row.first.state.next(Step::StartAsked);
        row.first.state =
            next.map_err(|refusal| wrong_state(&name, refusal.state.name(), "start a created container once"))?;
        let container = row.container.clone().expect("a created container is there");
        Ok((container, Ticket { serial: row.first.serial, name }))
    }

    pub(super) fn start_exec(&mut self, name: ProcessName, reply: Reply<u32>) -> Result<(), (Refusal, Reply<u32>)> {
        let (exec, ticket) = match self.take_exec_to_start(name) {
            Ok(taken) => taken,
            Err(refusal) => return Err((refusal, reply)),
        };
        let (launcher, events) = (self.launcher.clone(), self.events.clone());
        tokio::spawn(async move {
            let outcome = launcher.exec(exec).await;
            tell(&events, Event::Ran { ticket, outcome, reply }).await;
        });
        Ok(())
    }

    fn take_exec_to_start(&mut self, name: ProcessName) -> Result<(Exec, Ticket), Refusal> {
        let row = self.row(&name.container)?;
        let entry = row.execs.get_mut(&name.exec).ok_or_else(|| not_found(&name))?;
        if !matches!(row.first.state, State::Running { .. }) {
            return Err(wrong_state(first_of(&name), row.first.state.name(), "an exec runs in a running container"));
        }
        if row.frozen {
            return Err(wrong_state(first_of(&name), "paused", "resume it first"));
        }
        let next = entry.state.next(Step::StartAsked);
        entry.state =
            next.map_err(|refusal| wrong_state(&name, refusal.state.name(), "start a registered exec once"))?;
        let (process, stdio) = entry.pending.take().expect("a registered exec has its plan");
        let container = row.container.clone().expect("a running container is there");
        let birth = entry.birth.insert(Birth::default()).clone();
        let exec = Exec { container, process, stdio, birth, turns: row.turns.clone() };
        Ok((exec, Ticket { serial: entry.serial, name }))
    }

    pub(super) fn opened(&mut self, ticket: &Ticket, outcome: Result<(), Refusal>, reply: Reply<u32>) {
        let Ok(entry) = self.held(ticket) else { return answer(reply, Err(not_found(&ticket.name))) };
        match outcome {
            Ok(()) => {
                let pid = match entry.state {
                    State::Starting { pid: Some(pid) } | State::Stopped { pid, .. } => pid,
                    _ => 0,
                };
                entry.step(Step::Started { pid });
                answer(reply, Ok(pid));
            }
            // Its process ends by itself and the reaper will tell; waiters learn it at once.
            Err(refusal) => {
                entry.step(Step::StartFailed { status: refusal.exit_status(), at: SystemTime::now() });
                answer(reply, Err(refusal));
                self.first_ended(&ticket.name.container);
                self.answer_end_if_nothing_lives();
            }
        }
    }

    pub(super) fn ran(&mut self, ticket: Ticket, outcome: Result<Launched, Refusal>, reply: Reply<u32>) {
        // Its container may have been deleted meanwhile; then the process is dead, and reaped as an orphan.
        let Ok(entry) = self.held(&ticket) else { return answer(reply, Err(not_found(&ticket.name))) };
        entry.birth = None;
        match outcome {
            Ok(launched) => {
                entry.master = launched.master;
                entry.step(Step::Started { pid: launched.pid });
                self.watch(ticket, launched.exit);
                answer(reply, Ok(launched.pid));
            }
            Err(refusal) => {
                entry.step(Step::StartFailed { status: refusal.exit_status(), at: SystemTime::now() });
                answer(reply, Err(refusal));
                self.answer_end_if_nothing_lives();
            }
        }
    }
}
