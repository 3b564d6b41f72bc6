//! The driver's side of queues and interrupts, for tests.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::{Activation, ActiveQueue, Interrupt};

/// Descriptor flags of section 2.7.5.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Longest that a test waits for a device's thread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Guest memory of 1 MiB and more; tests place rings low and buffers above.
pub(crate) fn memory(len: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).expect("anonymous memory")
}

/// Waits until `done`, which a device's thread makes true.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// A buffer as a driver describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// Readable by the device.
pub(crate) fn out(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// Writable by the device.
pub(crate) fn into(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// A split queue from the driver's side. Descriptors are taken round robin and never checked for reuse.
pub(crate) struct DriverQueue {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used_seen: u16,
    pub(crate) kick: EventFd,
}

impl DriverQueue {
    /// Rings from `base` (page-aligned) on, in less than 8 KiB for sizes up to 256.
    pub(crate) fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Self {
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("eventfd");
        Self { memory: memory.clone(), base, size, next_descriptor: 0, available: 0, used_seen: 0, kick }
    }

    /// Zeros the rings, as a driver does after a reset of the device.
    pub(crate) fn start_over(&mut self) {
        self.set_available_index(0);
        self.memory.write_obj(0u16, GuestAddress(self.used_ring() + 2)).expect("ring");
        (self.next_descriptor, self.available, self.used_seen) = (0, 0, 0);
    }

    pub(crate) fn descriptor_ring(&self) -> u64 {
        self.base
    }

    pub(crate) fn available_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub(crate) fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// The queue as the transport would hand it to the device.
    pub(crate) fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(self.descriptor_ring())).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring())).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).expect("aligned");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    pub(crate) fn active(&self, event_idx: bool) -> ActiveQueue {
        ActiveQueue { queue: self.queue(event_idx), kick: self.kick.try_clone().expect("eventfd") }
    }

    /// Writes one descriptor as it is.
    pub(crate) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        write_descriptor(&self.memory, self.base + 16 * u64::from(index), address, len, flags, next);
    }

    /// Makes the chain that starts at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).expect("ring");
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Writes the index of the available ring as it is.
    pub(crate) fn set_available_index(&self, index: u16) {
        self.memory.store(index, GuestAddress(self.available_ring() + 2), Ordering::Release).expect("ring");
    }

    /// Makes a well-formed chain available; returns its head.
    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if position + 1 < buffers.len() { NEXT } else { 0 };
            let direction = if buffer.writable { WRITE } else { 0 };
            self.describe(index, buffer.address, buffer.len, more | direction, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// Chains given back since the last call, with the bytes written into each.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self.memory.load(GuestAddress(self.used_ring() + 2), Ordering::Acquire).expect("ring");
        let mut used = Vec::new();
        while self.used_seen != index {
            let slot = self.used_ring() + 4 + 8 * u64::from(self.used_seen % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(slot)).expect("ring");
            let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).expect("ring");
            used.push((head as u16, len));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }

    /// Waits for the next chains given back.
    pub(crate) fn wait_used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        eventually("a used buffer", || {
            used = self.used();
            !used.is_empty()
        });
        used
    }

    /// Adds one chain, kicks and waits for it; returns the bytes written.
    pub(crate) fn call(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.add(buffers);
        self.kick();
        let used = self.wait_used();
        assert_eq!(used.len(), 1, "one chain was offered, {used:?} came back");
        assert_eq!(used[0].0, head);
        used[0].1
    }
}

/// Writes one descriptor at an address, for indirect tables.
pub(crate) fn write_descriptor(memory: &GuestMemoryMmap, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    memory.write_obj(address, GuestAddress(at)).expect("descriptor");
    memory.write_obj(len, GuestAddress(at + 8)).expect("descriptor");
    memory.write_obj(flags, GuestAddress(at + 12)).expect("descriptor");
    memory.write_obj(next, GuestAddress(at + 14)).expect("descriptor");
}

/// What `activate` needs, over queues that the test drives.
pub(crate) fn activation(
    memory: &GuestMemoryMmap,
    features: u64,
    queues: &[&DriverQueue],
    interrupt: &Arc<RecordedInterrupt>,
) -> Activation {
    Activation {
        memory: memory.clone(),
        features,
        queues: queues.iter().map(|queue| queue.active(features & (1 << 29) != 0)).collect(),
        interrupt: interrupt.clone(),
    }
}

/// Remembers what a device signalled.
pub(crate) struct RecordedInterrupt {
    signals: AtomicU32,
    rings: AtomicU32,
    configs: AtomicU32,
    reset: AtomicBool,
    losses: Mutex<Vec<String>>,
    line: EventFd,
}

impl RecordedInterrupt {
    pub(crate) fn new() -> Arc<Self> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("eventfd");
        Arc::new(Self {
            signals: AtomicU32::new(0),
            rings: AtomicU32::new(0),
            configs: AtomicU32::new(0),
            reset: AtomicBool::new(false),
            losses: Mutex::default(),
            line,
        })
    }

    /// Queues that were told of, one by one.
    pub(crate) fn signals(&self) -> u32 {
        self.signals.load(Ordering::SeqCst)
    }

    /// Interrupts, each of which may be for several queues.
    pub(crate) fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Changes of the configuration that were told.
    pub(crate) fn configs(&self) -> u32 {
        self.configs.load(Ordering::SeqCst)
    }

    pub(crate) fn line(&self) -> &EventFd {
        &self.line
    }

    /// The causes for which the device was lost.
    pub(crate) fn losses(&self) -> Vec<String> {
        self.losses.lock().expect("whole").clone()
    }

    pub(crate) fn reset_asked(&self) -> bool {
        self.reset.load(Ordering::SeqCst)
    }

    pub(crate) fn wait_for_reset(&self) -> bool {
        eventually("a request for reset", || self.reset_asked());
        true
    }
}

impl Interrupt for RecordedInterrupt {
    fn signal_queue(&self, index: u16) {
        self.signal_queues(&[index]);
    }
    fn signal_queues(&self, indexes: &[u16]) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.signals.fetch_add(indexes.len() as u32, Ordering::SeqCst);
    }
    fn signal_config(&self, _offset: u32, _field: u16) {
        self.configs.fetch_add(1, Ordering::SeqCst);
    }
    fn needs_reset(&self) {
        self.reset.store(true, Ordering::SeqCst);
    }
    fn lost(&self, cause: &str) {
        self.losses.lock().expect("whole").push(cause.to_owned());
        self.needs_reset();
    }
    fn queue_eventfd(&self) -> std::io::Result<EventFd> {
        self.line.try_clone()
    }
}
