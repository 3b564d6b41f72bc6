//! From the end of a process to an empty table.

use std::time::SystemTime;

use rustix::process::Signal;
use tokio::{sync::oneshot, task::spawn_blocking};

use super::{
    Event, Ledger, answer,
    entry::{Deletion, Entry, Ticket},
    not_found, send, tell, wrong_state,
};
use crate::{
    containers::{Deleted, ProcessName, Reply},
    process::{Event as Step, Exit, KILLED_STATUS, State},
    refusal::{Refusal, with_sources},
};

impl Ledger {
    /// Turns a reaped status into an event.
    pub(super) fn watch(&self, ticket: Ticket, exit: oneshot::Receiver<u32>) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let status = exit.await.unwrap_or(KILLED_STATUS);
            tell(&events, Event::Ended { ticket, status, at: SystemTime::now() }).await;
        });
    }

    pub(super) fn ended(&mut self, ticket: &Ticket, status: u32, at: SystemTime) {
        let container = self.row(&ticket.name.container).ok().and_then(|row| row.container.clone());
        let Ok(entry) = self.held(ticket) else { return };
        let oom_killed = container.is_some_and(|container| container.oom_kills() > 0);
        entry.step(Step::Ended(Exit { status, at, oom_killed }));
        if ticket.name.exec.is_empty() {
            self.first_ended(&ticket.name.container);
        }
        self.answer_end_if_nothing_lives();
    }

    /// A container is over with its first process: what is left of it is killed, and a waiting deletion goes on.
    pub(super) fn first_ended(&mut self, id: &str) {
        let Ok(row) = self.row(id) else { return };
        if row.first.state.exit().is_none() {
            return;
        }
        if let Some(container) = row.container.as_ref().filter(|container| !container.ends_with_its_first())
            && let Err(error) = container.signal_all(Signal::KILL)
        {
            log::warn!("processes of container {id:?} may be left over: {}", with_sources(&error));
        }
        if let Deletion::AwaitsEnd(_) = row.deletion
            && let Deletion::AwaitsEnd(reply) = std::mem::replace(&mut row.deletion, Deletion::Destroying)
        {
            self.destroy(id, reply);
        }
    }

    pub(super) fn delete(&mut self, name: &ProcessName, reply: Reply<Deleted>) {
        if !name.exec.is_empty() {
            return answer(reply, self.delete_exec(name));
        }
        let row = match self.row(&name.container) {
            Ok(row) => row,
            Err(refusal) => return answer(reply, Err(refusal)),
        };
        match (row.first.state, &row.deletion) {
            (State::Stopped { .. }, Deletion::NotAsked) => {
                row.deletion = Deletion::Destroying;
                self.destroy(&name.container, reply);
            }
            // Never started: it ends here, and the deletion goes on when it is reaped.
            (State::Created { pid }, Deletion::NotAsked) => match send(name, pid, Signal::KILL) {
                Ok(()) | Err(Refusal::NotFound(_)) => row.deletion = Deletion::AwaitsEnd(reply),
                Err(refusal) => answer(reply, Err(refusal)),
            },
            (_, Deletion::AwaitsEnd(_) | Deletion::Destroying) => {
                answer(reply, Err(wrong_state(name, "being deleted", "wait for the first deletion's answer")));
            }
            (state, Deletion::NotAsked) => {
                answer(reply, Err(wrong_state(name, state.name(), "kill it and wait for its end")))
            }
        }
    }

    pub(super) fn delete_exec(&mut self, name: &ProcessName) -> Result<Deleted, Refusal> {
        let row = self.row(&name.container)?;
        let entry = row.execs.get(&name.exec).ok_or_else(|| not_found(name))?;
        if !matches!(entry.state, State::Stopped { .. } | State::Registered) {
            return Err(wrong_state(name, entry.state.name(), "kill it and wait for its end"));
        }
        let entry = row.execs.remove(&name.exec).expect("it was there a moment ago");
        if let Some((_, stdio)) = &entry.pending {
            self.launcher.forget(*stdio);
        }
        Ok(entry.deleted())
    }

    pub(super) fn destroy(&mut self, id: &str, reply: Reply<Deleted>) {
        let (id, events) = (id.to_owned(), self.events.clone());
        let container = self.rows.get(&id).and_then(|row| row.container.clone());
        tokio::spawn(async move {
            let destroyed = spawn_blocking(move || container.map_or(Ok(()), |container| container.destroy())).await;
            let outcome = destroyed.unwrap_or_else(|error| Err(Refusal::failed("delete the container", error)));
            tell(&events, Event::Destroyed { id, outcome, reply }).await;
        });
    }

    pub(super) fn destroyed(&mut self, id: &str, outcome: Result<(), Refusal>, reply: Reply<Deleted>) {
        if let Err(refusal) = outcome {
            // Kept, so that the deletion can be tried again.
            self.row(id).map(|row| row.deletion = Deletion::NotAsked).ok();
            return answer(reply, Err(refusal));
        }
        let Some(row) = self.rows.remove(id) else {
            return answer(reply, Err(Refusal::NotFound(format!("container {id:?} was deleted meanwhile"))));
        };
        self.oom.forget(id);
        let lost = Exit { status: KILLED_STATUS, at: SystemTime::now(), oom_killed: false };
        for entry in row.execs.into_values() {
            entry.waiters.into_iter().for_each(|waiter| drop(waiter.send(Ok(lost))));
            if let Some((_, stdio)) = entry.pending {
                self.launcher.forget(stdio);
            }
        }
        answer(reply, Ok(row.first.deleted()));
    }

    pub(super) fn end_all(&mut self, reply: Reply<()>) {
        self.ended = true;
        self.ending = Some(reply);
        if self.owns_machine {
            // Everybody but PID 1, containers or not; ESRCH means that there is nobody.
            crate::sys::kill_everybody();
        }
        for row in self.rows.values() {
            if let Some(container) = &row.container
                && let Err(error) = container.signal_all(Signal::KILL)
            {
                log::warn!("a container may outlive its pod: {}", with_sources(&error));
            }
        }
        self.answer_end_if_nothing_lives();
    }

    pub(super) fn answer_end_if_nothing_lives(&mut self) {
        let lives = |entry: &Entry| entry.state.living_pid().is_some() || matches!(entry.state, State::Creating);
        let any = self.rows.values().any(|row| lives(&row.first) || row.execs.values().any(lives));
        if !any && let Some(reply) = self.ending.take() {
            answer(reply, Ok(()));
        }
    }
}
