//! What the driver has said about one queue, before the device gets it.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::registers::{Half, Ring};

/// Why a queue cannot be used as the driver has set it up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum QueueFault {
    /// The driver never made it ready.
    #[error("the driver did not make it ready")]
    NotReady,
    /// A ring does not lie where rings may.
    #[error("its rings at {descriptors:#x}, {available:#x} and {used:#x} are not aligned in guest memory")]
    Rings { descriptors: u64, available: u64, used: u64 },
}

/// The registers of one queue. They are open until QueueReady is set, and again once it is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    size_max: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueRegisters {
    pub(super) fn new(size_max: u16) -> Self {
        Self { size_max, size: size_max, ready: false, descriptors: 0, available: 0, used: 0 }
    }

    pub(super) fn size_max(&self) -> u16 {
        self.size_max
    }

    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// Takes a size that is a power of two and not over the maximum; ignores any other.
    pub(super) fn set_size(&mut self, value: u32) {
        match u16::try_from(value) {
            Ok(size) if !self.ready && size.is_power_of_two() && size <= self.size_max => self.size = size,
            _ => (),
        }
    }

    pub(super) fn set_address(&mut self, ring: Ring, half: Half, value: u32) {
        if self.ready {
            return;
        }
        let address = match ring {
            Ring::Descriptors => &mut self.descriptors,
            Ring::Available => &mut self.available,
            Ring::Used => &mut self.used,
        };
        *address = match half {
            Half::Low => (*address & !0xffff_ffff) | u64::from(value),
            Half::High => (*address & 0xffff_ffff) | (u64::from(value) << 32),
        };
    }

    /// Sets or clears QueueReady. It stays clear when the rings are not where rings may be.
    pub(super) fn set_ready(&mut self, value: u32, memory: &GuestMemoryMmap) -> Result<(), QueueFault> {
        self.ready = false;
        if value == 1 {
            self.check_rings(memory)?;
            self.ready = true;
        }
        Ok(())
    }

    // Sizes and alignments of section 2.7. The rings need not be apart: a driver that lets them overlap hurts itself alone.
    fn check_rings(&self, memory: &GuestMemoryMmap) -> Result<(), QueueFault> {
        let size = usize::from(self.size);
        let good = |address: u64, alignment: u64, len: usize| {
            // Address 0 stands for "not set" in virtio-queue, which then refuses to serve.
            address != 0
                && address.is_multiple_of(alignment)
                && GuestMemoryBackend::check_range(memory, GuestAddress(address), len)
        };
        let all_good = good(self.descriptors, 16, 16 * size)
            && good(self.available, 2, 6 + 2 * size)
            && good(self.used, 4, 6 + 8 * size);
        let Self { descriptors, available, used, .. } = *self;
        if all_good { Ok(()) } else { Err(QueueFault::Rings { descriptors, available, used }) }
    }

    /// The queue for the device, from a copy of the registers.
    pub(super) fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, QueueFault> {
        if !self.ready {
            return Err(QueueFault::NotReady);
        }
        self.check_rings(memory)?;
        let Self { descriptors, available, used, .. } = *self;
        let rings_fault = |_| QueueFault::Rings { descriptors, available, used };
        let mut queue = Queue::new(self.size_max).map_err(rings_fault)?;
        queue.try_set_size(self.size).map_err(rings_fault)?;
        queue.try_set_desc_table_address(GuestAddress(descriptors)).map_err(rings_fault)?;
        queue.try_set_avail_ring_address(GuestAddress(available)).map_err(rings_fault)?;
        queue.try_set_used_ring_address(GuestAddress(used)).map_err(rings_fault)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if queue.is_valid(memory) { Ok(queue) } else { Err(rings_fault(virtio_queue::Error::QueueNotReady)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).expect("memory")
    }

    fn placed() -> QueueRegisters {
        let mut queue = QueueRegisters::new(16);
        queue.set_address(Ring::Descriptors, Half::Low, 0x1000);
        queue.set_address(Ring::Available, Half::Low, 0x2000);
        queue.set_address(Ring::Used, Half::Low, 0x3000);
        queue
    }

    #[test]
    fn only_powers_of_two_up_to_the_maximum_are_sizes() {
        let mut queue = placed();
        for size in [0, 3, 17, 32, 0x10000, 0x10004, u32::MAX] {
            queue.set_size(size);
            assert_eq!(queue.size, 16, "{size}");
        }
        queue.set_size(4);
        assert_eq!(queue.size, 4);
    }

    #[test]
    fn rings_must_be_aligned_and_inside_memory() {
        let bad = [
            (Ring::Descriptors, Half::Low, 0x1008),
            (Ring::Descriptors, Half::Low, 0xffff_fff0),
            (Ring::Descriptors, Half::Low, 0),
            (Ring::Available, Half::Low, 0x2001),
            (Ring::Available, Half::High, 1),
            (Ring::Used, Half::Low, 0x3002),
            (Ring::Used, Half::Low, 0xfff0),
            (Ring::Used, Half::High, u32::MAX),
        ];
        for (ring, half, value) in bad {
            let mut queue = placed();
            queue.set_address(ring, half, value);
            assert!(queue.set_ready(1, &memory()).is_err(), "{ring:?} {half:?} {value:#x}");
            assert!(!queue.ready());
            assert_eq!(queue.build(&memory(), false), Err(QueueFault::NotReady));
        }
    }

    #[test]
    fn a_ready_queue_is_frozen_until_it_is_unready() {
        let mut queue = placed();
        queue.set_ready(1, &memory()).expect("good rings");
        let frozen = queue.clone();
        queue.set_size(2);
        queue.set_address(Ring::Used, Half::High, 1);
        assert_eq!(queue, frozen);
        queue.set_ready(0, &memory()).expect("always");
        queue.set_size(2);
        assert_eq!(queue.size, 2);
    }

    #[test]
    fn the_built_queue_is_what_the_registers_say() {
        let mut queue = placed();
        queue.set_size(8);
        queue.set_ready(1, &memory()).expect("good rings");
        let built = queue.build(&memory(), true).expect("ready");
        assert_eq!(
            (built.size(), built.desc_table(), built.avail_ring(), built.used_ring()),
            (8, 0x1000, 0x2000, 0x3000)
        );
        assert!(built.event_idx_enabled());
    }
}
