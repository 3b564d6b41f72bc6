//! The table of containers and the one task that owns it.
//!
//! [`Event`] lists everything that can wake it: requests, and the outcomes of work it has sent elsewhere (making, starting, destroying,
//! reaping). The task itself never waits, so a kill is never behind a create, a start, a stats or another container. There is no lock.
//! What may happen to a process at all is decided in [`crate::process`]; here are the table, and who waits for what.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::SystemTime,
};

use oci_spec::runtime::{Process, Spec};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    containers::{Deleted, ProcessName, Reply},
    launch::{Launched, Launcher, StdioRequest},
    process::{Event as Step, Exit, NEVER_RAN_STATUS, State},
    refusal::Refusal,
    runtime::{Container, Size},
    stdio::Master,
};

/// Most containers of one pod, and most execs of one container; far beyond what a kubelet asks for, and small beside the guest's memory.
const ENTRIES_MAX: usize = 1024;
/// Status of a process whose end nobody saw: it died with its container.
const KILLED_STATUS: u32 = 128 + 9;

/// Everything that wakes the table's task.
#[allow(missing_docs, reason = "requests are documented at `Containers`, outcomes below")]
pub enum Event {
    Create { id: String, spec: Box<Spec>, stdio: StdioRequest, reply: Reply<u32> },
    AddExec { name: ProcessName, process: Box<Process>, stdio: StdioRequest, reply: Reply<()> },
    Start { name: ProcessName, reply: Reply<u32> },
    Signal { name: ProcessName, signal: Signal, all: bool, reply: Reply<()> },
    Wait { name: ProcessName, reply: Reply<Exit> },
    Resize { name: ProcessName, size: Size, reply: Reply<()> },
    Delete { name: ProcessName, reply: Reply<Deleted> },
    Find { id: String, reply: Reply<Arc<dyn Container>> },
    Frozen { id: String, frozen: bool, reply: Reply<()> },
    EndAll { reply: Reply<()> },
    /// A create is over.
    Made { id: String, outcome: Result<(Launched, Arc<dyn Container>), Refusal>, reply: Reply<u32> },
    /// A gate was opened, or not.
    Opened { ticket: Ticket, outcome: Result<(), Refusal>, reply: Reply<u32> },
    /// An exec runs, or not.
    Ran { ticket: Ticket, outcome: Result<Launched, Refusal>, reply: Reply<u32> },
    /// A process was reaped.
    Ended { ticket: Ticket, status: u32, at: SystemTime },
    /// What a container held was given back, or not.
    Destroyed { id: String, outcome: Result<(), Refusal>, reply: Reply<Deleted> },
}

/// A process as work sent elsewhere knows it. Ids may be used again after a deletion, serials are not, so an outcome that comes late
/// never meets somebody else's process.
#[derive(Debug, Clone)]
pub struct Ticket {
    name: ProcessName,
    serial: u64,
}

/// A process in the table.
struct Entry {
    serial: u64,
    state: State,
    waiters: Vec<Reply<Exit>>,
    master: Option<Master>,
    /// An exec's plan until it starts.
    pending: Option<Pending>,
}

type Pending = (Box<Process>, StdioRequest);

struct Row {
    first: Entry,
    execs: BTreeMap<String, Entry>,
    /// None while it is being made.
    container: Option<Arc<dyn Container>>,
    frozen: bool,
    deletion: Deletion,
}

/// How far the deletion of a container is.
enum Deletion {
    NotAsked,
    /// Asked at the gate: goes on when the first process has been reaped.
    AwaitsEnd(Reply<Deleted>),
    /// What it holds is being given back.
    Destroying,
}

/// The table.
pub struct Ledger {
    rows: BTreeMap<String, Row>,
    launcher: Launcher,
    owns_machine: bool,
    events: mpsc::Sender<Event>,
    /// Somebody ends everything; answered when nothing lives.
    ending: Option<Reply<()>>,
    ended: bool,
    serial: u64,
}

impl Entry {
    fn new(serial: u64, state: State) -> Self {
        Self { serial, state, waiters: Vec::new(), master: None, pending: None }
    }

    /// Applies a step that cannot be refused unless our own bookkeeping is wrong; then the state stays and the log tells.
    fn step(&mut self, step: Step) {
        match self.state.next(step) {
            Ok(next) => self.state = next,
            Err(refusal) => log::error!("our bug: {step:?} does not fit: {refusal}"),
        }
        if let Some(exit) = self.state.exit() {
            self.waiters.drain(..).for_each(|waiter| drop(waiter.send(Ok(exit))));
            self.master = None;
        }
    }

    fn deleted(&self) -> Deleted {
        match self.state {
            State::Stopped { pid, exit } => Deleted { pid, exit },
            _ => Deleted { pid: 0, exit: Exit { status: NEVER_RAN_STATUS, at: SystemTime::now(), oom_killed: false } },
        }
    }
}

impl Ledger {
    /// An empty table; outcomes come back through `events`.
    pub fn new(launcher: Launcher, owns_machine: bool, events: mpsc::Sender<Event>) -> Self {
        Self { rows: BTreeMap::new(), launcher, owns_machine, events, ending: None, ended: false, serial: 0 }
    }

    /// Owns the table for as long as somebody can ask.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Create { id, spec, stdio, reply } => self.create(id, spec, stdio, reply),
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

    fn create(&mut self, id: String, spec: Box<Spec>, stdio: StdioRequest, reply: Reply<u32>) {
        if let Err(refusal) = self.check_new(&id) {
            return answer(reply, Err(refusal));
        }
        let first = Entry::new(self.next_serial(), State::Creating);
        let row = Row { first, execs: BTreeMap::new(), container: None, frozen: false, deletion: Deletion::NotAsked };
        self.rows.insert(id.clone(), row);
        let (launcher, events) = (self.launcher.clone(), self.events.clone());
        tokio::spawn(async move {
            let outcome = launcher.create(id.clone(), spec, stdio).await;
            tell(&events, Event::Made { id, outcome, reply }).await;
        });
    }

    fn check_new(&self, id: &str) -> Result<(), Refusal> {
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

    fn made(
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
        row.container = Some(container);
        row.first.master = launched.master;
        row.first.step(Step::Created { pid: launched.pid });
        let name = ProcessName { container: id, exec: String::new() };
        let ticket = Ticket { name, serial: row.first.serial };
        self.watch(ticket, launched.exit);
        answer(reply, Ok(launched.pid));
    }

    fn add_exec(&mut self, name: &ProcessName, process: Box<Process>, stdio: StdioRequest) -> Result<(), Refusal> {
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

    fn start(&mut self, name: ProcessName, reply: Reply<u32>) {
        let started = if name.exec.is_empty() { self.start_first(name, reply) } else { self.start_exec(name, reply) };
        if let Err((refusal, reply)) = started {
            answer(reply, Err(refusal));
        }
    }

    fn start_first(&mut self, name: ProcessName, reply: Reply<u32>) -> Result<(), (Refusal, Reply<u32>)> {
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

    fn take_first_to_start(&mut self, name: ProcessName) -> Result<(Arc<dyn Container>, Ticket), Refusal> {
        let row = self.row(&name.container)?;
        let next = row.first.state.next(Step::StartAsked);
        row.first.state =
            next.map_err(|refusal| wrong_state(&name, refusal.state.name(), "start a created container once"))?;
        let container = row.container.clone().expect("a created container is there");
        Ok((container, Ticket { serial: row.first.serial, name }))
    }

    fn start_exec(&mut self, name: ProcessName, reply: Reply<u32>) -> Result<(), (Refusal, Reply<u32>)> {
        let (container, (process, stdio), ticket) = match self.take_exec_to_start(name) {
            Ok(taken) => taken,
            Err(refusal) => return Err((refusal, reply)),
        };
        let (launcher, events) = (self.launcher.clone(), self.events.clone());
        tokio::spawn(async move {
            let outcome = launcher.exec(container, process, stdio).await;
            tell(&events, Event::Ran { ticket, outcome, reply }).await;
        });
        Ok(())
    }

    fn take_exec_to_start(&mut self, name: ProcessName) -> Result<(Arc<dyn Container>, Pending, Ticket), Refusal> {
        let row = self.row(&name.container)?;
        let entry = row.execs.get_mut(&name.exec).ok_or_else(|| not_found(&name))?;
        if !matches!(row.first.state, State::Running { .. }) {
            return Err(wrong_state(first_of(&name), row.first.state.name(), "an exec runs in a running container"));
        }
        if row.frozen {
            return Err(wrong_state(first_of(&name), "paused", "resume it first"));
        }
        let next = entry.state.next(Step::StartAsked);
        entry.state = next.map_err(|refusal| wrong_state(&name, refusal.state.name(), "start a registered exec once"))?;
        let pending = entry.pending.take().expect("a registered exec has its plan");
        let container = row.container.clone().expect("a running container is there");
        Ok((container, pending, Ticket { serial: entry.serial, name }))
    }

    fn opened(&mut self, ticket: &Ticket, outcome: Result<(), Refusal>, reply: Reply<u32>) {
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

    fn ran(&mut self, ticket: Ticket, outcome: Result<Launched, Refusal>, reply: Reply<u32>) {
        // Its container may have been deleted meanwhile; then the process is dead, and reaped as an orphan.
        let Ok(entry) = self.held(&ticket) else { return answer(reply, Err(not_found(&ticket.name))) };
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

    /// Turns a reaped status into an event.
    fn watch(&self, ticket: Ticket, exit: oneshot::Receiver<u32>) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let status = exit.await.unwrap_or(KILLED_STATUS);
            tell(&events, Event::Ended { ticket, status, at: SystemTime::now() }).await;
        });
    }

    fn ended(&mut self, ticket: &Ticket, status: u32, at: SystemTime) {
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
    fn first_ended(&mut self, id: &str) {
        let Ok(row) = self.row(id) else { return };
        if row.first.state.exit().is_none() {
            return;
        }
        if let Some(container) = row.container.as_ref().filter(|container| !container.ends_with_its_first())
            && let Err(error) = container.signal_all(Signal::KILL)
        {
            log::warn!("processes of container {id:?} may be left over: {}", crate::refusal::with_sources(&error));
        }
        if let Deletion::AwaitsEnd(_) = row.deletion
            && let Deletion::AwaitsEnd(reply) = std::mem::replace(&mut row.deletion, Deletion::Destroying)
        {
            self.destroy(id, reply);
        }
    }

    fn signal(&mut self, name: &ProcessName, signal: Signal, all: bool) -> Result<(), Refusal> {
        let row = self.row(&name.container)?;
        if all && let Some(container) = &row.container {
            return container.signal_all(signal);
        }
        let state = self.entry(name)?.state;
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
            return Err(wrong_state(name, "without a terminal", "only a running process with a terminal can be resized"));
        };
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(master.get_ref(), size)
            .map_err(|errno| Refusal::failed(format!("resize the terminal of {name}"), std::io::Error::from(errno)))
    }

    fn delete(&mut self, name: &ProcessName, reply: Reply<Deleted>) {
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
            (state, Deletion::NotAsked) => answer(reply, Err(wrong_state(name, state.name(), "kill it and wait for its end"))),
        }
    }

    fn delete_exec(&mut self, name: &ProcessName) -> Result<Deleted, Refusal> {
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

    fn destroy(&mut self, id: &str, reply: Reply<Deleted>) {
        let (id, events) = (id.to_owned(), self.events.clone());
        let container = self.rows.get(&id).and_then(|row| row.container.clone());
        tokio::spawn(async move {
            let destroyed = spawn_blocking(move || container.map_or(Ok(()), |container| container.destroy())).await;
            let outcome = destroyed.unwrap_or_else(|error| Err(Refusal::failed("delete the container", error)));
            tell(&events, Event::Destroyed { id, outcome, reply }).await;
        });
    }

    fn destroyed(&mut self, id: &str, outcome: Result<(), Refusal>, reply: Reply<Deleted>) {
        if let Err(refusal) = outcome {
            // Kept, so that the deletion can be tried again.
            self.row(id).map(|row| row.deletion = Deletion::NotAsked).ok();
            return answer(reply, Err(refusal));
        }
        let Some(row) = self.rows.remove(id) else {
            return answer(reply, Err(Refusal::NotFound(format!("container {id:?} was deleted meanwhile"))));
        };
        let lost = Exit { status: KILLED_STATUS, at: SystemTime::now(), oom_killed: false };
        for entry in row.execs.into_values() {
            entry.waiters.into_iter().for_each(|waiter| drop(waiter.send(Ok(lost))));
            if let Some((_, stdio)) = entry.pending {
                self.launcher.forget(stdio);
            }
        }
        answer(reply, Ok(row.first.deleted()));
    }

    fn end_all(&mut self, reply: Reply<()>) {
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
                log::warn!("a container may outlive its pod: {}", crate::refusal::with_sources(&error));
            }
        }
        self.answer_end_if_nothing_lives();
    }

    fn answer_end_if_nothing_lives(&mut self) {
        let lives = |entry: &Entry| entry.state.living_pid().is_some() || matches!(entry.state, State::Creating);
        let any = self.rows.values().any(|row| lives(&row.first) || row.execs.values().any(lives));
        if !any && let Some(reply) = self.ending.take() {
            answer(reply, Ok(()));
        }
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
