//! The table of containers and the one task that owns it.
//!
//! [`Event`] lists everything that can wake it: requests, and the outcomes of work it has sent elsewhere (making, starting, destroying,
//! reaping). The task itself never waits, so a kill is never behind a create, a start, a stats or another container. There is no lock.
//! What may happen to a process at all is decided in [`crate::process`]; here are the table, and who waits for what.

mod ending;
mod entry;
mod launching;

pub use entry::Ticket;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use oci_spec::runtime::{Process, Spec};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::mpsc;

use self::entry::{Entry, Row};
use crate::{
    containers::{Deleted, PidsOf, ProcessName, Reply},
    launch::{Launched, Launcher, StdioRequest},
    oom::OomBoard,
    process::{Exit, State},
    refusal::Refusal,
    runtime::{Container, Size},
};

/// Most containers of one pod, and most execs of one container; far beyond what a kubelet asks for, and small beside the guest's memory.
const ENTRIES_MAX: usize = 1024;

/// Everything that wakes the table's task.
#[allow(missing_docs, reason = "requests are documented at `Containers`, outcomes below")]
pub enum Event {
    Create {
        id: String,
        spec: Box<Spec>,
        pids_of: PidsOf,
        stdio: StdioRequest,
        reply: Reply<u32>,
    },
    AddExec {
        name: ProcessName,
        process: Box<Process>,
        stdio: StdioRequest,
        reply: Reply<()>,
    },
    Start {
        name: ProcessName,
        reply: Reply<u32>,
    },
    Signal {
        name: ProcessName,
        signal: Signal,
        all: bool,
        reply: Reply<()>,
    },
    Wait {
        name: ProcessName,
        reply: Reply<Exit>,
    },
    Resize {
        name: ProcessName,
        size: Size,
        reply: Reply<()>,
    },
    Delete {
        name: ProcessName,
        reply: Reply<Deleted>,
    },
    Find {
        id: String,
        reply: Reply<Arc<dyn Container>>,
    },
    Frozen {
        id: String,
        frozen: bool,
        reply: Reply<()>,
    },
    EndAll {
        reply: Reply<()>,
    },
    /// A create is over.
    Made {
        id: String,
        outcome: Result<(Launched, Arc<dyn Container>), Refusal>,
        reply: Reply<u32>,
    },
    /// A gate was opened, or not.
    Opened {
        ticket: Ticket,
        outcome: Result<(), Refusal>,
        reply: Reply<u32>,
    },
    /// An exec runs, or not.
    Ran {
        ticket: Ticket,
        outcome: Result<Launched, Refusal>,
        reply: Reply<u32>,
    },
    /// A process was reaped.
    Ended {
        ticket: Ticket,
        status: u32,
        at: SystemTime,
    },
    /// What a container held was given back, or not.
    Destroyed {
        id: String,
        outcome: Result<(), Refusal>,
        reply: Reply<Deleted>,
    },
}

/// The table.
pub struct Ledger {
    rows: BTreeMap<String, Row>,
    launcher: Launcher,
    owns_machine: bool,
    events: mpsc::Sender<Event>,
    oom: OomBoard,
    /// Somebody ends everything; answered when nothing lives.
    ending: Option<Reply<()>>,
    ended: bool,
    serial: u64,
}

impl Ledger {
    /// An empty table; outcomes come back through `events`.
    pub fn new(launcher: Launcher, owns_machine: bool, oom: OomBoard, events: mpsc::Sender<Event>) -> Self {
        Self { rows: BTreeMap::new(), launcher, owns_machine, events, oom, ending: None, ended: false, serial: 0 }
    }

    /// Owns the table for as long as somebody can ask.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Create { id, spec, pids_of, stdio, reply } => {
                self.create(id, launching::Wanted { spec, pids_of, stdio }, reply)
            }
            Event::AddExec { name, process, stdio, reply } => answer(reply, self.add_exec(&name, process, stdio)),
            Event::Start { name, reply } => self.start(name, reply),
            Event::Signal { name, signal, all, reply } => answer(reply, self.signal(&name, signal, all)),
            Event::Wait { name, reply } => self.wait(&name, reply),
            Event::Resize { name, size, reply } => answer(reply, self.resize(&name, size)),
            Event::Delete { name, reply } => self.delete(&name, reply),
            Event::Find { id, reply } => answer(reply, self.find(&id)),
            Event::Frozen { id, frozen, reply } => answer(reply, self.row(&id).map(|row| row.frozen = frozen)),
            Event::EndAll { reply } => self.end_all(reply),
            Event::Made { id, outcome, reply } => self.made(id, outcome, reply),
            Event::Opened { ticket, outcome, reply } => self.opened(&ticket, outcome, reply),
            Event::Ran { ticket, outcome, reply } => self.ran(ticket, outcome, reply),
            Event::Ended { ticket, status, at } => self.ended(&ticket, status, at),
            Event::Destroyed { id, outcome, reply } => self.destroyed(&id, outcome, reply),
        }
    }

    fn signal(&mut self, name: &ProcessName, signal: Signal, all: bool) -> Result<(), Refusal> {
        let row = self.row(&name.container)?;
        // Even after the end of the first process, where that does not end the others.
        if all && let Some(container) = &row.container {
            return container.signal_all(signal);
        }
        let entry = self.entry(name)?;
        let state = entry.state;
        if let (State::Starting { pid: None }, Some(birth), Signal::KILL) = (state, &entry.birth, signal) {
            birth.give_up();
            return Ok(());
        }
        match state.living_pid() {
            Some(pid) => send(name, pid, signal),
            None if state.exit().is_some() => Err(Refusal::NotFound(format!("{name} has ended; no process to signal"))),
            None => Err(wrong_state(name, state.name(), "a signal needs a process that exists")),
        }
    }

    fn wait(&mut self, name: &ProcessName, reply: Reply<Exit>) {
        match self.entry(name) {
            Err(refusal) => answer(reply, Err(refusal)),
            Ok(entry) => match entry.state.exit() {
                Some(exit) => answer(reply, Ok(exit)),
                None => {
                    // Those who hung up make room first, so that waiting again and again does not fill the memory.
                    entry.waiters.retain(|waiter| !waiter.is_closed());
                    entry.waiters.push(reply);
                }
            },
        }
    }

    fn resize(&mut self, name: &ProcessName, size: Size) -> Result<(), Refusal> {
        let entry = self.entry(name)?;
        let Some(master) = &entry.master else {
            return Err(wrong_state(
                name,
                "without a terminal",
                "only a running process with a terminal can be resized",
            ));
        };
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(master.get_ref(), size)
            .map_err(|errno| Refusal::failed(format!("resize the terminal of {name}"), std::io::Error::from(errno)))
    }

    fn find(&mut self, id: &str) -> Result<Arc<dyn Container>, Refusal> {
        let row = self.row(id)?;
        row.container.clone().ok_or_else(|| {
            wrong_state(format!("container {id:?}"), row.first.state.name(), "wait for the answer of its creation")
        })
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The process of a ticket, if it is still in the table.
    fn held(&mut self, ticket: &Ticket) -> Result<&mut Entry, Refusal> {
        let entry = self.entry(&ticket.name)?;
        if entry.serial == ticket.serial { Ok(entry) } else { Err(not_found(&ticket.name)) }
    }

    fn row(&mut self, id: &str) -> Result<&mut Row, Refusal> {
        self.rows.get_mut(id).ok_or_else(|| Refusal::NotFound(format!("there is no container {id:?} in this pod")))
    }

    fn entry(&mut self, name: &ProcessName) -> Result<&mut Entry, Refusal> {
        let row = self.row(&name.container)?;
        if name.exec.is_empty() {
            return Ok(&mut row.first);
        }
        row.execs.get_mut(&name.exec).ok_or_else(|| not_found(name))
    }
}

/// A pid is reaped shortly before its state becomes Stopped, so ESRCH means the same. The kernel counts pids up through all their
/// numbers before it uses one again, so within that moment the pid cannot be another process.
fn send(name: &ProcessName, pid: u32, signal: Signal) -> Result<(), Refusal> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match target.map(|target| kill_process(target, signal)) {
        Some(Ok(())) => Ok(()),
        None | Some(Err(rustix::io::Errno::SRCH)) => {
            Err(Refusal::NotFound(format!("{name} has ended; no process to signal")))
        }
        Some(Err(errno)) => Err(Refusal::failed(format!("signal {name}"), std::io::Error::from(errno))),
    }
}

async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    // The table's task ends only with the agent.
    let _ = events.send(event).await;
}

/// An asker that hung up is no loss.
fn answer<T>(reply: Reply<T>, result: Result<T, Refusal>) {
    let _ = reply.send(result);
}

fn first_of(name: &ProcessName) -> String {
    format!("container {:?}", name.container)
}

fn not_found(name: &ProcessName) -> Refusal {
    Refusal::NotFound(format!("there is no {name} in this pod"))
}

fn wrong_state(object: impl ToString, state: &'static str, hint: &'static str) -> Refusal {
    Refusal::WrongState { object: object.to_string(), state, hint }
}
