//! The last words of a guest.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes kept: enough for a kernel panic with its call trace.
pub const TAIL_LEN: usize = 8 * 1024;

/// The last [`TAIL_LEN`] bytes that the guest wrote to its consoles. Shared by the virtio console and the early serial port.
#[derive(Debug, Default)]
pub struct ConsoleTail {
    last: Mutex<VecDeque<u8>>,
    dropped: AtomicU64,
}

impl ConsoleTail {
    /// An empty tail. It takes memory as bytes come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes; the oldest beyond [`TAIL_LEN`] are forgotten.
    pub fn push(&self, bytes: &[u8]) {
        let kept = bytes.get(bytes.len().saturating_sub(TAIL_LEN)..).unwrap_or_default();
        let mut last = self.lock();
        let excess = (last.len() + kept.len()).saturating_sub(TAIL_LEN);
        last.drain(..excess);
        last.extend(kept);
    }

    /// A copy of what is kept, oldest first. It is the guest's: show it escaped.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    /// Bytes that the output did not take in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts bytes that an output did not take.
    pub fn count_dropped(&self, bytes: usize) {
        self.dropped.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    // The bytes are whole after every step, so a thread that died with the lock has broken nothing.
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_bytes_are_kept() {
        let tail = ConsoleTail::new();
        tail.push(b"first");
        tail.push(&[b'x'; TAIL_LEN - 2]);
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), TAIL_LEN);
        assert_eq!(&bytes[..3], b"stx");
        tail.push(&[b'y'; 3 * TAIL_LEN]);
        assert_eq!(tail.bytes(), [b'y'; TAIL_LEN]);
    }
}
