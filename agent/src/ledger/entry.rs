//! What the table holds.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use oci_spec::runtime::Process;
use tokio::sync::Semaphore;

use crate::{
    birth::Birth,
    containers::{Deleted, ProcessName, Reply},
    launch::StdioRequest,
    process::{Event as Step, Exit, NEVER_RAN_STATUS, State},
    runtime::Container,
    stdio::Master,
};

/// A process as work sent elsewhere knows it. Ids may be used again after a deletion, serials are not, so an outcome that comes late
/// never meets somebody else's process.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub(super) name: ProcessName,
    pub(super) serial: u64,
}

/// A process in the table.
pub struct Entry {
    pub serial: u64,
    pub state: State,
    pub waiters: Vec<Reply<Exit>>,
    pub master: Option<Master>,
    /// An exec's plan until it starts.
    pub pending: Option<Pending>,
    /// An exec that starts, until it has.
    pub birth: Option<Birth>,
}

/// What an exec that has not started will run.
pub type Pending = (Box<Process>, StdioRequest);

/// A container in the table.
pub struct Row {
    pub first: Entry,
    pub execs: BTreeMap<String, Entry>,
    /// None while it is being made.
    pub container: Option<Arc<dyn Container>>,
    /// Whose turn it is to be born.
    pub turns: Arc<Semaphore>,
    pub frozen: bool,
    pub deletion: Deletion,
}

/// How far the deletion of a container is.
pub enum Deletion {
    NotAsked,
    /// Asked at the gate: goes on when the first process has been reaped.
    AwaitsEnd(Reply<Deleted>),
    /// What it holds is being given back.
    Destroying,
}

impl Entry {
    pub fn new(serial: u64, state: State) -> Self {
        Self { serial, state, waiters: Vec::new(), master: None, pending: None, birth: None }
    }

    /// Applies a step that cannot be refused unless our own bookkeeping is wrong; then the state stays and the log tells.
    pub fn step(&mut self, step: Step) {
        match self.state.next(step) {
            Ok(next) => self.state = next,
            Err(refusal) => log::error!("our bug: {step:?} does not fit: {refusal}"),
        }
        if let Some(exit) = self.state.exit() {
            self.waiters.drain(..).for_each(|waiter| drop(waiter.send(Ok(exit))));
            self.master = None;
        }
    }

    pub fn deleted(&self) -> Deleted {
        match self.state {
            State::Stopped { pid, exit } => Deleted { pid, exit },
            _ => Deleted { pid: 0, exit: Exit { status: NEVER_RAN_STATUS, at: SystemTime::now(), oom_killed: false } },
        }
    }
}
