//! What has passed through a network device, and what has not.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters over all lives of a device, written by its thread alone. Bytes are those of Ethernet frames.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames from the guest that the host took.
    pub sent_frames: Counter,
    /// Their bytes.
    pub sent_bytes: Counter,
    /// Frames for the guest that it got.
    pub received_frames: Counter,
    /// Their bytes.
    pub received_bytes: Counter,
    /// Dropped: from the guest, with a source that is not the device's.
    pub dropped_source: Counter,
    /// Dropped: from the guest, with a header or length that makes no sense, to us or to the host's kernel.
    pub dropped_malformed: Counter,
    /// Dropped: from the guest, while the host's interface was full or down.
    pub dropped_full: Counter,
    /// Dropped: from the guest, while the link was down.
    pub dropped_link: Counter,
    /// Dropped: for the guest, larger than the buffers that it offers, or of a kind that the header has no words for.
    pub dropped_unfit: Counter,
    /// Times that the guest had no buffers while frames waited. The host's queue drops what does not fit meanwhile.
    pub starved: Counter,
    /// Times that a limit held frames back.
    pub held_by_rate: Counter,
    /// Kicks of the driver, each an exit that KVM answers by itself.
    pub kicks: Counter,
    /// Interrupts, each of which the driver acknowledges.
    pub interrupts: Counter,
    /// Times that the device's thread slept and was woken.
    pub wakeups: Counter,
}

/// One counter. Only one thread adds, so that a plain load and store is enough.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value at this moment.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, count: u64) {
        self.0.store(self.value().wrapping_add(count), Ordering::Relaxed);
    }
}
