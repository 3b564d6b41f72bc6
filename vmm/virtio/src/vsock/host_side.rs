//! The socket device towards host programs: the listener, greetings, and what their streams report.

use std::{io, os::unix::net::UnixStream};

use vmm_sys_util::epoll::EventSet;

use super::{
    connection::{Connection, Event as Happening},
    greeting::{Greeting, Progress},
    muxer::{CONNECTIONS_MAX, Id, Muxer, Ports},
    stream::{HostStream, HostWrite},
};
use crate::log_limit::warn_limited;

/// First host port for calls by the host; the guest's calls use small numbers.
pub(super) const HOST_PORT_FIRST: u32 = 1 << 30;
/// Programs that have connected and not said what they want. One more pushes out the oldest.
const GREETINGS_MAX: usize = 64;
/// Programs accepted in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// The window that a new connection grants to the guest, by the number of connections that there are: all of them full is 36 MiB.
pub(super) fn window_for(connections: usize) -> u32 {
    match connections {
        0..32 => 256 * 1024,
        32..256 => 64 * 1024,
        _ => 16 * 1024,
    }
}

fn stream_interest() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

impl Muxer {
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.host.listener.accept() {
                Ok((stream, _)) => self.greet(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    warn_limited!(
                        "vsock: a host program cannot be accepted: {error}: is the limit of open files too low?"
                    );
                    self.events.forget(&self.host.listener);
                    self.listener_paused = true;
                    return;
                }
            }
        }
    }

    pub(super) fn resume_listener(&mut self) {
        if self.listener_paused {
            self.listener_paused = self.watch_listener().is_err();
        }
    }

    fn greet(&mut self, stream: UnixStream) {
        if self.greetings.len() >= GREETINGS_MAX
            && let Some((_, oldest)) = self.greetings.pop_first()
        {
            warn_limited!("vsock: a host program that never said CONNECT makes room for another");
            self.events.forget(oldest.stream());
        }
        let id = self.new_id();
        let watched = stream.set_nonblocking(true).and_then(|()| self.events.watch(&stream, EventSet::IN, id));
        match watched {
            Ok(()) => {
                self.greetings.insert(id, Greeting::new(stream));
                self.on_greeting(id);
            }
            Err(error) => warn_limited!("vsock: a host program cannot be watched: {error}"),
        }
    }

    /// A host program's stream has news.
    pub(super) fn on_program(&mut self, id: Id, news: EventSet) {
        if self.greetings.contains_key(&id) {
            self.on_greeting(id);
        } else {
            self.on_stream(id, news);
        }
    }

    fn on_greeting(&mut self, id: Id) {
        let Some(greeting) = self.greetings.get_mut(&id) else { return };
        let progress = greeting.advance();
        if progress == Progress::Partial {
            return;
        }
        let Some(greeting) = self.greetings.remove(&id) else { return };
        self.events.forget(greeting.stream());
        match progress {
            Progress::Port(port) => self.call_guest(id, port, greeting.into_stream()),
            Progress::Bad | Progress::Partial => log::debug!("vsock: a host program left without a proper CONNECT"),
        }
    }

    fn call_guest(&mut self, id: Id, guest_port: u32, stream: UnixStream) {
        if self.entries.len() >= CONNECTIONS_MAX {
            warn_limited!("vsock: all {CONNECTIONS_MAX} connections are in use; port {guest_port} is not called");
            return;
        }
        let ports = Ports { host: self.free_host_port(guest_port), guest: guest_port };
        let connection = Connection::calling(window_for(self.entries.len()));
        self.adopt(id, ports, stream, connection);
    }

    // There are fewer connections than port numbers, so a free one is found within as many steps as there are connections.
    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(HOST_PORT_FIRST);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Makes a host stream a connection's. False when the kernel refuses to watch it.
    pub(super) fn adopt(&mut self, id: Id, ports: Ports, stream: UnixStream, connection: Connection) -> bool {
        let stream = HostStream::new(stream).and_then(|stream| {
            self.events.watch(stream.socket(), stream_interest(), id)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                self.insert(id, ports, stream, connection);
                true
            }
            Err(error) => {
                warn_limited!("vsock: a host stream cannot be watched: {error}");
                false
            }
        }
    }

    fn on_stream(&mut self, id: Id, news: EventSet) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let closed = EventSet::HANG_UP | EventSet::ERROR;
        if news.intersects(EventSet::IN | EventSet::READ_HANG_UP | closed) {
            entry.stream.set_readable();
        }
        if news.intersects(EventSet::OUT | closed) {
            entry.stream.set_writable();
            self.flush(id);
        }
        if news.intersects(closed) {
            self.program_gone(id);
        }
        self.enqueue(id);
    }

    fn flush(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match entry.stream.flush() {
            HostWrite::Took(bytes) => {
                self.tell(id, Happening::HostTook(u32::try_from(bytes).unwrap_or(u32::MAX)));
                self.remove_when_flushed(id);
            }
            HostWrite::Gone => self.program_gone(id),
        }
    }

    /// The program takes no more bytes. It may have sent some before it left, and they still go to the guest.
    pub(super) fn program_gone(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let dropped = u32::try_from(entry.stream.drop_backlog()).unwrap_or(u32::MAX);
        self.tell(id, Happening::HostTook(dropped));
        self.tell(id, Happening::HostGone);
        self.remove_when_flushed(id);
    }
}
