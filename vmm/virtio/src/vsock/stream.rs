//! The host's end of a connection: a non-blocking unix stream with what it has not taken yet.
//!
//! Readiness is remembered from edge-triggered events, so that an idle or stalled stream costs nothing and needs no change of its watch.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::backlog::Backlog;

/// What reading from the host gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostRead {
    Bytes(usize),
    Nothing,
    End,
}

/// What writing to the host did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostWrite {
    /// It took so many bytes; the rest, if any, waits.
    Took(usize),
    /// It will never take any more.
    Gone,
}

/// A host stream.
#[derive(Debug)]
pub(super) struct HostStream {
    socket: UnixStream,
    backlog: Backlog,
    readable: bool,
    writable: bool,
    finishing: bool,
}

impl HostStream {
    /// Takes over a connected stream, which may have bytes waiting already.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, backlog: Backlog::default(), readable: true, writable: true, finishing: false })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Whether a read may give something. Only a read can tell.
    pub(super) fn readable(&self) -> bool {
        self.readable
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    pub(super) fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Whether everything the guest sent has been taken.
    pub(super) fn flushed(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Fills as much of `into` as the host has sent.
    pub(super) fn read(&mut self, into: &mut VolatileSlice<'_>) -> HostRead {
        if !self.readable {
            return HostRead::Nothing;
        }
        loop {
            return match (&self.socket).read_volatile(into) {
                Ok(0) => self.ended(),
                Ok(len) => HostRead::Bytes(len),
                Err(error) => match kind_of(&error) {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        HostRead::Nothing
                    }
                    // The program left with bytes unread; what it had sent came out before this error.
                    _ => self.ended(),
                },
            };
        }
    }

    fn ended(&mut self) -> HostRead {
        self.readable = false;
        HostRead::End
    }

    /// Says one line of our own to a program that has nothing else to read yet. False when it does not take it whole.
    pub(super) fn say(&mut self, line: &str) -> bool {
        self.backlog.is_empty() && matches!((&self.socket).write(line.as_bytes()), Ok(len) if len == line.len())
    }

    /// Passes guest memory on, straight from where it is; what the host does not take is copied and kept.
    /// When it is gone, nothing of this slice or before it is kept.
    pub(super) fn write(&mut self, slice: &VolatileSlice<'_>) -> HostWrite {
        let mut written = 0;
        while self.writable && self.backlog.is_empty() && written < slice.len() {
            let Ok(rest) = slice.offset(written) else { return HostWrite::Gone };
            match (&self.socket).write_volatile(&rest) {
                Ok(len) => written += len,
                Err(error) => match kind_of(&error) {
                    io::ErrorKind::Interrupted => (),
                    io::ErrorKind::WouldBlock => self.writable = false,
                    _ => return HostWrite::Gone,
                },
            }
        }
        let kept = slice.offset(written).is_ok_and(|rest| self.backlog.append(&rest).is_ok());
        if kept { HostWrite::Took(written) } else { HostWrite::Gone }
    }

    /// Writes what was kept, as far as the host takes it now.
    pub(super) fn flush(&mut self) -> HostWrite {
        let mut written = 0;
        while self.writable && !self.backlog.is_empty() {
            match self.backlog.write_to(&self.socket) {
                Ok(len) => written += len,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => (),
                    io::ErrorKind::WouldBlock => self.writable = false,
                    _ => return HostWrite::Gone,
                },
            }
        }
        self.finish_when_flushed();
        HostWrite::Took(written)
    }

    /// The host takes no more: forgets what was kept; returns how many bytes that was.
    pub(super) fn drop_backlog(&mut self) -> usize {
        std::mem::take(&mut self.backlog).len()
    }

    /// No more will come from the guest: end of file for the host, after what is kept.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.finish_when_flushed();
    }

    fn finish_when_flushed(&mut self) {
        if self.finishing && self.backlog.is_empty() {
            self.shut(Shutdown::Write);
        }
    }

    /// The guest takes no more: the host's next write fails instead of vanishing.
    pub(super) fn refuse_input(&mut self) {
        self.readable = false;
        self.shut(Shutdown::Read);
    }

    fn shut(&self, how: Shutdown) {
        if let Err(error) = self.socket.shutdown(how) {
            log::debug!("a host stream was already shut: {error}");
        }
    }

    /// Forgets input that nobody will take, so that closing does not turn the host's end of file into a connection reset.
    pub(super) fn discard_input(&mut self) {
        let mut scrap = [0; 512];
        // As much as a socket holds; a program that keeps writing may well see the reset.
        for _ in 0..1024 {
            if !matches!((&self.socket).read(&mut scrap), Ok(len) if len > 0) {
                return;
            }
        }
    }
}

fn kind_of(error: &VolatileMemoryError) -> io::ErrorKind {
    match error {
        VolatileMemoryError::IOError(error) => error.kind(),
        _ => io::ErrorKind::Other,
    }
}
