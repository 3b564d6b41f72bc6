//! The registers of one device as the driver reads them: a page of the host's memory, which the machine shows the guest read-only.
//!
//! So a read of a register is a read of memory: no exit, and nobody of ours runs. That is possible as no read of virtio-mmio does anything else than to
//! read (section 4.2.2); what a read would find is written here whenever it changes. A write to such a page is an exit as ever, or an ioeventfd.
//!
//! Drivers map it uncached. Most hosts show them cached memory nevertheless; where the processor does as the guest wants (AMD), such reads are as coherent
//! with our writes as any.
//!
//! The page is the one copy of what it holds: the bits of InterruptStatus and DEVICE_NEEDS_RESET are set here, by the device's thread,
//! while the driver's writes change other bits from a vCPU's.

use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use super::{WINDOW_LEN, registers::CONFIG_OFFSET};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Version 2: no legacy interface.
const VERSION: u32 = 2;

/// A register that the driver reads, by its offset in the window.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(super) enum Shown {
    Magic = 0x000,
    Version = 0x004,
    DeviceType = 0x008,
    Vendor = 0x00c,
    DeviceFeatures = 0x010,
    QueueSizeMax = 0x034,
    QueueReady = 0x044,
    InterruptStatus = 0x060,
    Status = 0x070,
    SharedMemoryLenLow = 0x0b0,
    SharedMemoryLenHigh = 0x0b4,
    SharedMemoryBaseLow = 0x0b8,
    SharedMemoryBaseHigh = 0x0bc,
    ConfigGeneration = 0x0fc,
}

/// The page of one place for a device.
#[derive(Debug, Clone)]
pub struct Window {
    pages: GuestMemoryMmap,
    start: GuestAddress,
}

impl Window {
    /// The page at guest address `start` of `pages`, which are no part of the guest's RAM; it shows a placeholder. Fails when it is not all there.
    pub fn new(pages: GuestMemoryMmap, start: u64) -> io::Result<Self> {
        let start = GuestAddress(start);
        let there = usize::try_from(WINDOW_LEN).is_ok_and(|len| pages.get_slice(start, len).is_ok());
        if !there || !start.0.is_multiple_of(WINDOW_LEN) {
            let text = format!("no page for the registers of a device at {:#x}", start.0);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let window = Self { pages, start };
        window.vacate();
        window.set(Shown::Version, VERSION);
        window.set(Shown::Magic, MAGIC);
        Ok(window)
    }

    /// From now on a driver finds no device here, but the placeholder that it passes over without a word (section 4.2.2, register DeviceID).
    pub(super) fn vacate(&self) {
        // What makes it a placeholder is never away; that there is a device goes first.
        self.set(Shown::DeviceType, 0);
        self.write(Shown::DeviceType as u64, &[0; WINDOW_LEN as usize - Shown::DeviceType as usize]);
    }

    /// What the driver reads.
    pub(super) fn get(&self, register: Shown) -> u32 {
        self.change(register, |word| u32::from_le(word.load(Ordering::SeqCst)))
    }

    /// Replaces a register.
    pub(super) fn set(&self, register: Shown, value: u32) {
        self.change(register, |word| word.swap(value.to_le(), Ordering::SeqCst));
    }

    /// Sets bits of a register, and leaves the others to whoever else changes them.
    pub(super) fn set_bits(&self, register: Shown, bits: u32) {
        self.change(register, |word| word.fetch_or(bits.to_le(), Ordering::SeqCst));
    }

    /// Clears bits of a register.
    pub(super) fn clear_bits(&self, register: Shown, bits: u32) {
        self.change(register, |word| word.fetch_and(!bits.to_le(), Ordering::SeqCst));
    }

    /// Fills the configuration space, whose end is that of the page. For a device that nobody drives.
    pub(super) fn set_config(&self, bytes: &[u8]) {
        self.write(CONFIG_OFFSET, bytes);
    }

    /// Replaces a field of the configuration space at once, whoever reads it meanwhile. One that is not aligned has no such way, and stays.
    pub(super) fn set_config_field(&self, offset: u32, field: u16) {
        let place = GuestAddress(self.start.0 + CONFIG_OFFSET + u64::from(offset));
        if let Err(error) = self.pages.store(field.to_le(), place, Ordering::SeqCst) {
            log::debug!("a field of a device's configuration at {offset} stays as it is: {error}");
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(WINDOW_LEN.saturating_sub(offset)).unwrap_or(0);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if let Err(error) = self.pages.write_slice(bytes, GuestAddress(self.start.0 + offset)) {
            log::debug!("a page of registers that was there is gone: {error}");
        }
    }

    /// Zero if there were no such page, for which `new` has looked; its words are aligned.
    fn change(&self, register: Shown, change: impl FnOnce(&AtomicU32) -> u32) -> u32 {
        let place = GuestAddress(self.start.0 + register as u64);
        let slice = self.pages.get_slice(place, size_of::<u32>()).ok();
        slice.and_then(|slice| slice.get_atomic_ref(0).ok().map(change)).unwrap_or(0)
    }

    /// What a driver reads with any width at any offset.
    #[cfg(test)]
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        self.pages.read_slice(data, GuestAddress(self.start.0 + offset)).expect("inside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0xd000_0000), 0x2000)]).expect("memory")
    }

    #[test]
    fn an_empty_place_shows_a_placeholder_which_is_a_device_of_type_0_and_nothing_else() {
        let window = Window::new(pages(), 0xd000_1000).expect("there");
        window.set_config(&[7; 10]);
        window.set(Shown::Status, 15);
        window.vacate();
        let mut all = vec![0xff; WINDOW_LEN as usize];
        window.read(0, &mut all);
        assert_eq!(all[..12], *b"virt\x02\0\0\0\0\0\0\0");
        assert!(all[8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_window_is_a_page_that_is_there() {
        for start in [0, 0xcfff_f000, 0xd000_0800, 0xd000_2000, u64::MAX] {
            Window::new(pages(), start).expect_err("not there");
        }
    }

    #[test]
    fn what_is_longer_than_the_page_ends_with_it() {
        let pages = pages();
        let (window, next) = (Window::new(pages.clone(), 0xd000_0000), Window::new(pages, 0xd000_1000));
        window.expect("there").set_config(&[0xff; 0x2000]);
        assert_eq!(next.expect("there").get(Shown::Magic), MAGIC);
    }
}
