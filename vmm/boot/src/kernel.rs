//! A guest kernel file, read from its head: an ELF vmlinux or a bzImage.
//!
//! The first [`KERNEL_HEAD_LEN`] bytes and the file's length are enough to know where each byte of the kernel goes and whether
//! all of them are there. The kernel comes from the administrator and not from a pod, so it is trusted to be a kernel, but not to
//! be whole: an interrupted copy is the usual fault, and every error names what is wrong with which part.
//!
//! Sources: ELF-64 Object File Format 1.5; Linux Documentation/arch/x86/boot.rst.

use crate::layout::{KERNEL_MIN_ADDRESS, MemoryLayout, MemoryRange};

/// How much of the file [`KernelImage::parse`] wants to see: the file headers and up to 71 program headers (a vmlinux has 5).
pub const KERNEL_HEAD_LEN: usize = 4096;

/// Kind of kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// Uncompressed ELF: starts at its own entry.
    Elf,
    /// Compressed image with the setup header of the boot protocol.
    BzImage,
}

/// A part of the kernel file and its place in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Physical address of the first byte.
    pub address: u64,
    /// Bytes in memory; what the file does not fill is zero.
    pub memory_len: u64,
}

/// A kernel that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// Which kind of file.
    pub format: KernelFormat,
    /// Parts, none empty in memory, none overlapping.
    pub segments: Vec<Segment>,
    /// Physical address of the first 64-bit instruction.
    pub entry: u64,
    /// The setup header as the file has it, from offset 0x1f1 of the zero page; empty for ELF.
    pub setup_header: Vec<u8>,
}

/// Why a file is not a kernel that this machine can start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KernelError {
    /// No bytes at all.
    #[error("the kernel file is empty: install the guest kernel again")]
    Empty,
    /// Neither magic number is there.
    #[error(
        "the kernel file is neither an ELF vmlinux nor a bzImage (it starts with {0:02x?}): install the guest kernel again"
    )]
    UnknownFormat([u8; 4]),
    /// The right format for another machine.
    #[error("the kernel is not for this machine: {0}: build it for x86_64")]
    WrongMachine(&'static str),
    /// A field of a header makes no sense.
    #[error("the kernel file is damaged: {0}: install the guest kernel again")]
    Damaged(&'static str),
    /// Bytes are missing at the end.
    #[error(
        "the kernel file is cut short: {part} ends at byte {needed}, the file has {len}: install the guest kernel again"
    )]
    Truncated {
        /// What is incomplete.
        part: &'static str,
        /// Length that the headers promise.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// A part would lie over the boot structures or outside RAM.
    #[error(
        "the kernel wants memory {start:#x} to {end:#x}, the machine has {KERNEL_MIN_ADDRESS:#x} to {ram_end:#x} for it: give the machine more memory"
    )]
    OutsideMemory {
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
    },
}

impl KernelImage {
    /// Reads a kernel's head: the first [`KERNEL_HEAD_LEN`] bytes, or all of a shorter file. `file_len` is the length of the whole file.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, KernelError> {
        if file_len == 0 || head.is_empty() {
            return Err(KernelError::Empty);
        }
        if head.starts_with(&ELF_MAGIC) {
            return parse_elf(head, file_len);
        }
        match bytes_at::<4>(head, HEADER_MAGIC) {
            Some(magic) if magic == *b"HdrS" => parse_bzimage(head, file_len),
            _ => Err(KernelError::UnknownFormat(bytes_at::<4>(head, 0).unwrap_or_default())),
        }
    }

    /// Checks that all of the kernel lies in RAM, above the boot structures.
    pub fn check_fits(&self, memory: &MemoryLayout) -> Result<(), KernelError> {
        let ram_end = memory.low().end();
        let room = MemoryRange { start: KERNEL_MIN_ADDRESS, len: ram_end.saturating_sub(KERNEL_MIN_ADDRESS) };
        match self.segments.iter().find(|s| !room.contains(s.address, s.memory_len)) {
            None => Ok(()),
            Some(s) => Err(KernelError::OutsideMemory {
                start: s.address,
                end: s.address.saturating_add(s.memory_len),
                ram_end,
            }),
        }
    }

    /// First address behind the kernel.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.address.saturating_add(s.memory_len)).max().unwrap_or(KERNEL_MIN_ADDRESS)
    }

    /// Bytes that are copied from the file.
    pub fn file_bytes(&self) -> u64 {
        self.segments.iter().fold(0, |sum, s| sum.saturating_add(s.file_len))
    }
}

const ELF_MAGIC: [u8; 4] = [0x7f, b'E', b'L', b'F'];
const ELF_HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;

fn parse_elf(head: &[u8], file_len: u64) -> Result<KernelImage, KernelError> {
    let cut = KernelError::Truncated { part: "the ELF header", needed: ELF_HEADER_LEN, len: file_len };
    let header: [u8; 64] = bytes_at(head, 0).ok_or(cut)?;
    check_elf_header(&header)?;
    let entry = u64_of(&header, 24);
    let table_start = u64_of(&header, 32);
    let count = u16_of(&header, 56);
    let table_end = table_start.saturating_add(u64::from(count) * u64::from(PROGRAM_HEADER_LEN));
    if table_end > file_len {
        return Err(KernelError::Truncated { part: "the ELF program header table", needed: table_end, len: file_len });
    }
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let start = table_start + index * u64::from(PROGRAM_HEADER_LEN);
        let header: [u8; 56] = usize::try_from(start)
            .ok()
            .and_then(|start| bytes_at(head, start))
            .ok_or(KernelError::Damaged("its program headers are not within the first 4 KiB"))?;
        segments.extend(parse_program_header(&header, file_len)?);
    }
    check_segments(&segments, entry)?;
    Ok(KernelImage { format: KernelFormat::Elf, segments, entry, setup_header: Vec::new() })
}

fn check_elf_header(header: &[u8; 64]) -> Result<(), KernelError> {
    match (header[4], header[5], u16_of(header, 18)) {
        (2, 1, EM_X86_64) => {}
        (1, ..) => return Err(KernelError::WrongMachine("a 32-bit ELF file")),
        (_, 2, _) => return Err(KernelError::WrongMachine("a big-endian ELF file")),
        (2, 1, _) => return Err(KernelError::WrongMachine("an ELF file for another processor")),
        _ => return Err(KernelError::Damaged("its ELF identification makes no sense")),
    }
    if u16_of(header, 54) != PROGRAM_HEADER_LEN {
        return Err(KernelError::Damaged("its ELF program headers have a wrong size"));
    }
    Ok(())
}

fn parse_program_header(header: &[u8; 56], file_len: u64) -> Result<Option<Segment>, KernelError> {
    let segment = Segment {
        file_offset: u64_of(header, 8),
        file_len: u64_of(header, 32),
        address: u64_of(header, 24),
        memory_len: u64_of(header, 40),
    };
    if u32_of(header, 0) != PT_LOAD || segment.memory_len == 0 {
        return Ok(None);
    }
    if segment.file_len > segment.memory_len {
        return Err(KernelError::Damaged("an ELF segment is longer in the file than in memory"));
    }
    let needed = segment.file_offset.saturating_add(segment.file_len);
    if needed > file_len {
        return Err(KernelError::Truncated { part: "an ELF segment", needed, len: file_len });
    }
    Ok(Some(segment))
}

fn check_segments(segments: &[Segment], entry: u64) -> Result<(), KernelError> {
    let range = |s: &Segment| MemoryRange { start: s.address, len: s.memory_len };
    if segments.is_empty() {
        return Err(KernelError::Damaged("it has no loadable ELF segment"));
    }
    if segments.iter().any(|s| s.address.checked_add(s.memory_len).is_none()) {
        return Err(KernelError::Damaged("an ELF segment reaches beyond the address space"));
    }
    if !segments.iter().any(|s| range(s).contains(entry, 1)) {
        return Err(KernelError::Damaged("its entry is outside of its segments"));
    }
    let overlaps = |(index, a): (usize, &Segment)| {
        segments[..index].iter().any(|b| range(a).start < range(b).end() && range(b).start < range(a).end())
    };
    if segments.iter().enumerate().any(overlaps) {
        return Err(KernelError::Damaged("two ELF segments overlap in memory"));
    }
    Ok(())
}

// Offsets of the setup header, boot.rst "The Real-Mode Kernel Header".
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_JUMP: usize = 0x201;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// First version with the flag that tells of a 64-bit entry.
const VERSION_MIN: u16 = 0x020c;
/// The 64-bit entry lies at this offset from the start of the protected-mode part.
const ENTRY_64_OFFSET: u64 = 0x200;
/// The zero page uses what follows for something else.
const SETUP_HEADER_END_MAX: usize = 0x290;
const SETUP_HEADER_LEN_MIN: usize = INIT_SIZE + 4;

fn parse_bzimage(head: &[u8], file_len: u64) -> Result<KernelImage, KernelError> {
    if head.len() < SETUP_HEADER_LEN_MIN || u16_of(head, BOOT_FLAG) != 0xaa55 {
        return Err(KernelError::Damaged("its setup header is incomplete"));
    }
    if u16_of(head, VERSION) < VERSION_MIN || u16_of(head, XLOADFLAGS) & 1 == 0 || head[LOADFLAGS] & 1 == 0 {
        return Err(KernelError::WrongMachine("a bzImage without a 64-bit entry"));
    }
    // Zero means four, for the sake of very old loaders.
    let setup_sects = if head[SETUP_SECTS] == 0 { 4 } else { u64::from(head[SETUP_SECTS]) };
    let file_offset = (setup_sects + 1) * 512;
    let code_len = u64::from(u32_of(head, SYSSIZE)) * 16;
    if file_offset + code_len > file_len {
        return Err(KernelError::Truncated { part: "the bzImage", needed: file_offset + code_len, len: file_len });
    }
    let address = u64_of(head, PREF_ADDRESS);
    let memory_len = u64::from(u32_of(head, INIT_SIZE)).max(code_len);
    let segment = Segment { file_offset, file_len: code_len, address, memory_len };
    let header_end = (HEADER_MAGIC + usize::from(head[HEADER_JUMP])).min(SETUP_HEADER_END_MAX).min(head.len());
    if code_len <= ENTRY_64_OFFSET || address.checked_add(memory_len).is_none() || header_end < SETUP_HEADER_LEN_MIN {
        return Err(KernelError::Damaged("its setup header makes no sense"));
    }
    Ok(KernelImage {
        format: KernelFormat::BzImage,
        segments: vec![segment],
        entry: address + ENTRY_64_OFFSET,
        setup_header: head[SETUP_SECTS..header_end].to_vec(),
    })
}

fn bytes_at<const N: usize>(bytes: &[u8], start: usize) -> Option<[u8; N]> {
    bytes.get(start..start.checked_add(N)?)?.try_into().ok()
}

/// For offsets that the caller has checked to be inside.
fn u16_of(bytes: &[u8], start: usize) -> u16 {
    bytes_at(bytes, start).map_or(0, u16::from_le_bytes)
}

fn u32_of(bytes: &[u8], start: usize) -> u32 {
    bytes_at(bytes, start).map_or(0, u32::from_le_bytes)
}

fn u64_of(bytes: &[u8], start: usize) -> u64 {
    bytes_at(bytes, start).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use linux_loader::loader::{Elf, KernelLoader, bzimage::BzImage};
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// A vmlinux with these segments, as (address, bytes, bytes in memory); the entry is the first segment's start.
    pub(crate) fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0u8; 64 + 56 * segments.len()];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        file[24..32].copy_from_slice(&segments.first().map_or(0, |s| s.0).to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..58].copy_from_slice(&[64, 0, 56, 0, segments.len() as u8, 0]);
        for (index, (address, bytes, memory_len)) in segments.iter().enumerate() {
            let offset = file.len() as u64;
            let header = &mut file[64 + 56 * index..][..56];
            header[0] = 1;
            for (at, value) in [(8, offset), (24, *address), (32, bytes.len() as u64), (40, *memory_len)] {
                header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    /// A bzImage with one setup sector and this much code.
    fn bzimage(code_len: u32) -> Vec<u8> {
        let mut file = vec![0u8; 1024 + code_len as usize];
        file[SETUP_SECTS] = 1;
        file[SYSSIZE..SYSSIZE + 4].copy_from_slice(&(code_len / 16).to_le_bytes());
        file[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&0xaa55u16.to_le_bytes());
        file[HEADER_JUMP] = 0x6a;
        file[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        file[LOADFLAGS] = 1;
        file[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        file[XLOADFLAGS] = 1;
        file[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x100_0000u64.to_le_bytes());
        file[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&(2 * code_len).to_le_bytes());
        file
    }

    fn parse(file: &[u8]) -> Result<KernelImage, KernelError> {
        KernelImage::parse(&file[..file.len().min(KERNEL_HEAD_LEN)], file.len() as u64)
    }

    /// Memory after our segments were copied.
    fn load_ours(file: &[u8], image: &KernelImage) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("32 MiB");
        for s in &image.segments {
            let bytes = &file[s.file_offset as usize..][..s.file_len as usize];
            memory.write_slice(bytes, GuestAddress(s.address)).expect("inside");
        }
        memory
    }

    #[test]
    fn a_vmlinux_goes_where_another_loader_puts_it() {
        let file = elf(&[(0x100_0000, &[0x90; 5000], 8192), (0x140_0000, &[0xf4; 300], 300)]);
        let image = parse(&file).expect("whole");
        let ours = load_ours(&file, &image);
        let theirs = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("32 MiB");
        let loaded = Elf::load(&theirs, None, &mut Cursor::new(&file), None).expect("whole");
        assert_eq!(image.entry, loaded.kernel_load.0);
        assert_eq!(image.end(), loaded.kernel_end);
        for address in [0x100_0000u64, 0x100_1380, 0x140_0000, 0x140_0120] {
            let byte = |memory: &GuestMemoryMmap| memory.read_obj::<u64>(GuestAddress(address)).expect("inside");
            assert_eq!(byte(&ours), byte(&theirs), "at {address:#x}");
        }
    }

    #[test]
    fn a_bzimage_goes_where_another_loader_puts_it() {
        let mut file = bzimage(4096);
        file[1024..1028].copy_from_slice(b"code");
        let image = parse(&file).expect("whole");
        assert_eq!((image.format, image.entry), (KernelFormat::BzImage, 0x100_0200));
        let ours = load_ours(&file, &image);
        let theirs = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("32 MiB");
        BzImage::load(&theirs, Some(GuestAddress(0x100_0000)), &mut Cursor::new(&file), None).expect("whole");
        let first = |memory: &GuestMemoryMmap| memory.read_obj::<[u8; 8]>(GuestAddress(0x100_0000)).expect("inside");
        assert_eq!(first(&ours), first(&theirs));
        assert_eq!(image.setup_header[HEADER_MAGIC - SETUP_SECTS..][..4], *b"HdrS");
    }

    #[test]
    fn an_empty_or_foreign_file_is_named_as_such() {
        assert_eq!(parse(&[]), Err(KernelError::Empty));
        assert_eq!(parse(b"#!/bin/sh\n"), Err(KernelError::UnknownFormat(*b"#!/b")));
        assert_eq!(parse(b"M"), Err(KernelError::UnknownFormat([0; 4])));
        let mut arm = elf(&[(0x100_0000, &[0; 16], 16)]);
        arm[18] = 183;
        assert!(matches!(parse(&arm), Err(KernelError::WrongMachine(_))));
    }

    #[test]
    fn a_kernel_cut_anywhere_is_an_error() {
        let files = [elf(&[(0x100_0000, &[0x90; 5000], 8192), (0x140_0000, &[0xf4; 300], 300)]), bzimage(2048)];
        for file in files {
            for len in 0..file.len() {
                assert!(parse(&file[..len]).is_err(), "cut at {len} of {}", file.len());
            }
        }
    }

    #[test]
    fn overlapping_segments_and_a_wild_entry_are_damage() {
        let overlap = elf(&[(0x100_0000, &[0; 64], 8192), (0x100_1000, &[0; 64], 64)]);
        assert!(matches!(parse(&overlap), Err(KernelError::Damaged(_))));
        let mut wild = elf(&[(0x100_0000, &[0; 64], 64)]);
        wild[24..32].copy_from_slice(&0u64.to_le_bytes());
        assert!(matches!(parse(&wild), Err(KernelError::Damaged(_))));
        let beyond = elf(&[(u64::MAX - 8, &[0; 64], 64)]);
        assert!(matches!(parse(&beyond), Err(KernelError::Damaged(_))));
    }

    #[test]
    fn a_machine_too_small_for_the_kernel_is_told_so() {
        let image = parse(&elf(&[(0x100_0000, &[0; 64], 64 << 20)])).expect("whole");
        assert_eq!(image.check_fits(&MemoryLayout::new(128 << 20)), Ok(()));
        let error = image.check_fits(&MemoryLayout::new(64 << 20)).expect_err("ends at 80 MiB");
        assert!(error.to_string().contains("more memory"), "{error}");
        let low = parse(&elf(&[(0x7000, &[0; 64], 64)])).expect("whole");
        assert!(low.check_fits(&MemoryLayout::new(128 << 20)).is_err(), "over the zero page");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(head in proptest::collection::vec(any::<u8>(), 0..2048), len in any::<u64>()) {
            let _ = KernelImage::parse(&head, len);
        }

        #[test]
        fn a_damaged_kernel_never_points_outside_of_its_file(
            base in prop_oneof![
                Just(elf(&[(0x100_0000, &[0x90; 500], 8192), (0x140_0000, &[0xf4; 300], 300)])),
                Just(bzimage(1024)),
            ],
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        ) {
            let mut file = base;
            // The headers are where damage matters.
            for (index, byte) in damage {
                let at = index.index(file.len().min(0x270));
                file[at] = byte;
            }
            if let Ok(image) = parse(&file) {
                for s in &image.segments {
                    prop_assert!(s.file_offset + s.file_len <= file.len() as u64);
                    prop_assert!(s.file_len <= s.memory_len);
                }
                if image.check_fits(&MemoryLayout::new(256 << 20)).is_ok() {
                    prop_assert!(image.end() <= 256 << 20);
                }
            }
        }
    }
}
