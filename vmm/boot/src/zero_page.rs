//! The zero page (`struct boot_params`): what a boot loader tells the kernel.
//!
//! Offsets: Linux Documentation/arch/x86/zero-page.rst and boot.rst.

use crate::{
    kernel::KernelImage,
    layout::{COMMAND_LINE_ADDRESS, MemoryLayout, MemoryRange, SETUP_DATA_ADDRESS},
};

const PAGE_LEN: usize = 4096;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const RAM: u32 = 1;
const SETUP_RNG_SEED: u32 = 9;

/// Bytes of the zero page.
pub(crate) fn build(
    kernel: &KernelImage,
    memory: &MemoryLayout,
    command_line_len: usize,
    initrd: Option<MemoryRange>,
) -> Vec<u8> {
    let mut page = vec![0u8; PAGE_LEN];
    page[SETUP_HEADER..SETUP_HEADER + kernel.setup_header.len()].copy_from_slice(&kernel.setup_header);
    put(&mut page, BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(&mut page, HEADER_MAGIC, b"HdrS");
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[LOADFLAGS] |= LOADED_HIGH;
    put(&mut page, CMD_LINE_PTR, &(COMMAND_LINE_ADDRESS as u32).to_le_bytes());
    put(&mut page, CMDLINE_SIZE, &(command_line_len as u32).to_le_bytes());
    put(&mut page, SETUP_DATA, &SETUP_DATA_ADDRESS.to_le_bytes());
    if kernel.setup_header.is_empty() {
        put(&mut page, KERNEL_ALIGNMENT, &0x100_0000u32.to_le_bytes());
    }
    if let Some(initrd) = initrd {
        put_initrd(&mut page, initrd);
    }
    put_e820(&mut page, memory);
    page
}

/// A `struct setup_data` with a seed for the kernel's random numbers, so that none is awaited.
pub(crate) fn setup_data(seed: &[u8; 32]) -> Vec<u8> {
    let mut bytes = 0u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    bytes.extend_from_slice(&32u32.to_le_bytes());
    bytes.extend_from_slice(seed);
    bytes
}

fn put_initrd(page: &mut [u8], initrd: MemoryRange) {
    put(page, RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
    put(page, RAMDISK_SIZE, &(initrd.len as u32).to_le_bytes());
    put(page, EXT_RAMDISK_IMAGE, &((initrd.start >> 32) as u32).to_le_bytes());
    put(page, EXT_RAMDISK_SIZE, &((initrd.len >> 32) as u32).to_le_bytes());
}

fn put_e820(page: &mut [u8], memory: &MemoryLayout) {
    let usable = memory.usable();
    page[E820_ENTRIES] = usable.len() as u8;
    for (index, range) in usable.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_LEN;
        put(page, at, &range.start.to_le_bytes());
        put(page, at + 8, &range.len.to_le_bytes());
        put(page, at + 16, &RAM.to_le_bytes());
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use linux_loader::bootparam::{boot_params, setup_header};

    use super::*;
    use crate::kernel::tests::elf;

    #[test]
    fn the_offsets_are_those_of_the_kernels_own_struct() {
        let header = |field: usize| offset_of!(boot_params, hdr) + field;
        assert_eq!(E820_ENTRIES, offset_of!(boot_params, e820_entries));
        assert_eq!(E820_TABLE, offset_of!(boot_params, e820_table));
        assert_eq!(EXT_RAMDISK_IMAGE, offset_of!(boot_params, ext_ramdisk_image));
        assert_eq!(BOOT_FLAG, header(offset_of!(setup_header, boot_flag)));
        assert_eq!(HEADER_MAGIC, header(offset_of!(setup_header, header)));
        assert_eq!(TYPE_OF_LOADER, header(offset_of!(setup_header, type_of_loader)));
        assert_eq!(LOADFLAGS, header(offset_of!(setup_header, loadflags)));
        assert_eq!(RAMDISK_IMAGE, header(offset_of!(setup_header, ramdisk_image)));
        assert_eq!(CMD_LINE_PTR, header(offset_of!(setup_header, cmd_line_ptr)));
        assert_eq!(KERNEL_ALIGNMENT, header(offset_of!(setup_header, kernel_alignment)));
        assert_eq!(CMDLINE_SIZE, header(offset_of!(setup_header, cmdline_size)));
        assert_eq!(SETUP_DATA, header(offset_of!(setup_header, setup_data)));
    }

    #[test]
    fn the_memory_map_is_all_ram_but_the_mp_table_and_the_pc_hole() {
        let file = elf(&[(0x100_0000, &[0; 64], 64)]);
        let kernel = KernelImage::parse(&file, file.len() as u64).expect("whole");
        let page = build(&kernel, &MemoryLayout::new(5 << 30), 10, None);
        assert_eq!(page[E820_ENTRIES], 3);
        let entry = |index: usize| {
            let at = E820_TABLE + index * E820_ENTRY_LEN;
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("eight"));
            (word(at), word(at + 8))
        };
        assert_eq!(entry(0), (0, 0x9_fc00));
        assert_eq!(entry(1), (0x10_0000, 0xd000_0000 - 0x10_0000));
        assert_eq!(entry(2), (1 << 32, (5 << 30) - 0xd000_0000));
    }

    #[test]
    fn a_bzimages_own_header_is_handed_on() {
        let mut kernel = KernelImage::parse(&elf(&[(0x100_0000, &[0; 64], 64)]), 1 << 20).expect("whole");
        kernel.setup_header = vec![0x77; 0x70];
        let page = build(&kernel, &MemoryLayout::new(128 << 20), 10, Some(MemoryRange { start: 0x400_0000, len: 99 }));
        assert_eq!(page[SETUP_HEADER], 0x77);
        assert_eq!(page[KERNEL_ALIGNMENT], 0x77);
        assert_eq!(page[TYPE_OF_LOADER], 0xff);
        assert_eq!(page[RAMDISK_SIZE], 99);
    }
}
