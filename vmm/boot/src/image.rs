//! The boot image: everything that must lie in memory before the first instruction.

use crate::{
    command_line::{COMMAND_LINE_MAX, CommandLineError},
    cpu::{self, BootCpu},
    kernel::{KernelError, KernelImage},
    layout::{
        COMMAND_LINE_ADDRESS, GDT_ADDRESS, MP_POINTER_ADDRESS, MP_TABLE_ADDRESS, MemoryLayout, MemoryRange,
        PAGE_TABLES_ADDRESS, SETUP_DATA_ADDRESS, ZERO_PAGE_ADDRESS,
    },
    mp_table, page_tables, zero_page,
};

/// Facts about a machine that decide its boot image.
#[derive(Debug, Clone)]
pub struct BootInput<'a> {
    /// Its RAM.
    pub memory: &'a MemoryLayout,
    /// Number of processors.
    pub vcpus: u8,
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// The finished command line.
    pub command_line: &'a str,
    /// Length of an initrd, if there is one.
    pub initrd_len: Option<u64>,
    /// Random bytes, fresh for each machine.
    pub seed: &'a [u8; 32],
}

/// Bytes and the address they go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is, for messages.
    pub name: &'static str,
    /// Guest physical address.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A stretch of a file and the address it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// First byte in the file.
    pub file_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Guest physical address.
    pub address: u64,
}

/// A plan that only needs to be carried out. Memory that it does not name is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootImage {
    /// Boot structures.
    pub pieces: Vec<Piece>,
    /// Parts of the kernel file.
    pub kernel: Vec<Copy>,
    /// The initrd file, as a whole.
    pub initrd: Option<Copy>,
    /// Registers of the boot processor.
    pub cpu: BootCpu,
}

/// Why there is no boot image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The kernel does not go into this memory.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line is too long.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The initrd does not go behind the kernel.
    #[error(
        "the initrd of {len} bytes does not fit into the {room} bytes behind the kernel: give the machine more memory"
    )]
    Initrd {
        /// Its length.
        len: u64,
        /// What is free.
        room: u64,
    },
}

impl BootImage {
    /// Decides where everything goes.
    pub fn plan(input: &BootInput<'_>) -> Result<Self, PlanError> {
        input.kernel.check_fits(input.memory)?;
        if input.command_line.len() >= COMMAND_LINE_MAX {
            return Err(CommandLineError::TooLong(input.command_line.len()).into());
        }
        let initrd = input.initrd_len.map(|len| place_initrd(input, len)).transpose()?;
        let copies = input.kernel.segments.iter().filter(|s| s.file_len > 0);
        Ok(Self {
            pieces: pieces(input, initrd),
            kernel: copies.map(|s| Copy { file_offset: s.file_offset, len: s.file_len, address: s.address }).collect(),
            initrd: initrd.map(|range| Copy { file_offset: 0, len: range.len, address: range.start }),
            cpu: BootCpu::at(input.kernel.entry),
        })
    }
}

fn pieces(input: &BootInput<'_>, initrd: Option<MemoryRange>) -> Vec<Piece> {
    let piece = |name, address, bytes| Piece { name, address, bytes };
    let mut command_line = input.command_line.as_bytes().to_vec();
    command_line.push(0);
    let zero_page = zero_page::build(input.kernel, input.memory, input.command_line.len(), initrd);
    vec![
        piece("descriptor table", GDT_ADDRESS, cpu::gdt_bytes()),
        piece("zero page", ZERO_PAGE_ADDRESS, zero_page),
        piece("random seed", SETUP_DATA_ADDRESS, zero_page::setup_data(input.seed)),
        piece("page tables", PAGE_TABLES_ADDRESS, page_tables::build()),
        piece("command line", COMMAND_LINE_ADDRESS, command_line),
        piece("MP table's pointer", MP_POINTER_ADDRESS, mp_table::pointer().to_vec()),
        piece("MP table", MP_TABLE_ADDRESS, mp_table::build(input.vcpus)),
    ]
}

/// Where Linux can still reach an initrd with the first page tables: below 1 GiB.
const INITRD_END_MAX: u64 = 1 << 30;

/// At the end of low memory, on a page boundary, and behind the kernel.
fn place_initrd(input: &BootInput<'_>, len: u64) -> Result<MemoryRange, PlanError> {
    let end = input.memory.low().end().min(INITRD_END_MAX);
    let room = end.saturating_sub(input.kernel.end());
    let start = end.checked_sub(len).map(|start| start & !0xfff).filter(|start| *start >= input.kernel.end());
    start.map(|start| MemoryRange { start, len }).ok_or(PlanError::Initrd { len, room })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::tests::elf;

    fn kernel(memory_len: u64) -> KernelImage {
        let file = elf(&[(0x100_0000, &[0x90; 64], memory_len)]);
        KernelImage::parse(&file, file.len() as u64).expect("whole")
    }

    fn plan(memory: u64, vcpus: u8, kernel: &KernelImage, initrd_len: Option<u64>) -> Result<BootImage, PlanError> {
        let memory = MemoryLayout::new(memory);
        BootImage::plan(&BootInput {
            memory: &memory,
            vcpus,
            kernel,
            command_line: "quiet",
            initrd_len,
            seed: &[7; 32],
        })
    }

    #[test]
    fn the_processor_starts_at_the_kernels_entry_with_the_zero_page_in_hand() {
        let image = plan(128 << 20, 1, &kernel(8192), None).expect("fits");
        assert_eq!(image.cpu.rip, 0x100_0000);
        let zero_page = image.pieces.iter().find(|p| p.address == image.cpu.rsi).expect("there is one");
        assert_eq!(zero_page.name, "zero page");
        assert_eq!(image.kernel, [Copy { file_offset: 120, len: 64, address: 0x100_0000 }]);
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_an_error() {
        assert!(matches!(plan(32 << 20, 1, &kernel(8192), Some(32 << 20)), Err(PlanError::Initrd { .. })));
        assert!(matches!(plan(32 << 20, 1, &kernel(8192), Some(u64::MAX)), Err(PlanError::Initrd { .. })));
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_all_is_ram(
            memory in (20u64..6000).prop_map(|mib| mib << 20),
            vcpus in 1u8..=32,
            kernel_len in 1u64..(3 << 20),
            initrd_len in proptest::option::of(1u64..(1 << 20)),
        ) {
            let layout = MemoryLayout::new(memory);
            let image = plan(memory, vcpus, &kernel(kernel_len.max(64)), initrd_len).expect("fits");
            let mut taken: Vec<(u64, u64)> =
                image.pieces.iter().map(|p| (p.address, p.bytes.len() as u64)).collect();
            taken.push((0x100_0000, kernel_len.max(64)));
            taken.extend(image.initrd.map(|c| (c.address, c.len)));
            taken.push((image.cpu.rsp - 256, 256));
            taken.sort_unstable();
            for pair in taken.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:x?}", pair);
            }
            for (start, len) in taken {
                prop_assert!(layout.ranges().iter().any(|r| r.contains(start, len)));
            }
        }
    }
}
