//! The conversation with a vhost-user server. Every wait ends at the socket's timeout.

use std::{
    error::Error,
    io::{self, Read},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::{eventfd::EventFd, sock_ctrl_msg::ScmSocket};

use super::message::{
    self, FEATURE_PROTOCOL, HEADER_LEN, PROTOCOL_MQ, PROTOCOL_REPLY_ACK, REGIONS_MAX, Region, Request,
};
use crate::{device::ActiveQueue, log_limit::warn_limited};

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The server does not offer what we need.
    #[error("it does not offer {what} (it offers {offered:#x}): is it the file server of this version?")]
    Lacks { what: &'static str, offered: u64 },
    /// Something else came than the answer.
    #[error("its answer to {request:?} is not one: is it the file server of this version?")]
    NoAnswer { request: Request },
    /// It understood and failed.
    #[error("it refused {request:?} with code {code}: see its own log")]
    Refused { request: Request, code: u64 },
    /// Guest memory that cannot be given to another process.
    #[error("guest memory has {0}; it must be one to {REGIONS_MAX} regions of a shared file")]
    Memory(&'static str),
    /// It is gone, or did not answer in time.
    #[error("the conversation broke off: is the file server still running?")]
    Socket(#[source] io::Error),
    /// There is no session.
    #[error("there is no conversation with it any more")]
    Gone,
}

impl SessionError {
    /// This error and what caused it, in one line.
    pub(super) fn with_causes(&self) -> String {
        match self.source() {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// A server that has told what it can.
pub(super) struct Session {
    stream: UnixStream,
    offered: u64,
}

impl Session {
    /// Asks for features, agrees on the protocol and becomes the owner.
    pub(super) fn open(stream: UnixStream) -> Result<Self, SessionError> {
        let mut session = Self { stream, offered: 0 };
        session.offered = session.ask(Request::GetFeatures)?;
        require(session.offered, FEATURE_PROTOCOL, "protocol features")?;
        let protocol = session.ask(Request::GetProtocolFeatures)?;
        require(protocol, PROTOCOL_MQ | PROTOCOL_REPLY_ACK, "the protocol features MQ and REPLY_ACK")?;
        let agreed = (PROTOCOL_MQ | PROTOCOL_REPLY_ACK).to_ne_bytes();
        session.tell_all(&[Command::new(Request::SetProtocolFeatures, &agreed)])?;
        session.tell_all(&[Command::new(Request::SetOwner, &[])])?;
        Ok(session)
    }

    /// Gives the server guest memory and queues, and lets it serve them.
    pub(super) fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        queues: &[ActiveQueue],
        call: &EventFd,
    ) -> Result<(), SessionError> {
        require(self.offered, features, "the features that the driver chose")?;
        let queue_count = self.ask(Request::GetQueueNum)?;
        if queue_count < queues.len() as u64 {
            return Err(SessionError::Lacks { what: "enough queues", offered: queue_count });
        }
        let features = (features | FEATURE_PROTOCOL).to_ne_bytes();
        let mut commands = vec![Command::new(Request::SetFeatures, &features), memory_command(memory)?];
        for (index, active) in (0u32..).zip(queues) {
            commands.extend(ring_commands(index, active, call));
        }
        self.tell_all(&commands)
    }

    /// Stops `count` queues; returns how far the server has read each.
    pub(super) fn stop(&mut self, count: usize) -> Result<Vec<u16>, SessionError> {
        (0u32..).take(count).map(|index| self.stop_queue(index)).collect()
    }

    fn stop_queue(&mut self, index: u32) -> Result<u16, SessionError> {
        self.send(&Command::new(Request::GetVringBase, &message::ring_state(index, 0)), false)?;
        let [_, _, _, _, position @ ..] = self.answer::<8>(Request::GetVringBase)?;
        // The ring's positions have 16 bits.
        Ok(u32::from_ne_bytes(position) as u16)
    }

    /// Sends all commands, then takes all acknowledgements: one wait instead of one per command.
    fn tell_all(&mut self, commands: &[Command]) -> Result<(), SessionError> {
        commands.iter().try_for_each(|command| self.send(command, true))?;
        for Command { request, .. } in commands {
            match u64::from_ne_bytes(self.answer(*request)?) {
                0 => (),
                code => return Err(SessionError::Refused { request: *request, code }),
            }
        }
        Ok(())
    }

    fn ask(&mut self, request: Request) -> Result<u64, SessionError> {
        self.send(&Command::new(request, &[]), false)?;
        self.answer(request).map(u64::from_ne_bytes)
    }

    fn send(&self, command: &Command, acknowledge: bool) -> Result<(), SessionError> {
        let bytes = message::compose(command.request, &command.payload, acknowledge);
        // A message is far smaller than the socket's buffer, so it is sent whole or not at all.
        match self.stream.send_with_fds(&[bytes.as_slice()], &command.fds) {
            Ok(len) if len == bytes.len() => Ok(()),
            Ok(_) => Err(SessionError::Socket(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(SessionError::Socket(error.into())),
        }
    }

    fn answer<const N: usize>(&mut self, request: Request) -> Result<[u8; N], SessionError> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).map_err(SessionError::Socket)?;
        if !message::answers(header, request, N) {
            warn_limited!("a file server answered {header:02x?} to {request:?}");
            return Err(SessionError::NoAnswer { request });
        }
        let mut payload = [0; N];
        self.stream.read_exact(&mut payload).map_err(SessionError::Socket)?;
        Ok(payload)
    }
}

/// One message to the server. The descriptors stay open with their owners, who outlive it.
struct Command {
    request: Request,
    payload: Vec<u8>,
    fds: Vec<RawFd>,
}

impl Command {
    fn new(request: Request, payload: &[u8]) -> Self {
        Self::with_fds(request, payload, Vec::new())
    }

    fn with_fds(request: Request, payload: &[u8], fds: Vec<RawFd>) -> Self {
        Self { request, payload: payload.to_vec(), fds }
    }
}

fn require(offered: u64, wanted: u64, what: &'static str) -> Result<(), SessionError> {
    if offered & wanted == wanted { Ok(()) } else { Err(SessionError::Lacks { what, offered }) }
}

/// What sets up and enables one ring.
fn ring_commands(index: u32, active: &ActiveQueue, call: &EventFd) -> [Command; 6] {
    let queue = &active.queue;
    let state = |request, number: u16| Command::new(request, &message::ring_state(index, u32::from(number)));
    let event =
        |request, fd: &EventFd| Command::with_fds(request, &u64::from(index).to_ne_bytes(), vec![fd.as_raw_fd()]);
    [
        state(Request::SetVringNum, queue.size()),
        Command::new(Request::SetVringAddr, &message::ring_addresses(index, queue)),
        state(Request::SetVringBase, queue.next_avail()),
        event(Request::SetVringCall, call),
        event(Request::SetVringKick, &active.kick),
        state(Request::SetVringEnable, 1),
    ]
}

/// The table of guest memory's regions, with their files.
fn memory_command(memory: &GuestMemoryMmap) -> Result<Command, SessionError> {
    let mut regions = Vec::new();
    let mut files = Vec::new();
    for region in memory.iter() {
        let file = region.file_offset().ok_or(SessionError::Memory("a region without a file"))?;
        regions.push(Region {
            guest_address: region.start_addr().raw_value(),
            len: region.len(),
            file_offset: file.start(),
        });
        files.push(file.file().as_raw_fd());
    }
    match regions.len() {
        0 => Err(SessionError::Memory("no regions")),
        1..=REGIONS_MAX => Ok(Command::with_fds(Request::SetMemTable, &message::memory_table(&regions), files)),
        _ => Err(SessionError::Memory("too many regions")),
    }
}
