//! Registers of the boot processor at its first instruction, as plain data.
//!
//! Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": long mode with paging, flat segments at the selectors 0x10 (code) and
//! 0x18 (data), interrupts off, RSI at the zero page. Other processors need nothing: they wait for the kernel's start-up interrupt.

use crate::layout::{GDT_ADDRESS, PAGE_TABLES_ADDRESS, STACK_ADDRESS, ZERO_PAGE_ADDRESS};

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentState {
    /// Index into the descriptor table, times eight.
    pub selector: u16,
    /// Descriptor as it lies in the table; base is zero.
    pub descriptor: u64,
}

impl SegmentState {
    /// Segment limit in bytes less one, scaled by the granularity bit.
    pub fn limit(&self) -> u32 {
        let raw = (self.descriptor & 0xffff | self.descriptor >> 32 & 0xf_0000) as u32;
        if self.bit(55) { raw << 12 | 0xfff } else { raw }
    }

    /// Bit `index` of the descriptor.
    pub fn bit(&self, index: u32) -> bool {
        self.descriptor >> index & 1 == 1
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.descriptor >> 40 & 0xf) as u8
    }
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Address of the table.
    pub base: u64,
    /// Bytes less one.
    pub limit: u16,
}

/// The boot processor's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootCpu {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer: a few hundred bytes below it are free.
    pub rsp: u64,
    /// Address of the zero page.
    pub rsi: u64,
    /// Only the bit that is always one.
    pub rflags: u64,
    /// Protection, coprocessor, write protection and paging on.
    pub cr0: u64,
    /// Address of the page tables.
    pub cr3: u64,
    /// Only physical address extension.
    pub cr4: u64,
    /// Long mode enabled and active.
    pub efer: u64,
    /// 64-bit code.
    pub code: SegmentState,
    /// Flat data, for all data segment registers.
    pub data: SegmentState,
    /// Task state segment: required to be valid, never used.
    pub task: SegmentState,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
}

const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x008f_8b00_0000_ffff;
/// Null, unused, code, data, task and its upper half.
const GDT: [u64; 6] = [0, 0, CODE_64, DATA, TASK, 0];

impl BootCpu {
    /// Ready to execute at `entry`.
    pub fn at(entry: u64) -> Self {
        Self {
            rip: entry,
            rsp: STACK_ADDRESS,
            rsi: ZERO_PAGE_ADDRESS,
            rflags: 2,
            // PE, MP, ET, NE, WP, AM, PG: what Linux itself uses (CR0_STATE).
            cr0: 0x8005_0033,
            cr3: PAGE_TABLES_ADDRESS,
            // PAE.
            cr4: 0x20,
            // LME, LMA.
            efer: 0x500,
            code: SegmentState { selector: 0x10, descriptor: CODE_64 },
            data: SegmentState { selector: 0x18, descriptor: DATA },
            task: SegmentState { selector: 0x20, descriptor: TASK },
            gdt: DescriptorTable { base: GDT_ADDRESS, limit: (GDT.len() * 8 - 1) as u16 },
        }
    }
}

/// The table itself.
pub(crate) fn gdt_bytes() -> Vec<u8> {
    GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_selector_names_its_descriptor_in_the_table() {
        let cpu = BootCpu::at(0x100_0000);
        let table = gdt_bytes();
        assert_eq!(table.len() - 1, usize::from(cpu.gdt.limit));
        for segment in [cpu.code, cpu.data, cpu.task] {
            let at = usize::from(segment.selector);
            assert_eq!(table[at..at + 8], segment.descriptor.to_le_bytes());
        }
    }

    #[test]
    fn segments_are_flat_and_code_is_64_bit() {
        let cpu = BootCpu::at(0);
        assert_eq!((cpu.code.limit(), cpu.data.limit()), (u32::MAX, u32::MAX));
        let (long, default_32) = (cpu.code.bit(53), cpu.code.bit(54));
        assert!(long && !default_32);
        assert_eq!((cpu.code.kind(), cpu.data.kind(), cpu.task.kind()), (0xb, 0x3, 0xb));
    }
}
