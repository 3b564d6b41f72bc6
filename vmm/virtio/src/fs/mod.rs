//! The file system device, section 5.11, served by another process over vhost-user.
//!
//! The file server parses FUSE and opens files; this process does neither. It passes the guest's memory and the queues' addresses over a
//! connected socket, and after that kicks and interrupts go between the guest and the server without us. The server gets guest-physical
//! addresses where the protocol asks for ours: the two only have to be consistent, and it has no business with our address space.
//!
//! A server that goes away while the device is active ends in DEVICE_NEEDS_RESET and a word to the machine's owner. The server is trusted less than
//! we are, so every answer has a deadline.

mod message;
mod session;

use std::{io, os::unix::net::UnixStream, time::Duration};

use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use crate::{
    config::read_bytes,
    device::{ActivateError, Activation, ActiveQueue, DeviceTraits, VirtioDevice},
    events::Events,
    fault::Fault,
    log_limit::warn_limited,
    worker::{Serve, Worker},
};
use session::{Session, SessionError};

/// Device type of the file system device.
const DEVICE_TYPE: u32 = 26;
/// Bytes of the tag in configuration space.
const TAG_LEN: usize = 36;
/// Tag and number of request queues.
const CONFIG_LEN: usize = TAG_LEN + 4;
/// Queues for ordinary requests, beside the one for urgent ones.
const REQUEST_QUEUES: u32 = 1;
/// Size of both queues. Linux makes no request longer than the queue has descriptors, in pages: this allows 1 MiB.
const QUEUE_SIZE: u16 = 256;
/// What our file server offers; a server that does not is refused at activation.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// How long the server may take to answer: only a server that hangs is meant. One that still starts on a busy host is waited for, and whoever
/// started the machine sees that it stands still.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// A file system device whose files are another process's.
pub struct VhostUserFs {
    name: String,
    tag: String,
    stream: UnixStream,
    session: Option<Session>,
    active: Option<Active>,
}

/// What is kept while the server serves.
struct Active {
    watch: Worker<Watch>,
    queues: Vec<ActiveQueue>,
    memory: GuestMemoryMmap,
}

impl VhostUserFs {
    /// A share named `tag` (1 to 36 bytes), served over `stream`. Nothing is asked of the server before activation, so that it may start meanwhile.
    ///
    /// Fails for a tag that does not fit and for a stream that is no socket.
    pub fn connect(name: &str, tag: &str, stream: UnixStream) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > TAG_LEN {
            let message = format!("share tag {tag:?} does not have 1 to {TAG_LEN} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        Ok(Self { name: name.to_owned(), tag: tag.to_owned(), stream, session: None, active: None })
    }

    fn refused(&self, error: &SessionError) -> ActivateError {
        ActivateError::Server { device: self.name.clone(), message: error.with_causes() }
    }

    /// The session with the server; the first activation opens it.
    fn session(&mut self) -> Result<&mut Session, SessionError> {
        if self.session.is_none() {
            self.session = Some(Session::open(self.stream.try_clone().map_err(SessionError::Socket)?)?);
        }
        self.session.as_mut().ok_or(SessionError::Gone)
    }

    fn start_queues(&mut self, with: &Activation) -> Result<(), SessionError> {
        let call = with.interrupt.queue_eventfd().map_err(SessionError::Socket)?;
        self.session()?.start(with.features, &with.memory, &with.queues, &call)
    }
}

impl VirtioDevice for VhostUserFs {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: FEATURES,
            queue_sizes: vec![QUEUE_SIZE; 1 + REQUEST_QUEUES as usize],
            config_len: CONFIG_LEN as u32,
            name: self.name.clone(),
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        let padding = std::iter::repeat_n(0, TAG_LEN.saturating_sub(self.tag.len()));
        let fields = self.tag.bytes().chain(padding).chain(REQUEST_QUEUES.to_le_bytes());
        config.iter_mut().zip(fields).for_each(|(into, byte)| *into = byte);
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        if let Err(error) = self.start_queues(&with) {
            // What was said so far is lost, and with it the position in the conversation.
            self.session = None;
            return Err(self.refused(&error));
        }
        let socket_error = |source| ActivateError::Io {
            device: self.name.clone(),
            operation: "duplicating the server's socket",
            source,
        };
        let stream = self.stream.try_clone().map_err(socket_error)?;
        let watch = Watch { stream, tag: self.tag.clone() };
        let watch = Worker::spawn(&self.name, watch, with.interrupt.clone())?;
        self.active = Some(Active { watch, queues: with.queues, memory: with.memory });
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let Some(Active { watch, queues, memory }) = self.active.take() else { return Vec::new() };
        watch.stop();
        let stopped = self.session.as_mut().ok_or(SessionError::Gone).and_then(|session| session.stop(queues.len()));
        let positions = stopped.unwrap_or_else(|error| {
            warn_limited!("device {}: its server did not stop its queues: {}", self.name, error.with_causes());
            self.session = None;
            Vec::new()
        });
        let positions = positions.into_iter().map(Some).chain(std::iter::repeat(None));
        queues.into_iter().zip(positions).map(|(active, position)| active.left_at(position, &memory)).collect()
    }
}

/// The thread that waits for the server's death.
struct Watch {
    stream: UnixStream,
    tag: String,
}

const STOP: u64 = 0;

impl Serve for Watch {
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
        let events = Events::new().map_err(Fault::io("epoll"))?;
        events.watch(stop, EventSet::IN, STOP).map_err(Fault::io("epoll_ctl"))?;
        events.watch(&self.stream, EventSet::READ_HANG_UP, 1).map_err(Fault::io("epoll_ctl"))?;
        let mut seen = None;
        while seen.is_none() {
            // The stop event wins: a server may well leave because it was told to stop.
            seen = events.wait(None).map_err(Fault::io("epoll_wait"))?.map(|event| event.data()).min();
        }
        if seen == Some(STOP) {
            return Ok(());
        }
        Err(Fault::Server { tag: self.tag.clone() })
    }
}

#[cfg(test)]
mod tests;
