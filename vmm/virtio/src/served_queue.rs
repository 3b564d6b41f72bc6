//! A queue in the hands of the device that serves it.

use std::{
    num::Wrapping,
    sync::atomic::{Ordering, fence},
};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::{chain::Chain, device::ActiveQueue, fault::Fault};

/// An active queue, from which only checked chains come out.
pub(crate) struct ServedQueue {
    index: u16,
    queue: Queue,
    kick: EventFd,
    bytes_max: u64,
    /// Position in the used ring up to which the driver was told, or did not want to be.
    signalled: Wrapping<u16>,
}

/// Bytes of a ring before its entries (section 2.7).
const RING_HEADER_LEN: u64 = 4;
/// Bytes of an entry of the used ring.
const USED_ENTRY_LEN: u64 = 8;

impl ServedQueue {
    /// `bytes_max` limits the sum of all buffers of one chain.
    pub(crate) fn new(index: u16, active: ActiveQueue, bytes_max: u64) -> Self {
        let signalled = Wrapping(active.queue.next_used());
        Self { index, queue: active.queue, kick: active.kick, bytes_max, signalled }
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
        self.take_kicks();
    }

    /// The same, and how many there were since the last call.
    pub(crate) fn take_kicks(&self) -> u64 {
        self.kick.read().unwrap_or_else(|error| {
            log::trace!("queue {}: no kick to clear: {error}", self.index);
            0
        })
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
        self.complete_together(memory, [(chain, written)])
    }

    /// Gives several chains back so that the driver sees all of them or none: the parts of one packet. Each comes with the bytes written in it.
    pub(crate) fn complete_together(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), Fault> {
        let fault = ring_fault(self.index);
        let mut next = Wrapping(self.queue.next_used());
        for (chain, written) in chains {
            let slot = u64::from(next.0.checked_rem(self.queue.size()).unwrap_or_default());
            let entry = u64::from(chain.head()) | u64::from(written) << 32;
            memory.write_obj(entry.to_le(), self.used_ring(RING_HEADER_LEN + slot * USED_ENTRY_LEN)).map_err(&fault)?;
            next += 1;
        }
        // The index is what the driver looks at: it comes after all that it tells of.
        memory.store(next.0.to_le(), self.used_ring(2), Ordering::Release).map_err(&fault)?;
        self.queue.set_next_used(next.0);
        Ok(())
    }

    /// An address in the used ring, which was checked to lie in memory when the queue was set up.
    fn used_ring(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.queue.used_ring().wrapping_add(offset))
    }

    /// Whether the driver wants to hear of what was completed since the last call.
    pub(crate) fn signal_due(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let due = self.is_due(memory)?;
        self.signalled = Wrapping(self.queue.next_used());
        Ok(due)
    }

    /// The same as a question, after which the driver has not heard of it yet.
    pub(crate) fn is_due(&self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let (next, before) = (Wrapping(self.queue.next_used()), self.signalled);
        if next == before {
            return Ok(false);
        }
        if !self.queue.event_idx_enabled() {
            return Ok(!self.driver_suppresses(memory));
        }
        // What was completed must be visible before the driver's wish is read: it looks at both in the other order (section 2.7.10).
        fence(Ordering::SeqCst);
        let event_at = RING_HEADER_LEN + 2 * u64::from(self.queue.size());
        let event_at = GuestAddress(self.queue.avail_ring().wrapping_add(event_at));
        let event = memory.load::<u16>(event_at, Ordering::Relaxed).map_err(ring_fault(self.index))?;
        // Due when the entry it waits for is among the new ones; positions wrap.
        Ok(next - Wrapping(u16::from_le(event)) - Wrapping(1) < next - before)
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

/// The rings were checked to lie in guest memory, so that this is for the record.
fn ring_fault(index: u16) -> impl Fn(GuestMemoryError) -> Fault {
    move |source| Fault::Ring { index, source: virtio_queue::Error::GuestMemory(source) }
}
