//! The entropy device, section 5.4: one queue of buffers to fill with random bytes.

use std::cmp::min;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

use crate::{
    answer::{Answer, Life},
    chain::Chain,
    device::{ActivateError, Activation, DeviceTraits, VirtioDevice},
    fault::Fault,
};

/// Device type of the entropy device.
const DEVICE_TYPE: u32 = 4;
/// Requests that can be waiting; Linux has one.
const QUEUE_SIZE: u16 = 4;
/// Bytes given for one request, however many it has room for. A request is allowed to come back with fewer bytes than it has room for.
const BYTES_PER_REQUEST: usize = 256;
/// Most room that a request may have: a driver gains nothing by more.
const ROOM_MAX: u64 = 1024 * 1024;

/// An entropy device.
pub struct Rng {
    life: Life<HostEntropy>,
}

impl Rng {
    /// An entropy device over the host kernel's generator.
    pub fn new() -> Self {
        Self { life: Life::Stopped(HostEntropy) }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: 0,
            name: "rng".into(),
        }
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        self.life.start("rng", with)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.life.stop()
    }
}

struct HostEntropy;

impl Answer for HostEntropy {
    const CHAIN_BYTES_MAX: u64 = ROOM_MAX;

    fn answer(&mut self, index: u16, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, Fault> {
        let mut bytes = [0; BYTES_PER_REQUEST];
        let wanted = min(chain.writable_len(), bytes.len());
        let filled = getrandom(bytes.get_mut(..wanted).unwrap_or_default(), GetRandomFlags::empty())
            .map_err(|error| Fault::Io { operation: "getrandom", source: error.into() })?;
        chain
            .write(memory, 0, bytes.get(..filled).unwrap_or_default())
            .map_err(|source| Fault::Chain { index, source })?;
        Ok(u32::try_from(filled).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::driver::{self, DriverQueue, RecordedInterrupt, into, out};

    fn serving() -> (Rng, DriverQueue, GuestMemoryMmap, std::sync::Arc<RecordedInterrupt>) {
        let memory = driver::memory(1 << 20);
        let queue = DriverQueue::new(&memory, 0x1000, QUEUE_SIZE);
        let interrupt = RecordedInterrupt::new();
        let mut rng = Rng::new();
        rng.activate(driver::activation(&memory, rng.traits().features, &[&queue], &interrupt)).expect("starts");
        (rng, queue, memory, interrupt)
    }

    #[test]
    fn a_buffer_is_filled_with_bytes_that_differ() {
        let (mut rng, mut queue, memory, _) = serving();
        assert_eq!(queue.call(&[into(0x8000, 32), into(0x9000, 32)]), 64);
        let mut first = [0u8; 32];
        let mut second = [0u8; 32];
        memory.read_slice(&mut first, GuestAddress(0x8000)).expect("buffer");
        memory.read_slice(&mut second, GuestAddress(0x9000)).expect("buffer");
        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
        assert_eq!(rng.stop()[0].next_used, 1);
    }

    #[test]
    fn a_large_request_gets_a_little_and_a_huge_one_a_reset() {
        let (mut rng, mut queue, _, interrupt) = serving();
        assert_eq!(queue.call(&[into(0x10000, 0xf0000 - 0x10000)]), BYTES_PER_REQUEST as u32);
        queue.add(&[into(0x1000, 0x8_0000), into(0x1000, 0x8_0000), into(0x1000, 0x8_0000)]);
        queue.kick();
        assert!(interrupt.wait_for_reset());
        rng.stop();
    }

    #[test]
    fn a_request_without_room_comes_back_empty() {
        let (mut rng, mut queue, _, _) = serving();
        assert_eq!(queue.call(&[out(0x8000, 32)]), 0);
        rng.stop();
    }

    // work without end must not keep the device from its stop, or a guest could hold the vCPU that resets it.
    #[test]
    fn a_driver_that_never_pauses_cannot_keep_the_device_from_stopping() {
        let (mut rng, mut queue, _, interrupt) = serving();
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = over.clone();
        queue.describe(0, 0x8000, 32, driver::WRITE, 0);
        let villain = std::thread::spawn(move || {
            let mut served = 0u64;
            while !seen.load(std::sync::atomic::Ordering::Relaxed) {
                // One head, over and over, as fast as it comes back.
                queue.offer(0);
                queue.kick();
                while queue.used().is_empty() && !seen.load(std::sync::atomic::Ordering::Relaxed) {}
                served += 1;
            }
            served
        });
        driver::eventually("some work", || interrupt.signals() > 0);
        assert_eq!(rng.stop().len(), 1);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(villain.join().expect("villain") > 0);
    }
}
