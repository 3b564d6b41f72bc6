//! Where a network device's frames go to and come from.

use std::{io, os::fd::AsRawFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::log_limit::warn_limited;

/// The host's end of one queue pair: one queue of a tap.
///
/// Every frame begins with a header of twelve bytes (section 5.1.6, `virtio_net_hdr_v1`) in both directions. No call ever waits.
/// An error that is neither of the frame nor of the moment, such as EBADFD when the interface is gone, takes the link down.
pub trait NetBackend: AsRawFd + Send {
    /// Sends the frame of `head` (its header and the start of the Ethernet frame) and `rest`, the latter straight from guest memory.
    fn send(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Fills `into` with the next frame and returns its length, header counted; more than `into` holds when the frame was cut.
    /// `WouldBlock` when there is none; then the descriptor becomes readable with the next.
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;
    /// What frames may leave to the guest from now on.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
    /// Whether this queue gets a share of the frames for the guest. Only asked of a device with several.
    fn set_joined(&mut self, joined: bool) -> io::Result<()>;
}

/// What the guest is able to finish by itself, of frames that it receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that were never computed, as the frame never left the host.
    pub checksum: bool,
    /// TCP over IPv4 larger than the MTU.
    pub tcp4: bool,
    /// TCP over IPv6 larger than the MTU.
    pub tcp6: bool,
    /// Congestion notification in such TCP.
    pub ecn: bool,
    /// UDP larger than the MTU, over both.
    pub udp: bool,
}

/// What a failed call means for what comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing there, or no room, at this moment.
    Moment,
    /// This frame is not one for the host's kernel; the next may be.
    Frame,
    /// The interface is gone.
    Gone,
}

/// Of a failed [`NetBackend::send`]. EIO is an interface that is down and may come up again.
pub(super) fn trouble_of_send(error: &io::Error) -> Trouble {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::IO | Errno::INTR) => Trouble::Moment,
        Some(Errno::BADFD | Errno::NODEV | Errno::BADF) => Trouble::Gone,
        _ => Trouble::Frame,
    }
}

/// Of a failed [`NetBackend::receive`]. An error that is not known to be a frame's own may stay: trying again would spin.
pub(super) fn trouble_of_receive(error: &io::Error) -> Trouble {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::INTR) => Trouble::Moment,
        Some(Errno::INVAL | Errno::NOMEM) => Trouble::Frame,
        _ => Trouble::Gone,
    }
}
/// Sets the offloads of one interface, whose queues these are: its first one is always joined, and speaks for all.
pub(super) fn set_offloads(queues: &mut [Box<dyn NetBackend>], offloads: Offloads) -> io::Result<()> {
    queues.first_mut().map_or(Ok(()), |queue| queue.set_offloads(offloads))
}

/// Gives the first `joined` queues of one interface a share of its frames, and the others none; of one there is no choice. `name` is the device's.
pub(super) fn share_out(name: &str, queues: &mut [Box<dyn NetBackend>], joined: u16) {
    if queues.len() < 2 {
        return;
    }
    for (index, queue) in queues.iter_mut().enumerate() {
        if let Err(error) = queue.set_joined(index < usize::from(joined)) {
            warn_limited!("device {name}: queue {index} of its tap stays as it is: {error}");
        }
    }
}
