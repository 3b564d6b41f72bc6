//! From the facts about a machine to everything that must lie in its memory before the first instruction.
//!
//! ```text
//!   memory size ──> MemoryLayout ─┐
//!   kernel's head ─> KernelImage ─┼─> BootImage ──> pieces (address, bytes), copies (file range, address),
//!   devices ──────> CommandLine ──┘                 registers of the boot processor
//! ```
//!
//! The machine is the smallest that Linux takes for a PC without firmware: RAM, local APICs and one I/O APIC described by an
//! MP table, virtio devices named on the kernel command line, and an entry by the 64-bit boot protocol, so that no real mode,
//! no firmware and no boot loader ever runs.
//!
//! Nothing here touches KVM, a file or guest memory. The planner answers with plain data, and the VMM carries it out:
//! a wrong kernel, a memory that is too small or a command line that is too long is found before the machine exists.
//! This crate enforces two rules: no unsafe code, and no way to cause an effect.
//!
//! The formats are read with explicit offsets, each with its source, and not through a loader crate: a loader that reads and
//! copies in one go reports a damaged kernel as "unable to read", and moves the file position that an inherited descriptor
//! shares with other machines. The tests hold our readings against that loader's.
#![forbid(unsafe_code)]

mod command_line;
mod cpu;
mod image;
mod kernel;
mod layout;
mod mp_table;
mod page_tables;
mod zero_page;

pub use command_line::{COMMAND_LINE_MAX, CommandLine, CommandLineError};
pub use cpu::{BootCpu, DescriptorTable, SegmentState};
pub use image::{BootImage, BootInput, Copy, Piece, PlanError};
pub use kernel::{KERNEL_HEAD_LEN, KernelError, KernelFormat, KernelImage, Segment};
pub use layout::{
    DeviceSlot, IDENTITY_MAP_ADDRESS, INTERRUPT_LINES, MMIO_SLOT_LEN, MMIO_START, MemoryLayout, MemoryRange, SLOTS_MAX,
    TSS_ADDRESS, device_slot,
};
