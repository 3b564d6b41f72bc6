//! A queue in the hands of the device that serves it.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::{chain::Chain, device::ActiveQueue, fault::Fault};

/// An active queue, from which only checked chains come out.
pub(crate) struct ServedQueue {
    index: u16,
    queue: Queue,
    kick: EventFd,
    bytes_max: u64,
    unsignalled: bool,
}

impl ServedQueue {
    /// `bytes_max` limits the sum of all buffers of one chain.
    pub(crate) fn new(index: u16, active: ActiveQueue, bytes_max: u64) -> Self {
        Self { index, queue: active.queue, kick: active.kick, bytes_max, unsignalled: false }
    }

    /// Position among the device's queues.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Size that the driver chose: the most chains that can be waiting.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Readable after the driver kicked.
    pub(crate) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Makes the kick eventfd wait for the next kick. It may have been read already, by an earlier life of the device.
    pub(crate) fn clear_kick(&self) {
        if let Err(error) = self.kick.read() {
            log::trace!("queue {}: no kick to clear: {error}", self.index);
        }
    }

    /// Positions and addresses, for a later life.
    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// The next chain that the driver made available.
    pub(crate) fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Fault> {
        let (index, size) = (self.index, self.queue.size());
        let mut available = self.queue.iter(memory).map_err(|source| Fault::Ring { index, source })?;
        let Some(chain) = available.next() else { return Ok(None) };
        let chain = Chain::parse(chain, memory, size, self.bytes_max);
        chain.map(Some).map_err(|source| Fault::Chain { index, source })
    }

    /// Takes back the chain that came last out of [`Self::pop`], untouched.
    pub(crate) fn put_back(&mut self, _chain: Chain) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes in it.
    pub(crate) fn complete(&mut self, memory: &GuestMemoryMmap, chain: Chain, written: u32) -> Result<(), Fault> {
        self.unsignalled = true;
        let index = self.index;
        self.queue.add_used(memory, chain.head(), written).map_err(|source| Fault::Ring { index, source })
    }

    /// Whether the driver wants to hear of what was completed since the last call.
    pub(crate) fn signal_due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(false);
        }
        let index = self.index;
        if !self.queue.event_idx_enabled() {
            return Ok(!self.driver_suppresses(memory));
        }
        self.queue.needs_notification(memory).map_err(|source| Fault::Ring { index, source })
    }

    // Without VIRTIO_F_EVENT_IDX the driver has one flag to say that it polls (virtio 1.2, section 2.7.7).
    fn driver_suppresses(&self, memory: &GuestMemoryMmap) -> bool {
        fence(Ordering::SeqCst);
        let flags = memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        flags.is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    /// Asks the driver for a kick when it adds a chain. True when one is there already, and no kick may come for it.
    pub(crate) fn want_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let index = self.index;
        self.queue.enable_notification(memory).map_err(|source| Fault::Ring { index, source })
    }

    /// Tells the driver that kicks are not needed for now.
    pub(crate) fn refuse_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<(), Fault> {
        let index = self.index;
        self.queue.disable_notification(memory).map_err(|source| Fault::Ring { index, source })
    }
}
