//! One connection as the protocol sees it. Pure: packets and happenings in, one action out; no socket, no memory, no clock.
//!
//! ```text
//!   host calls:   Calling --RESPONSE from the guest--> Open
//!   guest calls:  Accepting --our RESPONSE is sent---> Open
//!   any phase --RST, both shutdowns, or a broken rule--> Leave: the guest's side is over
//! ```
//! # Credit
//! Each side says in every packet how large its window is and how many bytes it has taken out of it so far, modulo 2^32. The sender keeps
//! `sent - taken <= window`. We grant a window that never changes, count bytes as taken when the host's stream has them, and answer a sender
//! that exceeds the window with a reset. The guest's own figures are believed only to decide how much we send to it:
//! a guest that lies there gets bytes it has no room for, or none.
//!
//! # What is sent next
//! [`Connection::next`] derives it from the state, so there is no queue of packets that could grow: at most one packet of each kind is ever due.

use super::packet::{Header, NO_MORE_RECEIVE, NO_MORE_SEND, Op};

/// Both directions.
const NO_MORE: u32 = NO_MORE_RECEIVE | NO_MORE_SEND;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host calls. The request may have been sent.
    Calling {
        asked: bool,
    },
    /// The guest has called and is to be answered.
    Accepting,
    Open,
}

/// What can happen to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest sent this.
    Packet(Header),
    /// The host sends no more; all it sent has been read.
    HostEnd,
    /// The host takes no more.
    HostGone,
    /// The host took so many bytes of what the guest sent, or they were dropped because it takes none.
    HostTook(u32),
    /// The time for the guest's answer is over.
    Deadline,
}

/// What is to be done about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The guest has accepted the host's call.
    Established,
    /// Pass the packet's payload on to the host.
    Deliver,
    /// The guest sends no more: end of file for the host, after what is kept.
    Finish,
    /// The guest takes no more: the host is to write no more.
    Refuse,
    /// The guest's side is over. `reset` says whether the guest is to be told.
    Leave {
        reset: bool,
    },
}

/// What is to be sent to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A packet without payload.
    Control { op: Op, flags: u32 },
    /// Bytes from the host, at most so many.
    Data { max: u32 },
}

/// The protocol's state of one connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    phase: Phase,
    // What the guest sends: the window it was granted, what it has sent, what the host took, and what the guest was last told of that.
    window: u32,
    received: u32,
    taken: u32,
    told: u32,
    // What the guest takes: its window, what it says it has taken, and what it was sent.
    guest_window: u32,
    guest_taken: u32,
    sent: u32,
    update_wanted: bool,
    credit_asked: bool,
    // Directions that the guest has shut, that the host has shut, and that the guest was told of.
    guest_shut: u32,
    host_shut: u32,
    told_shut: u32,
}

impl Connection {
    fn new(phase: Phase, window: u32) -> Self {
        Self {
            phase,
            window,
            received: 0,
            taken: 0,
            told: 0,
            guest_window: 0,
            guest_taken: 0,
            sent: 0,
            update_wanted: false,
            credit_asked: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
        }
    }

    /// The host calls the guest, and grants it `window` bytes.
    pub(super) fn calling(window: u32) -> Self {
        Self::new(Phase::Calling { asked: false }, window)
    }

    /// The guest has called with `request`; it is granted `window` bytes.
    pub(super) fn accepting(window: u32, request: &Header) -> Self {
        let mut connection = Self::new(Phase::Accepting, window);
        connection.note_credit(request);
        connection
    }

    /// Whether the guest's answer is still to come.
    pub(super) fn waits_for_answer(&self) -> bool {
        matches!(self.phase, Phase::Calling { .. })
    }

    /// Moves the state by one event.
    pub(super) fn on(&mut self, event: Event) -> Action {
        match event {
            Event::Packet(header) => self.on_packet(&header),
            Event::HostTook(bytes) => {
                self.taken = self.taken.wrapping_add(bytes);
                Action::Nothing
            }
            Event::HostEnd => {
                self.host_shut |= NO_MORE_SEND;
                Action::Nothing
            }
            Event::HostGone => self.on_host_gone(),
            Event::Deadline if self.waits_for_answer() => Action::Leave { reset: self.known_to_guest() },
            Event::Deadline => Action::Nothing,
        }
    }

    fn known_to_guest(&self) -> bool {
        self.phase != Phase::Calling { asked: false }
    }

    fn on_host_gone(&mut self) -> Action {
        if self.waits_for_answer() {
            return Action::Leave { reset: self.known_to_guest() };
        }
        self.host_shut |= NO_MORE_RECEIVE;
        Action::Nothing
    }

    fn on_packet(&mut self, header: &Header) -> Action {
        self.note_credit(header);
        match (header.op, self.phase) {
            (Op::Reset, _) => Action::Leave { reset: false },
            (Op::Response, Phase::Calling { asked: true }) => {
                self.phase = Phase::Open;
                Action::Established
            }
            (Op::Shutdown, Phase::Accepting | Phase::Open) => self.on_shutdown(header.flags),
            (Op::Data, Phase::Open) => self.on_data(header.len),
            (Op::CreditUpdate, Phase::Accepting | Phase::Open) => Action::Nothing,
            (Op::CreditRequest, Phase::Accepting | Phase::Open) => {
                self.update_wanted = true;
                Action::Nothing
            }
            _ => Action::Leave { reset: true },
        }
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_window = header.window;
        self.guest_taken = header.taken;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    // Flags accumulate and never go back (section 5.10.6.5).
    fn on_shutdown(&mut self, flags: u32) -> Action {
        let fresh = flags & NO_MORE & !self.guest_shut;
        self.guest_shut |= fresh;
        match fresh {
            _ if self.guest_shut == NO_MORE => Action::Leave { reset: true },
            NO_MORE_SEND => Action::Finish,
            NO_MORE_RECEIVE => Action::Refuse,
            _ => Action::Nothing,
        }
    }

    fn on_data(&mut self, len: u32) -> Action {
        let kept = self.received.wrapping_sub(self.taken);
        let room = self.window.saturating_sub(kept);
        if len > room || self.guest_shut & NO_MORE_SEND != 0 {
            return Action::Leave { reset: true };
        }
        self.received = self.received.wrapping_add(len);
        if self.host_shut & NO_MORE_RECEIVE != 0 {
            // Nobody will take it, and the guest need not wait to learn so.
            self.taken = self.taken.wrapping_add(len);
            return Action::Nothing;
        }
        Action::Deliver
    }

    /// Bytes that the guest has room for, by its own account.
    fn credit(&self) -> u32 {
        self.guest_window.saturating_sub(self.sent.wrapping_sub(self.guest_taken))
    }

    /// What to send next. `readable` says whether the host may have sent something.
    pub(super) fn next(&self, readable: bool) -> Option<Next> {
        let control = |op, flags| Some(Next::Control { op, flags });
        match self.phase {
            Phase::Calling { asked: false } => return control(Op::Request, 0),
            Phase::Calling { asked: true } => return None,
            Phase::Accepting => return control(Op::Response, 0),
            Phase::Open => (),
        }
        let host_sends = readable && self.host_shut & NO_MORE_SEND == 0 && self.guest_shut & NO_MORE_RECEIVE == 0;
        let credit = self.credit();
        if host_sends && credit > 0 {
            return Some(Next::Data { max: credit });
        }
        if self.host_shut & !self.told_shut != 0 {
            return control(Op::Shutdown, self.host_shut);
        }
        if self.update_due() {
            return control(Op::CreditUpdate, 0);
        }
        if host_sends && !self.credit_asked {
            return control(Op::CreditRequest, 0);
        }
        None
    }

    // Every packet tells what was taken, so an update of its own is due only when the guest may be about to wait for it.
    fn update_due(&self) -> bool {
        let untold = self.taken.wrapping_sub(self.told);
        self.update_wanted || (untold >= self.window / 2 && self.guest_shut & NO_MORE_SEND == 0)
    }

    /// Notes that a packet is sent; returns the window and the bytes taken, for its header.
    pub(super) fn sent(&mut self, op: Op, flags: u32, len: u32) -> (u32, u32) {
        match op {
            Op::Request => self.phase = Phase::Calling { asked: true },
            Op::Response => self.phase = Phase::Open,
            Op::Data => self.sent = self.sent.wrapping_add(len),
            Op::Shutdown => self.told_shut |= flags,
            Op::CreditRequest => self.credit_asked = true,
            Op::CreditUpdate | Op::Reset | Op::Unknown(_) => (),
        }
        self.told = self.taken;
        self.update_wanted = false;
        (self.window, self.taken)
    }
}

#[cfg(test)]
mod tests;
