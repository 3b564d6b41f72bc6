//! The thread of the socket device: one wait for the guest's kicks, the listener and all host streams.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use super::{
    HostSide, NAME,
    connection::{Action, Connection, Event as Happening},
    greeting::Greeting,
    packet::{HEADER_LEN, Header, PAYLOAD_MAX},
    stream::HostStream,
};
use crate::{
    device::{ActivateError, Activation, Interrupt},
    events::Events,
    fault::Fault,
    finished::{Finished, HeldNews, News},
    served_queue::ServedQueue,
    worker::Serve,
};

/// Most connections at one time, those included that only have bytes left for the host.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// How long the guest may take to answer a call.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long to leave the listener alone when the process has no more descriptors.
const LISTENER_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes in one packet, and so in one buffer.
const BUFFER_LEN_MAX: u64 = HEADER_LEN as u64 + PAYLOAD_MAX as u64;

/// Names a greeting or a connection; never used twice.
pub(super) type Id = u64;

const STOP: u64 = 0;
const RECEIVE_KICK: u64 = 1;
const TRANSMIT_KICK: u64 = 2;
const LISTENER: u64 = 3;
const NEWS_OVERDUE: u64 = 4;
const FIRST_ID: Id = 5;

enum Event {
    Stop,
    ReceiveKick,
    TransmitKick,
    Listener,
    NewsOverdue,
    Program(Id),
}

fn event_of(token: u64) -> Event {
    match token {
        STOP => Event::Stop,
        RECEIVE_KICK => Event::ReceiveKick,
        TRANSMIT_KICK => Event::TransmitKick,
        LISTENER => Event::Listener,
        NEWS_OVERDUE => Event::NewsOverdue,
        id => Event::Program(id),
    }
}

/// The two port numbers that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A host stream and the connection it belongs to; `None` when only bytes for the host are left.
pub(super) struct Entry {
    pub(super) ports: Ports,
    pub(super) stream: HostStream,
    pub(super) connection: Option<Connection>,
    pub(super) queued: bool,
    pub(super) deadline: Option<Instant>,
}

/// All that the thread owns.
pub(crate) struct Muxer {
    pub(super) cid: u64,
    pub(super) host: HostSide,
    pub(super) memory: GuestMemoryMmap,
    pub(super) receive: ServedQueue,
    pub(super) transmit: ServedQueue,
    event: ServedQueue,
    interrupt: Arc<dyn Interrupt>,
    /// Packets of the guest that are out, and of which it has not heard.
    pub(super) finished: Finished,
    held_news: HeldNews,
    pub(super) events: Events,
    pub(super) greetings: BTreeMap<Id, Greeting>,
    pub(super) entries: BTreeMap<Id, Entry>,
    pub(super) by_ports: BTreeMap<Ports, Id>,
    /// Connections that may have something for the guest, in turn.
    pub(super) ready: VecDeque<Id>,
    /// Resets for packets that belong to no connection.
    pub(super) resets: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, Id)>,
    /// Set while the guest has no receive buffers and something waits for one.
    pub(super) starved: bool,
    pub(super) listener_paused: bool,
    pub(super) next_id: Id,
    pub(super) next_host_port: u32,
}

impl Muxer {
    pub(super) fn new(cid: u32, host: HostSide, with: Activation) -> Result<Self, ActivateError> {
        let failed = |operation| move |source| ActivateError::Io { device: NAME.into(), operation, source };
        let queues = <[_; 3]>::try_from(with.queues)
            .map_err(|_| failed("activation")(io::Error::other("the device has three queues")))?;
        let [receive, transmit, event] = queues;
        host.listener.set_nonblocking(true).map_err(failed("making the listener non-blocking"))?;
        Ok(Self {
            cid: u64::from(cid),
            host,
            memory: with.memory,
            receive: ServedQueue::new(0, receive, BUFFER_LEN_MAX),
            transmit: ServedQueue::new(1, transmit, BUFFER_LEN_MAX),
            event: ServedQueue::new(2, event, BUFFER_LEN_MAX),
            interrupt: with.interrupt,
            finished: Finished::default(),
            held_news: HeldNews::new().map_err(failed("timerfd_create"))?,
            events: Events::new().map_err(failed("epoll"))?,
            greetings: BTreeMap::new(),
            entries: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: BTreeSet::new(),
            starved: false,
            listener_paused: false,
            next_id: FIRST_ID,
            next_host_port: super::host_side::HOST_PORT_FIRST,
        })
    }

    /// The doors for the next life, and the queues' positions. All connections end here.
    pub(super) fn into_parts(self) -> (HostSide, Vec<QueueState>) {
        self.entries.values().for_each(|entry| self.events.forget(entry.stream.socket()));
        self.greetings.values().for_each(|greeting| self.events.forget(greeting.stream()));
        self.events.forget(&self.host.listener);
        (self.host, vec![self.receive.state(), self.transmit.state(), self.event.state()])
    }

    /// Moves as much as one turn allows in both directions. True when there is more to do at once.
    pub(super) fn turn(&mut self) -> Result<bool, Fault> {
        self.transmit.refuse_kicks(&self.memory)?;
        self.receive.refuse_kicks(&self.memory)?;
        let mut more = self.take_from_guest()?;
        more |= self.give_to_guest()?;
        self.signal(false)?;
        // Receive buffers come in quantities; their kick is worth an exit only when one is missing.
        if self.starved {
            more |= self.receive.want_kicks(&self.memory)?;
        }
        if !more {
            more = self.transmit.want_kicks(&self.memory)?;
        }
        Ok(more)
    }

    /// One interrupt for both queues: on one line the driver looks at both. That a few packets are out may wait for the next one, if it is not `overdue`.
    fn signal(&mut self, overdue: bool) -> Result<(), Fault> {
        let receive = self.receive.signal_due(&self.memory)?;
        if !receive && !overdue && self.finished.news(&self.transmit, &self.memory)? == News::Later {
            return self.held_news.hold();
        }
        self.held_news.told();
        let transmit = self.transmit.signal_due(&self.memory)?;
        if receive || transmit {
            self.finished = Finished::default();
        }
        match (receive, transmit) {
            (true, true) => self.interrupt.signal_queues(&[self.receive.index(), self.transmit.index()]),
            (true, false) => self.interrupt.signal_queue(self.receive.index()),
            (false, true) => self.interrupt.signal_queue(self.transmit.index()),
            (false, false) => (),
        }
        Ok(())
    }

    fn watch_all(&self, stop: &EventFd) -> io::Result<()> {
        self.events.watch(stop, EventSet::IN, STOP)?;
        self.events.watch(self.receive.kick(), EventSet::IN, RECEIVE_KICK)?;
        self.events.watch(self.transmit.kick(), EventSet::IN, TRANSMIT_KICK)?;
        self.events.watch(&self.held_news, EventSet::IN, NEWS_OVERDUE)?;
        self.events.watch(&self.host.listener, EventSet::IN, LISTENER)
    }

    pub(super) fn watch_listener(&self) -> io::Result<()> {
        self.events.watch(&self.host.listener, EventSet::IN, LISTENER)
    }

    /// How long the next wait may take.
    fn patience(&self, more: bool) -> Option<Duration> {
        if more {
            return Some(Duration::ZERO);
        }
        let deadline = self.deadlines.first().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        if self.listener_paused {
            return Some(deadline.map_or(LISTENER_PAUSE, |deadline| deadline.min(LISTENER_PAUSE)));
        }
        deadline
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.deadlines.pop_first() {
            if at > now {
                self.deadlines.insert((at, id));
                return;
            }
            self.tell(id, Happening::Deadline);
        }
    }

    pub(super) fn new_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Adds a connection; the guest has [`ANSWER_TIME`] when the host calls.
    pub(super) fn insert(&mut self, id: Id, ports: Ports, stream: HostStream, connection: Connection) {
        let deadline = connection.waits_for_answer().then(|| Instant::now() + ANSWER_TIME);
        self.deadlines.extend(deadline.map(|at| (at, id)));
        self.by_ports.insert(ports, id);
        self.entries.insert(id, Entry { ports, stream, connection: Some(connection), queued: false, deadline });
        self.enqueue(id);
    }

    /// Gives the connection its turn, if it has something for the guest.
    pub(super) fn enqueue(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let readable = entry.stream.readable();
        let wants = entry.connection.as_ref().is_some_and(|connection| connection.next(readable).is_some());
        if wants && !entry.queued {
            entry.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Moves a connection's state by an event that carries no payload.
    pub(super) fn tell(&mut self, id: Id, happening: Happening) {
        let Some(connection) = self.entries.get_mut(&id).and_then(|entry| entry.connection.as_mut()) else { return };
        let action = connection.on(happening);
        self.act(id, action);
    }

    /// Carries out what a connection asks for. Payload is the caller's business.
    pub(super) fn act(&mut self, id: Id, action: Action) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match action {
            Action::Nothing | Action::Deliver => (),
            Action::Established => self.established(id),
            Action::Finish => entry.stream.finish(),
            Action::Refuse => entry.stream.refuse_input(),
            Action::Leave { reset } => self.leave(id, reset),
        }
        self.enqueue(id);
    }

    fn established(&mut self, id: Id) {
        self.clear_deadline(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !entry.stream.say(&format!("OK {}\n", entry.ports.host)) {
            self.program_gone(id);
        }
    }

    fn clear_deadline(&mut self, id: Id) {
        let deadline = self.entries.get_mut(&id).and_then(|entry| entry.deadline.take());
        if let Some(at) = deadline {
            self.deadlines.remove(&(at, id));
        }
    }

    /// The guest's side is over: what it sent is still delivered, then the host's stream ends.
    pub(super) fn leave(&mut self, id: Id, reset: bool) {
        self.clear_deadline(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.connection = None;
        entry.stream.finish();
        let ports = entry.ports;
        self.by_ports.remove(&ports);
        if reset {
            let header = self.reset_header(ports);
            self.push_reset(header);
        }
        self.remove_when_flushed(id);
    }

    /// Ends a stream whose guest is gone and whose bytes are delivered.
    pub(super) fn remove_when_flushed(&mut self, id: Id) {
        let over = |entry: &Entry| entry.connection.is_none() && entry.stream.flushed();
        if self.entries.get(&id).is_some_and(over)
            && let Some(mut entry) = self.entries.remove(&id)
        {
            self.events.forget(entry.stream.socket());
            entry.stream.discard_input();
        }
    }
}

impl Serve for Muxer {
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
        self.watch_all(stop).map_err(Fault::io("epoll_ctl"))?;
        let mut more = true;
        loop {
            for event in self.events.wait(self.patience(more)).map_err(Fault::io("epoll_wait"))? {
                match event_of(event.data()) {
                    Event::Stop => return self.signal(true),
                    Event::ReceiveKick => self.receive.clear_kick(),
                    Event::TransmitKick => self.transmit.clear_kick(),
                    Event::Listener => self.accept(),
                    Event::NewsOverdue => {
                        self.held_news.clear_alarm();
                        self.signal(true)?;
                    }
                    Event::Program(id) => self.on_program(id, event.event_set()),
                }
            }
            self.expire();
            self.resume_listener();
            more = self.turn()?;
        }
    }
}
