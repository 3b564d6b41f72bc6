//! Queues that the host's kernel serves (vhost-net): frames go between the guest's memory and the tap without this process.
//!
//! ```text
//!   guest ──kick (ioeventfd)──> a thread of the kernel ──> tap
//!         <──interrupt (irqfd)──                       <──
//!         ==control queue==> server: how many pairs           what is left for us
//! ```
//! # What is not here
//! No frame is seen here, so none is checked, held back or counted. Whoever makes the tap checks the sources of what comes out of it, and
//! limits of rate are for a device without vhost-net.
//!
//! # What is trusted
//! The host's kernel, with the rings. It checks addresses against the table of guest memory that it got, and reports a ring that makes no sense
//! to it; that is a device that needs a reset, as with our own server.

mod server;

use std::{io, os::fd::RawFd};

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::backend::NetBackend;
use crate::device::ActiveQueue;

pub(super) use server::VhostServer;

/// The kernel's server of one queue pair. It is the guest's memory's owner from its making on.
pub trait VhostPair: Send {
    /// Features that it knows.
    fn features(&self) -> u64;
    /// Serves a pair from now on.
    fn start(&mut self, queues: &VhostQueues<'_>) -> io::Result<()>;
    /// Stops, and tells how far it has read both, the receive queue first. Fine for one that does not serve.
    fn stop(&mut self) -> io::Result<[u16; 2]>;
}

/// What a [`VhostPair`] serves.
pub struct VhostQueues<'a> {
    /// Where rings and buffers are.
    pub memory: &'a GuestMemoryMmap,
    /// What driver and device agreed on, as far as it is about queues.
    pub features: u64,
    /// Those of the receive and of the transmit queue.
    pub rings: [VhostRing<'a>; 2],
    /// Written to when there is something for the driver.
    pub call: &'a EventFd,
    /// Written to when a ring makes no sense.
    pub broken: &'a EventFd,
    /// The host's end.
    pub tap: RawFd,
}

/// One queue, checked to lie in guest memory.
pub struct VhostRing<'a> {
    /// Number of its entries.
    pub size: u16,
    /// How far it has been read.
    pub position: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// By which the driver kicks.
    pub kick: &'a EventFd,
}

impl<'a> VhostRing<'a> {
    fn of(active: &'a ActiveQueue) -> Self {
        let queue = &active.queue;
        Self {
            size: queue.size(),
            position: queue.next_avail(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
            kick: &active.kick,
        }
    }
}

/// What a device keeps from one life to the next.
pub(super) struct Kept {
    /// The host's ends of all queue pairs, in order; empty once the interface is gone.
    pub(super) backends: Vec<Box<dyn NetBackend>>,
    /// Who moves their frames.
    pub(super) vhosts: Vec<Box<dyn VhostPair>>,
}
