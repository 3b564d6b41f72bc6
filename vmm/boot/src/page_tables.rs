//! The page tables with which the kernel is entered: the first GiB of physical memory, mapped to itself.
//!
//! The 64-bit boot protocol asks for the kernel, the zero page and the command line to be mapped to themselves; the kernel
//! makes its own tables within its first few hundred instructions.
//! All entries carry the User bit: software KVM runs the guest's kernel at the processor's user level and needs it at every level,
//! and elsewhere it changes nothing, since CR4 is entered without SMEP and SMAP. (Slot 256 of the top level, which such hosts reserve, stays empty.)

use crate::layout::PAGE_TABLES_ADDRESS;

const PAGE_LEN: usize = 4096;
const PRESENT_WRITABLE_USER: u64 = 0b111;
/// Intel SDM volume 3, 4.5: this entry maps 2 MiB instead of naming a table.
const LARGE: u64 = 1 << 7;
const LARGE_LEN: u64 = 2 << 20;

/// Three pages: top level, second level, and the 512 mappings of 2 MiB.
pub(crate) fn build() -> Vec<u8> {
    let mut pages = vec![0u8; 3 * PAGE_LEN];
    let (tables, mappings) = pages.split_at_mut(2 * PAGE_LEN);
    put(tables, 0, (PAGE_TABLES_ADDRESS + PAGE_LEN as u64) | PRESENT_WRITABLE_USER);
    put(tables, PAGE_LEN, (PAGE_TABLES_ADDRESS + 2 * PAGE_LEN as u64) | PRESENT_WRITABLE_USER);
    for (index, entry) in (0u64..).zip(mappings.chunks_exact_mut(8)) {
        entry.copy_from_slice(&((index * LARGE_LEN) | LARGE | PRESENT_WRITABLE_USER).to_le_bytes());
    }
    pages
}

fn put(page: &mut [u8], at: usize, entry: u64) {
    page[at..at + 8].copy_from_slice(&entry.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a processor does.
    fn translate(pages: &[u8], address: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let at = (table - PAGE_TABLES_ADDRESS + index * 8) as usize;
            let entry = u64::from_le_bytes(pages[at..at + 8].try_into().expect("eight"));
            (entry & PRESENT_WRITABLE_USER == PRESENT_WRITABLE_USER).then_some(entry)
        };
        let top = entry(PAGE_TABLES_ADDRESS, address >> 39 & 511)?;
        let second = entry(top & !0xfff, address >> 30 & 511)?;
        let third = entry(second & !0xfff, address >> 21 & 511)?;
        assert_ne!(third & LARGE, 0);
        Some((third & !0x1f_ffff) + (address & 0x1f_ffff))
    }

    #[test]
    fn the_first_gib_maps_to_itself_and_nothing_else_is_mapped() {
        let pages = build();
        for address in [0, 0x7000, 0x100_0000, (1 << 30) - 1] {
            assert_eq!(translate(&pages, address), Some(address));
        }
        assert_eq!(translate(&pages, 1 << 30), None);
        assert_eq!(translate(&pages, 0xffff_8000_0000_0000), None);
    }
}
