//! The thread of a network device: all its queues, its taps, its link and its alarm, in one wait.
//!
//! # Few exits
//! A guest pays for each kick and for each interrupt. So kicks are asked for only when all is done, buffers of the
//! receive queue only when one is missing, and an interrupt is raised once a turn for all queues, if the driver's event index wants it. That a few
//! small frames are out is no reason for one of its own ([`crate::finished`]).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use super::{
    backend::{NetBackend, Offloads, set_offloads, share_out},
    control::ControlQueue,
    counters::NetCounters,
    receive::Receiver,
    token::{ALARM, CONTROL_KICK, Event, NEWS_OVERDUE, RECEIVE_KICK, STOP, TAP, TRANSMIT_KICK, event_of, token},
    transmit::Transmitter,
    turn::{Limits, Pause, Turn},
};
use crate::{
    device::Interrupt,
    events::Events,
    fault::Fault,
    finished::{HeldNews, News},
    log_limit::warn_limited,
    worker::Serve,
};

/// A queue pair, and what is known of its tap.
pub(super) struct Pair {
    pub(super) transmit: Transmitter,
    pub(super) receive: Receiver,
    /// A frame may wait in the tap.
    readable: bool,
    /// The thread's wait reports when one does.
    watched: bool,
    /// Frames stay in the tap, for lack of buffers or for a limit.
    held: bool,
    /// Chains of the guest stay in its queue for a limit.
    limited: bool,
}

impl Pair {
    pub(super) fn new(transmit: Transmitter, receive: Receiver) -> Self {
        Self { transmit, receive, readable: false, watched: false, held: false, limited: false }
    }
}

/// What a device keeps from one life to the next.
pub(super) struct Kept {
    /// The host's ends of all queue pairs, in order; empty once the interface is gone.
    pub(super) backends: Vec<Box<dyn NetBackend>>,
    pub(super) limits: Limits,
}

/// What the device and its figures know of, too.
pub(super) struct Shared {
    pub(super) name: String,
    /// The interface on the host is there.
    pub(super) link_is_up: AtomicBool,
    pub(super) counters: Arc<NetCounters>,
}

/// Offset of `status` in the configuration space (section 5.1.4).
const CONFIG_STATUS_OFFSET: u32 = 6;

impl Shared {
    /// Tells the driver, once, that its link is down: no bit of `status` is set any more.
    pub(super) fn take_link_down(&self, interrupt: &dyn Interrupt) {
        if self.link_is_up.swap(false, Ordering::SeqCst) {
            warn_limited!("device {}: the interface on the host is gone: the link is down", self.name);
            interrupt.signal_config(CONFIG_STATUS_OFFSET, 0);
        }
    }
}

/// All that the thread owns.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) pairs: Vec<Pair>,
    pub(super) control: Option<ControlQueue>,
    pub(super) backends: Vec<Box<dyn NetBackend>>,
    pub(super) offloads: Offloads,
    pub(super) events: Events,
    pub(super) limits: Limits,
    pub(super) held_news: HeldNews,
    /// Queue pairs that the driver uses: the first ones.
    pub(super) joined: u16,
}

/// What is left to do after a turn.
#[derive(Default)]
struct Left {
    more: bool,
    wait_nanos: Option<u64>,
    gone: bool,
}

impl Left {
    fn add(&mut self, pause: Pause) {
        match pause {
            Pause::Share => self.more = true,
            Pause::Limit(nanos) => self.wait_nanos = Some(self.wait_nanos.map_or(nanos, |least| least.min(nanos))),
            Pause::Gone => self.gone = true,
            Pause::Drained | Pause::NoBuffers => (),
        }
    }
}

impl Serve for Server {
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
        self.watch_all(stop).map_err(Fault::io("epoll"))?;
        self.join_taps();
        // Chains may have been made available before the device was active, or by an earlier life of it.
        let mut more = true;
        loop {
            let timeout = more.then_some(Duration::ZERO);
            let events = self.events.wait(timeout).map_err(Fault::io("epoll_wait"))?;
            self.shared.counters.wakeups.add(u64::from(!more));
            for event in events {
                match event_of(event.data()) {
                    Event::Stop => return self.signal(true),
                    Event::Alarm => self.limits.timer.clear(),
                    Event::NewsOverdue => {
                        self.held_news.clear_alarm();
                        self.signal(true)?;
                    }
                    Event::ControlKick => self.clear_control_kick(),
                    Event::ReceiveKick(pair) => self.clear_kick(pair, true),
                    Event::TransmitKick(pair) => self.clear_kick(pair, false),
                    Event::Tap(pair) => self.tap_calls(pair, event.event_set()),
                }
            }
            more = self.turn()?;
        }
    }
}

impl Server {
    /// What is for the next life, the taps as they were before this one, and the queues' positions.
    pub(super) fn into_parts(mut self) -> (Kept, Vec<QueueState>) {
        self.leave_taps();
        let control = self.control.iter().map(ControlQueue::state).collect::<Vec<_>>();
        let states = self.pairs.into_iter().flat_map(|pair| {
            let transmit = pair.transmit.state();
            [pair.receive.into_state(), transmit]
        });
        let states = states.chain(control).collect();
        (Kept { backends: self.backends, limits: self.limits }, states)
    }

    fn watch_all(&mut self, stop: &EventFd) -> io::Result<()> {
        self.events.watch(stop, EventSet::IN, STOP)?;
        self.events.watch(&self.limits.timer, EventSet::IN, ALARM)?;
        self.events.watch(&self.held_news, EventSet::IN, NEWS_OVERDUE)?;
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            self.events.watch(pair.receive.queue().kick(), EventSet::IN, token(index, RECEIVE_KICK))?;
            self.events.watch(pair.transmit.queue().kick(), EventSet::IN, token(index, TRANSMIT_KICK))?;
        }
        match &mut self.control {
            Some(control) => self.events.watch(control.queue().kick(), EventSet::IN, CONTROL_KICK),
            None => Ok(()),
        }
    }

    fn clear_kick(&mut self, pair: usize, receive: bool) {
        let Some(pair) = self.pairs.get_mut(pair) else { return };
        let kicks = if receive { pair.receive.queue().take_kicks() } else { pair.transmit.queue().take_kicks() };
        self.shared.counters.kicks.add(kicks);
    }

    fn clear_control_kick(&mut self) {
        self.control.iter_mut().for_each(|control| control.queue().clear_kick());
    }

    fn tap_calls(&mut self, pair: usize, state: EventSet) {
        if state.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.lose_link();
        } else if let Some(pair) = self.pairs.get_mut(pair) {
            pair.readable = true;
        }
    }

    /// Moves as much as one turn allows in all directions. True when there is more to do at once.
    fn turn(&mut self) -> Result<bool, Fault> {
        let mut left = self.move_frames()?;
        let joined_before = self.joined;
        if let Some(control) = &mut self.control {
            left.more |= control.turn(&self.memory, &mut self.joined)?;
        }
        self.signal(false)?;
        if left.gone {
            self.lose_link();
        } else if self.joined != joined_before {
            self.share_out();
        }
        self.watch_taps();
        if let Some(nanos) = left.wait_nanos {
            self.limits.timer.set(nanos).map_err(Fault::io("timerfd_settime"))?;
        }
        if !left.more {
            for pair in &mut self.pairs {
                // Held back by a limit, frames wait for the alarm and not for a kick.
                left.more |= pair.transmit.queue().want_kicks(&self.memory)? && !pair.limited;
            }
        }
        Ok(left.more)
    }

    fn move_frames(&mut self) -> Result<Left, Fault> {
        let Shared { name, counters, .. } = &*self.shared;
        let Limits { transmit, receive, timer } = &mut self.limits;
        let turn = Turn { name, memory: &self.memory, counters, timer };
        let joined = usize::from(self.joined);
        let mut left = Left::default();
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            pair.transmit.queue().refuse_kicks(&self.memory)?;
            pair.receive.queue().refuse_kicks(&self.memory)?;
            // What is sent by a pair that the driver does not use takes the first tap: its own is not joined.
            let mut backend = self.backends.get_mut(if index < joined { index } else { 0 });
            let pause = pair.transmit.turn(&turn, transmit, backend.as_deref_mut())?;
            pair.limited = matches!(pause, Pause::Limit(_));
            note_limit(pause, counters);
            left.add(pause);
            let Some(backend) = backend.filter(|_| pair.readable && index < joined) else { continue };
            let pause = pair.receive.turn(&turn, receive, backend)?;
            let held = matches!(pause, Pause::NoBuffers | Pause::Limit(_));
            if held && !pair.held {
                note_limit(pause, counters);
                counters.starved.add(u64::from(pause == Pause::NoBuffers));
            }
            pair.held = held;
            pair.readable = pause != Pause::Drained;
            left.add(pause);
        }
        Ok(left)
    }

    /// One interrupt for all queues: on one line the driver looks at all of them. What it hears of frames that are out may wait for the next one, if
    /// it is not `overdue`.
    fn signal(&mut self, overdue: bool) -> Result<(), Fault> {
        let mut due = Vec::new();
        let receive = self.pairs.iter_mut().map(|pair| pair.receive.queue());
        for queue in receive.chain(self.control.iter_mut().map(ControlQueue::queue)) {
            if queue.signal_due(&self.memory)? {
                due.push(queue.index());
            }
        }
        if due.is_empty() && !overdue && self.news_waits()? {
            return self.held_news.hold();
        }
        self.held_news.told();
        for pair in &mut self.pairs {
            if pair.transmit.queue().signal_due(&self.memory)? {
                due.push(pair.transmit.queue().index());
            }
        }
        if !due.is_empty() {
            self.pairs.iter_mut().for_each(|pair| pair.transmit.told());
            self.interrupt.signal_queues(&due);
            self.shared.counters.interrupts.add(1);
        }
        Ok(())
    }

    /// Whether there is news, and none that the driver is to hear at once.
    fn news_waits(&self) -> Result<bool, Fault> {
        let mut waits = false;
        for pair in &self.pairs {
            match pair.transmit.news(&self.memory)? {
                News::Now => return Ok(false),
                News::Later => waits = true,
                News::Unwanted => {}
            }
        }
        Ok(waits)
    }

    /// A tap whose frames may not be taken yet is not waited for: it would be readable all the time.
    fn watch_taps(&mut self) {
        let mut failure = None;
        for (index, (pair, backend)) in self.pairs.iter_mut().zip(&self.backends).enumerate() {
            // A queue that is not joined is in error, which would be reported all the time, too.
            let wanted = !pair.held && index < usize::from(self.joined);
            if wanted == pair.watched {
                continue;
            }
            let tap = backend.as_raw_fd();
            match wanted {
                true => failure = self.events.watch(&tap, EventSet::IN, token(index, TAP)).err().or(failure),
                false => self.events.forget(&tap),
            }
            pair.watched = wanted;
        }
        if let Some(error) = failure {
            warn_limited!("device {}: its tap cannot be waited for: {error}", self.shared.name);
            self.lose_link();
        }
    }

    /// The interface is gone, which is no reason to end a machine: the guest sees its link go down.
    fn lose_link(&mut self) {
        if self.backends.is_empty() {
            return;
        }
        self.leave_taps();
        self.backends = Vec::new();
        self.shared.take_link_down(&*self.interrupt);
    }

    /// Makes the tap send what this driver understands, and waits for its frames.
    fn join_taps(&mut self) {
        self.pairs.iter_mut().for_each(|pair| (pair.readable, pair.held) = (false, false));
        match set_offloads(&mut self.backends, self.offloads) {
            Ok(()) => {
                self.share_out();
                self.watch_taps();
            }
            Err(error) => {
                warn_limited!("device {}: its tap does not take the driver's offloads: {error}", self.shared.name);
                self.lose_link();
            }
        }
    }

    /// Only queue pairs that the driver uses get frames.
    fn share_out(&mut self) {
        for (pair, backend) in self.pairs.iter_mut().zip(&self.backends).skip(usize::from(self.joined)) {
            if std::mem::take(&mut pair.watched) {
                self.events.forget(&backend.as_raw_fd());
                pair.readable = false;
            }
        }
        share_out(&self.shared.name, &mut self.backends, self.joined);
    }

    /// The reverse of [`Self::join_taps`]; what fails is gone anyhow.
    fn leave_taps(&mut self) {
        for (pair, backend) in self.pairs.iter_mut().zip(&self.backends) {
            if std::mem::take(&mut pair.watched) {
                self.events.forget(&backend.as_raw_fd());
            }
        }
        if let Err(error) = set_offloads(&mut self.backends, Offloads::default()) {
            log::debug!("device {}: the offloads of its tap stay: {error}", self.shared.name);
        }
    }
}

fn note_limit(pause: Pause, counters: &NetCounters) {
    counters.held_by_rate.add(u64::from(matches!(pause, Pause::Limit(_))));
}
