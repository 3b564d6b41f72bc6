//! The MP table: processors, the I/O APIC and its interrupt lines.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. An MP table and not ACPI: it says all that this machine needs in less than a KiB, and a
//! kernel without ACPI has no interpreter for firmware byte code, which is code to attack, memory to hold and milliseconds of boot.
//! What it cannot say (processors added later, power states) the machine does not have.

use crate::layout::{BASE_MEMORY_END, INTERRUPT_LINES, IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, MP_TABLE_ADDRESS};

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPECIFICATION_1_4: u8 = 4;
/// Version field of the APICs of KVM.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const ISA_BUS: u8 = 0;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_APICS: u8 = 0xff;

/// The table for this many processors, whose local APIC ids are 0, 1, 2, ...
pub(crate) fn build(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    for id in 0..vcpus {
        entries.push(processor(id).to_vec());
    }
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    entries.push(io_apic(vcpus).to_vec());
    for line in 0..INTERRUPT_LINES {
        // Polarity and trigger as on an ISA bus: active high, edge. That is what an irqfd delivers.
        entries.push(vec![3, INT, 0, 0, ISA_BUS, line, vcpus, line]);
    }
    entries.push(vec![4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    entries.push(vec![4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);
    let bytes = table(&entries);
    debug_assert!(MP_TABLE_ADDRESS + bytes.len() as u64 <= BASE_MEMORY_END, "no room for so many processors");
    bytes
}

/// The floating pointer structure, by which the table is found.
pub(crate) fn pointer() -> [u8; POINTER_LEN] {
    let mut bytes = [0u8; POINTER_LEN];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&(MP_TABLE_ADDRESS as u32).to_le_bytes());
    // Length in units of 16 bytes.
    bytes[8] = 1;
    bytes[9] = SPECIFICATION_1_4;
    bytes[10] = checksum(&bytes);
    bytes
}

fn table(entries: &[Vec<u8>]) -> Vec<u8> {
    let body = entries.concat();
    let mut bytes = vec![0u8; HEADER_LEN];
    bytes[..4].copy_from_slice(b"PCMP");
    bytes[4..6].copy_from_slice(&((HEADER_LEN + body.len()) as u16).to_le_bytes());
    bytes[6] = SPECIFICATION_1_4;
    bytes[8..16].copy_from_slice(b"KATA-RS ");
    bytes[16..28].copy_from_slice(b"MACHINE     ");
    bytes[34..36].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    bytes[36..40].copy_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    bytes.extend(body);
    bytes[7] = checksum(&bytes);
    bytes
}

fn processor(id: u8) -> [u8; 20] {
    let mut entry = [0u8; 20];
    entry[1] = id;
    entry[2] = APIC_VERSION;
    entry[3] = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    // Signature and features: a processor of any kind with an FPU (bit 0) and an APIC (bit 9). Linux asks CPUID.
    entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
    entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
    entry
}

fn io_apic(id: u8) -> [u8; 8] {
    let mut entry = [2, id, IO_APIC_VERSION, ENABLED, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&IO_APIC_ADDRESS.to_le_bytes());
    entry
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_structures_sum_to_zero_and_the_pointer_finds_the_table() {
        let (pointer, table) = (pointer(), build(4));
        assert_eq!(checksum(&pointer), 0);
        assert_eq!(checksum(&table), 0);
        assert_eq!(pointer[4..8], (MP_TABLE_ADDRESS as u32).to_le_bytes());
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
    }

    #[test]
    fn the_largest_machine_fits_into_the_last_kib_of_base_memory() {
        assert!(build(32).len() as u64 <= BASE_MEMORY_END - MP_TABLE_ADDRESS);
    }

    #[test]
    fn walking_the_entries_finds_each_processor_and_line_once() {
        let bytes = build(3);
        let mut rest = &bytes[HEADER_LEN..];
        let (mut processors, mut lines, mut entries) = (Vec::new(), Vec::new(), 0u16);
        while !rest.is_empty() {
            let len = if rest[0] == 0 { 20 } else { 8 };
            match rest[0] {
                0 => processors.push((rest[1], rest[3])),
                3 => lines.push((rest[5], rest[7])),
                _ => {}
            }
            entries += 1;
            rest = &rest[len..];
        }
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
        assert_eq!(lines, (0..24).map(|line| (line, line)).collect::<Vec<_>>());
        assert_eq!(bytes[34..36], entries.to_le_bytes());
    }
}
