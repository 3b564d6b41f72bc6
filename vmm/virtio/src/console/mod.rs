//! The console device, section 5.3: one port, output only.
//!
//! It carries the guest kernel's messages and the agent's last words. The VMM never waits for whoever reads them: output goes to a
//! non-blocking descriptor, what does not fit is dropped and counted, and the last bytes are always kept in a [`ConsoleTail`].
//! The receive queue is accepted and never answered, so there is no input to buffer without bound.

mod tail;

use std::{cmp::min, os::fd::OwnedFd, sync::Arc};

use virtio_bindings::bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

pub use tail::{ConsoleTail, TAIL_LEN};

use crate::{
    answer::{Answer, Life},
    chain::Chain,
    device::{ActivateError, Activation, DeviceTraits, VirtioDevice},
    fault::Fault,
};

/// Device type of the console.
const DEVICE_TYPE: u32 = 3;
/// Queue of input, from device to driver.
const RECEIVE: u16 = 0;
/// Size of both queues.
const QUEUE_SIZE: u16 = 16;
/// Bytes copied out of the guest in one step.
const COPY_LEN: usize = 1024;
/// Most bytes in one request; Linux writes at most a page or two.
const WRITE_LEN_MAX: u64 = 64 * 1024;

/// A console whose output goes to a descriptor and into a tail.
pub struct Console {
    life: Life<Output>,
}

impl Console {
    /// `output` receives the guest's bytes as far as it takes them at once; it is made non-blocking, for everyone who shares the open file.
    pub fn new(output: Option<OwnedFd>, tail: Arc<ConsoleTail>) -> std::io::Result<Self> {
        if let Some(output) = &output {
            let flags = rustix::fs::fcntl_getfl(output)?;
            rustix::fs::fcntl_setfl(output, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Self { life: Life::Stopped(Output { output, tail }) })
    }
}

impl VirtioDevice for Console {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE],
            config_len: 0,
            name: "console".into(),
        }
    }

    fn read_config(&self, _offset: u32, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        self.life.start("console", with)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.life.stop()
    }
}

struct Output {
    output: Option<OwnedFd>,
    tail: Arc<ConsoleTail>,
}

impl Answer for Output {
    const CHAIN_BYTES_MAX: u64 = WRITE_LEN_MAX;
    const IDLE_QUEUES: &'static [u16] = &[RECEIVE];

    fn answer(&mut self, index: u16, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, Fault> {
        let mut copy = [0; COPY_LEN];
        let len = chain.readable_len();
        for start in (0..len).step_by(COPY_LEN) {
            let part = copy.get_mut(..min(COPY_LEN, len - start)).unwrap_or_default();
            chain.read(memory, start, part).map_err(|source| Fault::Chain { index, source })?;
            self.put(part);
        }
        Ok(0)
    }
}

impl Output {
    fn put(&self, bytes: &[u8]) {
        self.tail.push(bytes);
        let taken = match &self.output {
            Some(output) => rustix::io::retry_on_intr(|| rustix::io::write(output, bytes)).unwrap_or(0),
            None => bytes.len(),
        };
        self.tail.count_dropped(bytes.len().saturating_sub(taken));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::driver::{self, DriverQueue, RecordedInterrupt, eventually, into, out};

    struct Bench {
        console: Console,
        receive: DriverQueue,
        transmit: DriverQueue,
        memory: GuestMemoryMmap,
        tail: Arc<ConsoleTail>,
    }

    fn serving(output: Option<OwnedFd>) -> Bench {
        let memory = driver::memory(1 << 20);
        let receive = DriverQueue::new(&memory, 0x1000, QUEUE_SIZE);
        let transmit = DriverQueue::new(&memory, 0x3000, QUEUE_SIZE);
        let tail = Arc::new(ConsoleTail::new());
        let mut console = Console::new(output, tail.clone()).expect("a console");
        let interrupt = RecordedInterrupt::new();
        let with = driver::activation(&memory, console.traits().features, &[&receive, &transmit], &interrupt);
        console.activate(with).expect("starts");
        Bench { console, receive, transmit, memory, tail }
    }

    #[test]
    fn what_the_guest_writes_reaches_the_output_and_the_tail() {
        let (mut reader, writer) = pipe().expect("pipe");
        let mut bench = serving(Some(writer.into()));
        bench.memory.write_slice(b"Kernel panic - not syncing", GuestAddress(0x8000)).expect("buffer");
        assert_eq!(bench.transmit.call(&[out(0x8000, 6), out(0x8006, 20)]), 0);
        let mut seen = [0; 26];
        reader.read_exact(&mut seen).expect("output");
        assert_eq!(&seen, b"Kernel panic - not syncing");
        assert_eq!(bench.tail.bytes(), b"Kernel panic - not syncing");
        bench.console.stop();
    }

    #[test]
    fn an_output_that_nobody_reads_costs_bytes_and_no_time() {
        let (_reader, writer) = pipe().expect("pipe");
        let mut bench = serving(Some(writer.into()));
        for _ in 0..40 {
            bench.transmit.call(&[out(0x10000, 0x8000)]);
        }
        assert!(bench.tail.dropped() > 0);
        assert_eq!(bench.tail.bytes().len(), TAIL_LEN);
        bench.console.stop();
    }

    #[test]
    fn input_buffers_stay_with_the_device_untouched() {
        let mut bench = serving(None);
        bench.receive.add(&[into(0x8000, 64)]);
        bench.receive.kick();
        bench.transmit.call(&[out(0x9000, 1)]);
        assert!(bench.receive.used().is_empty());
        let states = bench.console.stop();
        assert_eq!(states.iter().map(|state| state.next_avail).collect::<Vec<_>>(), [0, 1]);
        eventually("idempotence", || bench.console.stop().is_empty());
    }
}
