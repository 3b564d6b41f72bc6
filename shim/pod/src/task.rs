//! The one task that owns a pod's state. It decides and remembers; it never waits for the guest, so every order gets its turn at once.

use std::{collections::BTreeMap, time::SystemTime};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    ErrorKind, Exit, PodError, ProcessId,
    container::{Event, State},
    ledger::Ledger,
    machine::Machine,
    teardown::Acquired,
};

/// What processes of a dead machine are said to have ended with: 128 + SIGKILL.
pub(crate) const MACHINE_DIED_STATUS: u32 = 137;

/// What handles ask of the task.
#[derive(Debug)]
pub(crate) enum Order {
    /// Enter a process that is about to be made.
    Enter(ProcessId, oneshot::Sender<Result<(), PodError>>),
    /// Let something happen to a process; the answer is where it stands then, `None` when it is forgotten.
    Apply(ProcessId, Event, oneshot::Sender<Result<Option<State>, PodError>>),
    /// A process has ended, says whoever waits for it.
    Exited(ProcessId, Exit),
    /// Where does a process stand?
    Look(ProcessId, oneshot::Sender<Result<State, PodError>>),
    /// Does anything live?
    AnythingAlive(oneshot::Sender<Result<bool, PodError>>),
    /// Tell the exit of a process, when there is one.
    Wait(ProcessId, oneshot::Sender<Result<Exit, PodError>>),
    /// Give everything up.
    Stop(oneshot::Sender<Result<(), PodError>>),
}

/// Everything that can wake the task.
enum Wake {
    Order(Order),
    /// The machine is gone.
    MachineGone,
    /// The teardown is over; what could not be undone.
    Undone(Vec<String>),
    /// No handle is left.
    Abandoned,
}

/// How far the pod is on its way back.
enum Way {
    /// It holds all that it has.
    Up(Box<Acquired>),
    /// The teardown runs; these wait for it.
    Down(JoinHandle<Vec<String>>, Vec<oneshot::Sender<Result<(), PodError>>>),
    /// It is over; what could not be undone.
    Undone(Vec<String>),
}

/// The owner.
pub(crate) struct Task {
    orders: mpsc::UnboundedReceiver<Order>,
    machine: Machine,
    machine_gone: bool,
    ledger: Ledger,
    waiters: BTreeMap<ProcessId, Vec<oneshot::Sender<Result<Exit, PodError>>>>,
    way: Way,
}

impl Task {
    /// Takes ownership of what was launched.
    pub(crate) fn new(orders: mpsc::UnboundedReceiver<Order>, machine: Machine, acquired: Acquired) -> Self {
        Self {
            orders,
            machine,
            machine_gone: false,
            ledger: Ledger::default(),
            waiters: BTreeMap::new(),
            way: Way::Up(acquired.into()),
        }
    }

    /// Runs until no handle is left; then whatever the pod still holds is given up.
    pub(crate) async fn run(mut self) {
        loop {
            match self.next_wake().await {
                Wake::Order(order) => self.obey(order),
                Wake::MachineGone => self.machine_went(),
                Wake::Undone(problems) => self.undone(problems),
                Wake::Abandoned => return self.abandoned().await,
            }
        }
    }

    async fn next_wake(&mut self) -> Wake {
        tokio::select! {
            biased;
            _ = self.machine.gone(), if !self.machine_gone => Wake::MachineGone,
            problems = finished(&mut self.way) => Wake::Undone(problems),
            order = self.orders.recv() => order.map_or(Wake::Abandoned, Wake::Order),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Enter(process, reply) => drop(reply.send(self.enter(&process))),
            Order::Apply(process, event, reply) => drop(reply.send(self.apply(&process, event))),
            Order::Exited(process, exit) => drop(self.apply(&process, Event::Exited(exit))),
            Order::Look(process, reply) => drop(reply.send(self.ledger.state(&process))),
            Order::AnythingAlive(reply) => drop(reply.send(Ok(self.ledger.anything_alive()))),
            Order::Wait(process, reply) => {
                self.waiters.entry(process.clone()).or_default().push(reply);
                self.settle(&process);
            }
            Order::Stop(reply) => self.stop(reply),
        }
    }

    fn enter(&mut self, process: &ProcessId) -> Result<(), PodError> {
        if let Some(sentence) = self.machine.gone_already() {
            return Err(Machine::gone_error(&sentence));
        }
        if !matches!(self.way, Way::Up(_)) {
            return Err(PodError::new(ErrorKind::Unavailable, "the pod is being stopped"));
        }
        self.ledger.enter(process)
    }

    fn apply(&mut self, process: &ProcessId, event: Event) -> Result<Option<State>, PodError> {
        let after = self.ledger.apply(process, event)?;
        // A machine that died while the process was being made leaves no news of it: it ends here.
        if self.machine_gone && matches!(after, Some(State::Created | State::Starting | State::Running)) {
            self.ledger.machine_gone(death());
        }
        self.settle(process);
        if after.is_none() && !process.is_exec() {
            self.settle_execs_of(process);
        }
        Ok(after)
    }

    /// Answers those who wait for a process, if there is an answer.
    fn settle(&mut self, process: &ProcessId) {
        let answer = match (self.ledger.exit(process), self.ledger.state(process)) {
            (Some(exit), _) => Ok(exit),
            (None, Ok(_)) => return,
            (None, Err(missing)) => Err(missing),
        };
        for waiter in self.waiters.remove(process).unwrap_or_default() {
            let copy = match &answer {
                Ok(exit) => Ok(*exit),
                Err(error) => Err(PodError::new(error.kind, error.message.clone())),
            };
            let _ = waiter.send(copy);
        }
    }

    /// With a container its execs are forgotten, whatever became of them.
    fn settle_execs_of(&mut self, container: &ProcessId) {
        let waited = self.waiters.keys().filter(|process| process.container_id == container.container_id);
        waited.cloned().collect::<Vec<_>>().iter().for_each(|process| self.settle(process));
    }

    fn machine_went(&mut self) {
        self.machine_gone = true;
        self.ledger.machine_gone(death());
        let waited: Vec<ProcessId> = self.waiters.keys().cloned().collect();
        waited.iter().for_each(|process| self.settle(process));
    }

    fn stop(&mut self, reply: oneshot::Sender<Result<(), PodError>>) {
        let guest_has_work = self.ledger.anything_alive();
        self.way = match std::mem::replace(&mut self.way, Way::Undone(Vec::new())) {
            Way::Up(acquired) => Way::Down(tokio::spawn(acquired.undo(guest_has_work)), vec![reply]),
            Way::Down(teardown, mut waiting) => {
                waiting.push(reply);
                Way::Down(teardown, waiting)
            }
            Way::Undone(problems) => {
                let _ = reply.send(verdict(&problems));
                Way::Undone(problems)
            }
        };
    }

    fn undone(&mut self, problems: Vec<String>) {
        if let Way::Down(_, waiting) = std::mem::replace(&mut self.way, Way::Undone(problems.clone())) {
            waiting.into_iter().for_each(|reply| drop(reply.send(verdict(&problems))));
        }
    }

    async fn abandoned(self) {
        let problems = match self.way {
            Way::Up(acquired) => acquired.undo(self.ledger.anything_alive()).await,
            Way::Down(teardown, _) => teardown.await.unwrap_or_default(),
            Way::Undone(_) => return,
        };
        problems.iter().for_each(|problem| log::error!("{problem}"));
    }
}

async fn finished(way: &mut Way) -> Vec<String> {
    match way {
        Way::Down(teardown, _) => teardown.await.unwrap_or_else(|e| vec![format!("the teardown was interrupted: {e}")]),
        _ => std::future::pending().await,
    }
}

fn verdict(problems: &[String]) -> Result<(), PodError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(PodError::new(
        ErrorKind::Internal,
        format!("the pod is stopped, but not all of it could be undone: {}", problems.join("; ")),
    ))
}

fn death() -> Exit {
    Exit { status: MACHINE_DIED_STATUS, at: SystemTime::now(), oom_killed: false }
}

#[cfg(test)]
mod tests;
