//! What a guest kernel is going to touch before its agent calls: pure.
//!
//! On software KVM each first touch of a page by the guest is a trap of some 35 us, unless the page is already mapped in this
//! process: then KVM fills several neighbours in one trap. Almost all the pages below are touched in any boot, so mapping them ahead costs
//! next to no memory, and a boot becomes shorter. Where a page table is walked by hardware a first touch costs
//! less than a microsecond, and nothing is mapped ahead.
//!
//! The stretches were read off the memory file of a booted guest (SEEK_DATA, SEEK_HOLE) of 128 and 512 MiB.

use vmm_boot::MemoryRange;

const MIB: u64 = 1 << 20;
/// Bytes mapped by one call.
const PIECE_LEN: u64 = MIB / 4;
/// From the kernel's first byte: its image, what it clears for itself, and its first allocations.
const KERNEL_LEN: u64 = 12 * MIB;
/// First pages that the page allocator hands out.
const LOW: [MemoryRange; 2] =
    [MemoryRange { start: MIB, len: MIB }, MemoryRange { start: 8 * MIB, len: 3 * MIB + MIB / 4 }];
/// One `struct page` of 64 bytes for each 4 KiB, at the top of memory.
const MEMORY_PER_MEMORY_MAP: u64 = 64;
/// What lies below the memory map: per-CPU areas, hashes of the network and of files.
const BELOW_MEMORY_MAP_LEN: u64 = 2 * MIB;

/// The stretches for a machine whose RAM below 4 GiB is `low`, with the kernel at `kernel_start`, and `total` bytes in all.
pub fn stretches(low: MemoryRange, total: u64, kernel_start: u64) -> Vec<MemoryRange> {
    let mut all = LOW.to_vec();
    all.push(MemoryRange { start: kernel_start, len: KERNEL_LEN });
    // With RAM above 4 GiB, the top is there, and the memory map is large: such a machine is not started for its boot time.
    if total == low.len {
        let len = (total / MEMORY_PER_MEMORY_MAP + BELOW_MEMORY_MAP_LEN).min(low.len);
        all.push(MemoryRange { start: low.end() - len, len });
    }
    all.into_iter().filter_map(|range| within(range, low)).collect()
}

/// A stretch in pieces, each mapped by one call: while one runs, nobody else in this process can map anything, a thread's stack for instance.
pub fn pieces(stretch: &MemoryRange) -> impl Iterator<Item = MemoryRange> + use<> {
    let (start, end) = (stretch.start, stretch.end());
    (start..end).step_by(PIECE_LEN as usize).map(move |start| MemoryRange { start, len: PIECE_LEN.min(end - start) })
}

/// The part of `range` that is RAM.
fn within(range: MemoryRange, low: MemoryRange) -> Option<MemoryRange> {
    let (start, end) = (range.start.max(low.start), range.end().min(low.end()));
    (start < end).then(|| MemoryRange { start, len: end - start })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low(mib: u64) -> MemoryRange {
        MemoryRange { start: 0, len: mib * MIB }
    }

    #[test]
    fn the_top_grows_with_the_memory_map() {
        let top = |mib| stretches(low(mib), mib * MIB, 16 * MIB).pop().expect("a top");
        assert_eq!(top(128), MemoryRange { start: 124 * MIB, len: 4 * MIB });
        assert_eq!(top(512), MemoryRange { start: 502 * MIB, len: 10 * MIB });
    }

    #[test]
    fn pieces_are_the_whole_stretch() {
        let stretch = MemoryRange { start: 5 * MIB, len: PIECE_LEN * 3 + 4096 };
        let all: Vec<_> = pieces(&stretch).collect();
        assert_eq!((all.len(), all.iter().map(|piece| piece.len).sum::<u64>()), (4, stretch.len));
        assert!(all.windows(2).all(|pair| pair[0].end() == pair[1].start) && all[0].start == stretch.start);
    }

    #[test]
    fn nothing_lies_outside_of_memory() {
        for mib in [1, 8, 9, 20, 48, 3072] {
            for range in stretches(low(mib), mib * MIB, 16 * MIB) {
                assert!(range.end() <= mib * MIB && range.len > 0, "{mib} MiB: {range:?}");
            }
        }
    }

    #[test]
    fn memory_above_4_gib_is_left_alone() {
        let all = stretches(low(3072), 8192 * MIB, 16 * MIB);
        assert!(all.iter().all(|range| range.end() <= 28 * MIB), "{all:?}");
    }
}
