//! Where things lie in the guest's physical address space.
//!
//! ```text
//! 0x0000_0010  pointer to the MP table, where Linux looks first (mpparse.c); each further look maps and unmaps a page
//! 0x0000_0500  global descriptor table (BootCpu)
//! 0x0000_7000  zero page (boot_params)
//! 0x0000_8000  random seed (setup_data), then the boot stack below 0x9000
//! 0x0000_9000  page tables: three pages
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  MP table, in the last KiB of base memory
//! 0x000a_0000  nothing, where a PC has video memory and firmware
//! 0x0010_0000  RAM: kernel, initrd
//! 0xd000_0000  virtio-mmio devices, 4 KiB each
//! 0xfec0_0000  I/O APIC, local APICs at 0xfee0_0000 (Intel SDM volume 3, 11.4.1)
//! 0xfffb_c000  identity map page and TSS that KVM needs on some Intel processors (KVM API, 4.47 and 4.35)
//! 0x1_0000_0000 RAM above the hole
//! ```

/// A stretch of guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl MemoryRange {
    /// The first address after the range; saturates.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether `start..start + len` lies inside.
    pub fn contains(&self, start: u64, len: u64) -> bool {
        start >= self.start && start.checked_add(len).is_some_and(|end| end <= self.end())
    }
}

/// RAM of a machine: one range, or two around the hole for devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    ranges: Vec<MemoryRange>,
}

pub(crate) const GDT_ADDRESS: u64 = 0x500;
pub(crate) const ZERO_PAGE_ADDRESS: u64 = 0x7000;
pub(crate) const SETUP_DATA_ADDRESS: u64 = 0x8000;
pub(crate) const STACK_ADDRESS: u64 = 0x8ff0;
pub(crate) const PAGE_TABLES_ADDRESS: u64 = 0x9000;
pub(crate) const COMMAND_LINE_ADDRESS: u64 = 0x2_0000;
pub(crate) const MP_POINTER_ADDRESS: u64 = 0x10;
pub(crate) const MP_TABLE_ADDRESS: u64 = 0x9_fc00;
/// End of base memory: 640 KiB.
pub(crate) const BASE_MEMORY_END: u64 = 0xa_0000;
/// Lowest address of a kernel: 1 MiB, above all of the structures above.
pub(crate) const KERNEL_MIN_ADDRESS: u64 = 0x10_0000;
pub(crate) const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

/// Start of the device window, and the end of low RAM (3.25 GiB).
pub const MMIO_START: u64 = 0xd000_0000;
/// Each device has one page.
pub const MMIO_SLOT_LEN: u64 = 0x1000;
/// For KVM_SET_IDENTITY_MAP_ADDR: one page that no RAM uses.
pub const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// For KVM_SET_TSS_ADDR: three pages that no RAM uses.
pub const TSS_ADDRESS: u64 = 0xfffb_d000;
const HIGH_START: u64 = 1 << 32;

/// Inputs of the I/O APIC of KVM.
pub const INTERRUPT_LINES: u8 = 24;
/// Interrupt lines for devices, in the order in which slots take them. Not 0 to 2 and 8: timer, keyboard, cascade and clock of a PC, which Linux may claim.
const DEVICE_LINES: [u32; 20] = [5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 3, 4];
/// Most devices of a machine: each has an interrupt line of its own.
pub const SLOTS_MAX: usize = DEVICE_LINES.len();

/// Place of one virtio-mmio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot {
    /// First address of its register page.
    pub address: u64,
    /// Its line at the I/O APIC; Linux uses the same number for the interrupt.
    pub line: u32,
}

/// The place of device `index`, or `None` from [`SLOTS_MAX`] on.
pub fn device_slot(index: usize) -> Option<DeviceSlot> {
    let line = *DEVICE_LINES.get(index)?;
    Some(DeviceSlot { address: MMIO_START + MMIO_SLOT_LEN * u64::try_from(index).ok()?, line })
}

impl MemoryLayout {
    /// Splits `bytes` of RAM around the device window.
    pub fn new(bytes: u64) -> Self {
        let low = bytes.min(MMIO_START);
        let mut ranges = vec![MemoryRange { start: 0, len: low }];
        if bytes > low {
            ranges.push(MemoryRange { start: HIGH_START, len: bytes - low });
        }
        Self { ranges }
    }

    /// The RAM, in order. The ranges lie in the machine's memory file one behind the other.
    pub fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    /// RAM below 4 GiB.
    pub fn low(&self) -> MemoryRange {
        self.ranges[0]
    }

    /// What a kernel may use freely: RAM without the MP table and the PC's hole below 1 MiB.
    pub(crate) fn usable(&self) -> Vec<MemoryRange> {
        let low = self.low();
        let mut usable = vec![
            MemoryRange { start: 0, len: MP_TABLE_ADDRESS },
            MemoryRange { start: KERNEL_MIN_ADDRESS, len: low.len.saturating_sub(KERNEL_MIN_ADDRESS) },
        ];
        usable.extend_from_slice(&self.ranges[1..]);
        usable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_machine_has_one_range() {
        assert_eq!(MemoryLayout::new(128 << 20).ranges(), [MemoryRange { start: 0, len: 128 << 20 }]);
    }

    #[test]
    fn a_large_machine_goes_on_above_4_gib_and_loses_nothing() {
        let layout = MemoryLayout::new(16 * GIB);
        assert_eq!(layout.ranges()[1].start, 4 * GIB);
        assert_eq!(layout.ranges().iter().map(|r| r.len).sum::<u64>(), 16 * GIB);
        assert_eq!(layout.low().end(), MMIO_START);
    }

    #[test]
    fn devices_have_places_of_their_own_that_are_no_ram() {
        let slots: Vec<_> = (0..SLOTS_MAX).filter_map(device_slot).collect();
        assert_eq!(slots.len(), SLOTS_MAX);
        for (index, slot) in slots.iter().enumerate() {
            assert!(slot.address >= MemoryLayout::new(64 * GIB).low().end());
            assert!(slot.address + MMIO_SLOT_LEN <= u64::from(IO_APIC_ADDRESS));
            assert!(slot.line < u32::from(INTERRUPT_LINES));
            assert!(slots[..index].iter().all(|other| other.line != slot.line && other.address != slot.address));
        }
        assert_eq!(device_slot(SLOTS_MAX), None);
    }

    #[test]
    fn a_range_does_not_contain_what_wraps_around() {
        let range = MemoryRange { start: 0x1000, len: 0x1000 };
        assert!(range.contains(0x1000, 0x1000));
        assert!(!range.contains(0x1800, 0x801));
        assert!(!range.contains(0x1800, u64::MAX));
    }
}
