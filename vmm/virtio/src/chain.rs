//! A descriptor chain, checked whole before a byte of it is touched.
//!
//! The driver builds chains in memory that it can change at any time. [`Chain::parse`] reads every descriptor once into an owned list and
//! checks that list: a proper end, no more descriptors than the queue has, readable ones before writable ones (virtio 1.2, section 2.7.4.2),
//! every buffer inside guest memory, and a total below the device's own limit. What devices then use are the checked copies.
//! Buffers may still overlap or lie in the rings; that harms only the guest that asked for it.

use std::cmp::min;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice};

/// Why a chain is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainFault {
    /// The available ring names a descriptor that the table does not have.
    #[error("its head {head} is not below the queue's size {size}")]
    Head { head: u16, size: u16 },
    /// It has no proper last descriptor: a loop, an index beyond the table, a bad indirect table, or 2^32 bytes and more.
    #[error("it has no proper end")]
    NoEnd,
    /// Longer than the queue.
    #[error("it has more than {max} descriptors")]
    TooMany { max: u16 },
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A buffer outside guest memory.
    #[error("its buffer of {len} bytes at {address:#x} is not in guest memory")]
    Range { address: u64, len: u32 },
    /// More bytes than the device takes in one request.
    #[error("its {len} bytes are over the device's limit of {max}")]
    TooLong { len: u64, max: u64 },
    /// Too short for what the device reads from it or writes to it.
    #[error("its buffers end at byte {len}, and {wanted} are needed")]
    TooShort { len: usize, wanted: usize },
    /// Checked memory could not be reached.
    #[error("guest memory could not be reached")]
    Memory(#[source] GuestMemoryError),
}

/// One buffer of a chain, inside guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    len: usize,
}

/// A checked descriptor chain. Given back by value, so it is completed at most once.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: usize,
    writable_len: usize,
}

impl Chain {
    /// Reads the descriptors of `chain` once and checks them all. `bytes_max` limits the sum of all buffers.
    pub(crate) fn parse(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        queue_size: u16,
        bytes_max: u64,
    ) -> Result<Self, ChainFault> {
        let head = chain.head_index();
        if head >= queue_size {
            return Err(ChainFault::Head { head, size: queue_size });
        }
        let mut parsed = Self { head, readable: Vec::new(), writable: Vec::new(), readable_len: 0, writable_len: 0 };
        let mut total = 0u64;
        let mut writing = false;
        // The iterator ends silently at anything it does not like, so the end is proper only after a descriptor without NEXT.
        let mut ended = false;
        for (position, descriptor) in chain.enumerate() {
            if position == usize::from(queue_size) {
                return Err(ChainFault::TooMany { max: queue_size });
            }
            if writing && !descriptor.is_write_only() {
                return Err(ChainFault::Order);
            }
            writing = descriptor.is_write_only();
            total = total.saturating_add(u64::from(descriptor.len()));
            if total > bytes_max {
                return Err(ChainFault::TooLong { len: total, max: bytes_max });
            }
            parsed.append(memory, descriptor.addr(), descriptor.len(), writing)?;
            ended = !descriptor.has_next();
        }
        if ended { Ok(parsed) } else { Err(ChainFault::NoEnd) }
    }

    fn append(
        &mut self,
        memory: &GuestMemoryMmap,
        address: GuestAddress,
        len: u32,
        writable: bool,
    ) -> Result<(), ChainFault> {
        if len == 0 {
            // Holds nothing, wherever it is.
            return Ok(());
        }
        let range_fault = ChainFault::Range { address: address.0, len };
        let Ok(len) = usize::try_from(len) else { return Err(range_fault) };
        if !GuestMemoryBackend::check_range(memory, address, len) {
            return Err(range_fault);
        }
        let (segments, sum) = match writable {
            true => (&mut self.writable, &mut self.writable_len),
            false => (&mut self.readable, &mut self.readable_len),
        };
        segments.push(Segment { address, len });
        *sum += len;
        Ok(())
    }

    /// Index of the first descriptor, which names the chain in the used ring.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    pub(crate) fn readable_len(&self) -> usize {
        self.readable_len
    }

    /// Bytes the device may write.
    pub(crate) fn writable_len(&self) -> usize {
        self.writable_len
    }

    /// Copies the readable bytes from `offset` on; all of `into` is filled.
    pub(crate) fn read(&self, memory: &GuestMemoryMmap, offset: usize, into: &mut [u8]) -> Result<(), ChainFault> {
        fits(self.readable_len, offset, into.len())?;
        let mut rest = into;
        for piece in pieces(&self.readable, offset, rest.len()) {
            let (now, later) = rest.split_at_mut(min(piece.len, rest.len()));
            memory.read_slice(now, piece.address).map_err(ChainFault::Memory)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies all of `from` into the writable bytes from `offset` on.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap, offset: usize, from: &[u8]) -> Result<(), ChainFault> {
        fits(self.writable_len, offset, from.len())?;
        let mut rest = from;
        for piece in pieces(&self.writable, offset, rest.len()) {
            let (now, later) = rest.split_at(min(piece.len, rest.len()));
            memory.write_slice(now, piece.address).map_err(ChainFault::Memory)?;
            rest = later;
        }
        Ok(())
    }

    /// The memory behind `len` readable bytes from `offset` on, for a system call to read from.
    pub(crate) fn readable_slices<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        offset: usize,
        len: usize,
    ) -> impl Iterator<Item = Result<VolatileSlice<'a>, ChainFault>> {
        slices(memory, pieces(&self.readable, offset, len))
    }

    /// The memory behind `len` writable bytes from `offset` on, for a system call to fill.
    pub(crate) fn writable_slices<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        offset: usize,
        len: usize,
    ) -> impl Iterator<Item = Result<VolatileSlice<'a>, ChainFault>> {
        slices(memory, pieces(&self.writable, offset, len))
    }
}

fn fits(have: usize, offset: usize, len: usize) -> Result<(), ChainFault> {
    match offset.checked_add(len) {
        Some(end) if end <= have => Ok(()),
        end => Err(ChainFault::TooShort { len: have, wanted: end.unwrap_or(usize::MAX) }),
    }
}

/// The parts of `segments` that hold `len` bytes from `offset` on, as far as they go.
fn pieces(segments: &[Segment], offset: usize, len: usize) -> impl Iterator<Item = Segment> {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let skipped = min(skip, segment.len);
        skip -= skipped;
        let len = min(segment.len - skipped, left);
        left -= len;
        // The sum stays inside the checked segment, so it cannot wrap.
        let address = GuestAddress(segment.address.0.wrapping_add(skipped as u64));
        (len > 0).then_some(Segment { address, len })
    })
}

/// A segment may span two regions of guest memory, and then it is two slices.
fn slices<'a>(
    memory: &'a GuestMemoryMmap,
    pieces: impl Iterator<Item = Segment>,
) -> impl Iterator<Item = Result<VolatileSlice<'a>, ChainFault>> {
    pieces
        .flat_map(|piece| GuestMemoryBackend::get_slices(memory, piece.address, piece.len))
        .map(|slice| slice.map_err(ChainFault::Memory))
}

#[cfg(test)]
mod tests;
