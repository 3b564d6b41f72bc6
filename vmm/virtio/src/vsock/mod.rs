//! The socket device, section 5.10, joined to unix sockets on the host ("hybrid vsock").
//!
//! ```text
//!                         muxer (one thread, one epoll)
//!   guest ==tx queue==> packet -> connection (pure) -> host stream (unix)
//!         <==rx queue==        <-                    <- greeting <- listener
//! ```
//! * **The host calls the guest**: a program connects to the listening socket, writes `CONNECT <port>\n` and reads `OK <host port>\n` once
//!   the guest has accepted. What follows is the stream.
//! * **The guest calls the host**: only ports that were given a connected stream beforehand, each once. Anything else is reset.
//!
//! # How a stream ends
//! Both directions end apart, and every byte arrives before its end does. The host's end of file becomes SHUTDOWN(SEND) once all bytes before it
//! are in the guest. The guest's SHUTDOWN(SEND) becomes a write shutdown of the host stream once all bytes before it are written there.
//! A guest that has shut down both directions, or has reset the connection, is answered and forgotten; what it sent before is still
//! delivered, by a connection that has no guest any more ("draining").
//!
//! # Who waits for whom
//! Nobody. The host streams are non-blocking. What the guest sent and the host does not take is kept, at most the window that the guest was
//! granted, and credit is returned only for bytes that the host took. What the host sends is read only into buffers that the guest has offered,
//! within the credit it granted. Connections take turns, one packet each.

mod backlog;
mod connection;
mod greeting;
mod guest_side;
mod host_side;
mod muxer;
mod packet;
mod stream;

use std::os::unix::net::{UnixListener, UnixStream};

use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::QueueState;

use crate::{
    config::read_bytes,
    device::{ActivateError, Activation, DeviceTraits, VirtioDevice},
    worker::Worker,
};
use muxer::Muxer;

/// Device type of the socket device.
const DEVICE_TYPE: u32 = 19;
/// Receive and transmit. The guest keeps the receive queue full of 4 KiB buffers, so its size costs guest memory.
const QUEUE_SIZE: u16 = 128;
/// The event queue, which tells of nothing but migration.
const EVENT_QUEUE_SIZE: u16 = 16;
/// The guest's context id.
const CONFIG_LEN: u32 = 8;
/// For threads and logs.
const NAME: &str = "vsock";

/// Called with the port when the guest asks for one of the calls it may make.
pub type OnGuestCall = Box<dyn FnMut(u32) + Send>;

/// The device's doors to the host.
pub(crate) struct HostSide {
    pub(crate) listener: UnixListener,
    pub(crate) calls: Vec<(u32, UnixStream)>,
    pub(crate) on_guest_call: Option<OnGuestCall>,
}

enum Life {
    Stopped(HostSide),
    Serving(Worker<Muxer>),
    Lost,
}

/// A socket device.
pub struct Vsock {
    cid: u32,
    life: Life,
}

impl Vsock {
    /// `cid` is the guest's context id. Host programs reach the guest through `listener`; the guest reaches the host through `calls`,
    /// pairs of a host port and the stream it is joined to, each good once.
    pub fn new(cid: u32, listener: UnixListener, calls: Vec<(u32, UnixStream)>) -> Self {
        Self { cid, life: Life::Stopped(HostSide { listener, calls, on_guest_call: None }) }
    }

    /// Calls `hook` from the device's thread when the guest's request for one of the calls arrives. Only before activation.
    pub fn on_guest_call(&mut self, hook: OnGuestCall) {
        if let Life::Stopped(host) = &mut self.life {
            host.on_guest_call = Some(hook);
        }
    }
}

impl VirtioDevice for Vsock {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE],
            config_len: CONFIG_LEN,
            name: NAME.into(),
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        read_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        let Life::Stopped(host) = std::mem::replace(&mut self.life, Life::Lost) else {
            let source = std::io::Error::other("the device serves already, or its thread was lost");
            return Err(ActivateError::Thread { device: NAME.into(), source });
        };
        let interrupt = with.interrupt.clone();
        let muxer = Muxer::new(self.cid, host, with)?;
        self.life = Life::Serving(Worker::spawn(NAME, muxer, interrupt)?);
        Ok(())
    }

    // The guest that knew the connections is gone with the reset, so their host streams are closed. The doors stay for the next guest.
    fn stop(&mut self) -> Vec<QueueState> {
        match std::mem::replace(&mut self.life, Life::Lost) {
            Life::Serving(worker) => match worker.stop() {
                Some(muxer) => {
                    let (host, states) = muxer.into_parts();
                    self.life = Life::Stopped(host);
                    states
                }
                None => Vec::new(),
            },
            other => {
                self.life = other;
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
