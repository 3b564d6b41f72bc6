//! Bytes from the guest that the host has not taken yet.

use std::io::{self, Write};

use vm_memory::{VolatileSlice, WriteVolatile};

/// Capacity that an empty backlog may keep; a stalled reader must not leave memory behind.
const IDLE_CAPACITY: usize = 0;

/// A first-in first-out byte buffer. Its owner bounds it: no more comes in than the window that the guest was granted.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Appends a copy of guest memory.
    pub(super) fn append(&mut self, slice: &VolatileSlice<'_>) -> io::Result<()> {
        // Moves no more bytes than were taken since the last time, so each byte moves once on average.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.write_all_volatile(slice).map_err(io::Error::other)
    }

    /// Writes what is kept as far as `to` takes it; returns how many bytes that was.
    pub(super) fn write_to(&mut self, mut to: impl Write) -> io::Result<usize> {
        let written = to.write(self.bytes.get(self.start..).unwrap_or_default())?;
        self.start = (self.start + written).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_CAPACITY);
            self.start = 0;
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes seven bytes a call.
    struct Slow(Vec<u8>);

    impl Write for &mut Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(7);
            self.0.extend(&bytes[..len]);
            Ok(len)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_come_out_in_order_and_the_memory_is_given_back() {
        let mut backlog = Backlog::default();
        let mut slow = Slow(Vec::new());
        let mut expected = Vec::new();
        for round in 0u8..100 {
            let mut bytes = vec![round; 10];
            expected.extend(&bytes);
            backlog.append(&VolatileSlice::from(bytes.as_mut_slice())).expect("memory");
            backlog.write_to(&mut slow).expect("slow");
        }
        assert!(backlog.bytes.len() <= 2 * backlog.len() + 20);
        while !backlog.is_empty() {
            backlog.write_to(&mut slow).expect("slow");
        }
        assert_eq!(slow.0, expected);
        assert_eq!(backlog.bytes.capacity(), 0);
    }
}
