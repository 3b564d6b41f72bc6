//! Guest memory: one memfd, mapped once, shared with KVM and with file servers. The registers of devices, which the guest reads as memory, have another,
//! which nobody shares.
//!
//! One file, so that a snapshot is a file and a clone a private mapping of it. Sealed against shrinking, so that no holder of a
//! descriptor can turn an access of ours into SIGBUS. Nothing is touched ahead of the guest but, on software KVM, what every
//! boot touches (see [`early_memory`]): a page that the guest does not use costs nothing. The mapping stands between inaccessible
//! guard pages: an access that runs over an end faults.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fstat, ftruncate, memfd_create, seek, sendfile};
use rustix::io::Errno;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_boot::{BootImage, Copy, MMIO_SLOT_LEN, MMIO_START, MemoryLayout, MemoryRange, SLOTS_MAX};

use crate::{early_memory, sys};

/// Why there is no guest memory, or not all in it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call about the memory file failed.
    #[error(
        "guest memory of {mib} MiB: {operation} failed: does the host, or the pod's cgroup, have that much memory?"
    )]
    File {
        /// What was tried.
        operation: &'static str,
        /// Size of the machine.
        mib: u64,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// A system call about the pages of registers failed.
    #[error(
        "there are no pages for the registers of devices: are the limits of the pod's cgroup or of open files too low?"
    )]
    Registers(#[source] io::Error),
    /// A boot structure could not be written.
    #[error("the {0} could not be written into guest memory")]
    Piece(&'static str, #[source] vm_memory::GuestMemoryError),
    /// The kernel file could not be read to its end.
    #[error("the kernel file could not be copied into guest memory: install the guest kernel again")]
    Copy(#[source] io::Error),
}

/// The memory of one machine.
#[derive(Debug)]
pub struct Memory {
    file: File,
    layout: MemoryLayout,
    mapped: GuestMemoryMmap,
    registers: GuestMemoryMmap,
}

impl Memory {
    /// Fresh, zero memory of this layout.
    pub fn new(layout: MemoryLayout) -> Result<Self, MemoryError> {
        let len: u64 = layout.ranges().iter().map(|range| range.len).sum();
        let failed = |operation| move |source: io::Error| MemoryError::File { operation, mib: len >> 20, source };
        let file = memory_file("guest-memory").map_err(|error| failed("memfd_create")(error.into()))?;
        ftruncate(&file, len).map_err(|error| failed("ftruncate")(error.into()))?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|error| failed("sealing")(error.into()))?;
        let file = File::from(file);
        let mut regions = Vec::new();
        let mut offset = 0;
        for range in layout.ranges() {
            let part = FileOffset::new(file.try_clone().map_err(failed("dup"))?, offset);
            regions.push(sys::map_guarded(part, range).map_err(failed("mmap"))?);
            offset += range.len;
        }
        let mapped = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| failed("mmap")(io::Error::other(error.to_string())))?;
        let registers = register_pages().map_err(MemoryError::Registers)?;
        Ok(Self { file, layout, mapped, registers })
    }

    /// The mapping; clones share it.
    pub fn mapped(&self) -> &GuestMemoryMmap {
        &self.mapped
    }

    /// The pages in which the guest reads the registers of its devices; clones share them. They are not in the file of guest memory, which
    /// goes to file servers.
    pub fn registers(&self) -> &GuestMemoryMmap {
        &self.registers
    }

    /// Writes the boot structures and copies the kernel.
    pub fn load(&self, image: &BootImage, kernel: &impl AsFd) -> Result<(), MemoryError> {
        for piece in &image.pieces {
            self.mapped
                .write_slice(&piece.bytes, GuestAddress(piece.address))
                .map_err(|error| MemoryError::Piece(piece.name, error))?;
        }
        image.kernel.iter().try_for_each(|copy| self.copy_from(kernel, copy)).map_err(MemoryError::Copy)
    }

    /// Begins to map what the guest's kernel is going to touch anyway, in a thread of its own: the guest need not wait for it, and mostly stays behind.
    /// Without effect on hosts before Linux 5.14.
    pub fn map_ahead(&self, kernel_start: u64) {
        let total = self.layout.ranges().iter().map(|range| range.len).sum();
        let stretches = early_memory::stretches(self.layout.low(), total, kernel_start);
        let mapped = self.mapped.clone();
        let body = move || {
            for piece in stretches.iter().flat_map(early_memory::pieces) {
                let len = usize::try_from(piece.len).unwrap_or(0);
                if let Ok(slice) = mapped.get_slice(GuestAddress(piece.start), len) {
                    // If it fails, the guest touches the pages one by one, which works as well; as it does without the thread.
                    let _ = sys::map_ahead(&slice);
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("memory-ahead".to_owned()).spawn(body) {
            log::debug!("memory is not mapped ahead: {error}");
        }
    }

    /// Copies a stretch of a file. Through the memory file and not through the mapping: the kernel copies page to page, without
    /// one page fault of ours for each. The position of `from` is not used, since others may share it.
    fn copy_from(&self, from: &impl AsFd, copy: &Copy) -> io::Result<()> {
        let to = self.file_position(copy.address).ok_or(io::ErrorKind::InvalidInput)?;
        seek(&self.file, SeekFrom::Start(to))?;
        let (mut offset, end) = (copy.file_offset, copy.file_offset.saturating_add(copy.len));
        while offset < end {
            let want = usize::try_from(end - offset).unwrap_or(usize::MAX);
            if sendfile(&self.file, from, Some(&mut offset), want)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Where a guest physical address lies in the memory file.
    fn file_position(&self, address: u64) -> Option<u64> {
        let mut position = 0;
        for range in self.layout.ranges() {
            if range.contains(address, 1) {
                return Some(position + (address - range.start));
            }
            position += range.len;
        }
        None
    }

    /// Bytes that the host has backed until now.
    pub fn touched_bytes(&self) -> u64 {
        const BLOCK_LEN: u64 = 512;
        fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_LEN)
    }
}

/// A page for each place of a device, the first at [`MMIO_START`]. What is not used is not backed.
fn register_pages() -> io::Result<GuestMemoryMmap> {
    let len = MMIO_SLOT_LEN * SLOTS_MAX as u64;
    let file = memory_file("device-registers")?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let region = sys::map_guarded(FileOffset::new(File::from(file), 0), &MemoryRange { start: MMIO_START, len })?;
    GuestMemoryMmap::from_regions(vec![region]).map_err(|error| io::Error::other(error.to_string()))
}

/// A sealable file that nobody can execute: hosts may refuse any other (vm.memfd_noexec). Before Linux 6.3 there is no such kind.
fn memory_file(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::GuestMemoryRegion;

    use super::*;

    #[test]
    fn fresh_memory_is_backed_by_nothing() {
        let memory = Memory::new(MemoryLayout::new(64 << 20)).expect("64 MiB of promises");
        assert_eq!(memory.touched_bytes(), 0);
        memory.mapped().write_obj(1u8, GuestAddress(0x20_0000)).expect("inside");
        assert_eq!(memory.touched_bytes(), 4096);
    }

    #[test]
    fn nobody_can_execute_guest_memory() {
        let memory = Memory::new(MemoryLayout::new(16 << 20)).expect("memory");
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
        if version >= vec![6, 3] {
            assert_eq!(fstat(&memory.file).expect("a file").st_mode & 0o111, 0);
        }
    }

    #[test]
    fn a_copy_lands_at_its_address_and_leaves_the_files_position_alone() {
        let memory = Memory::new(MemoryLayout::new(16 << 20)).expect("memory");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"0123456789").expect("written");
        memory.copy_from(&file, &Copy { file_offset: 2, len: 5, address: 0x10_0003 }).expect("copied");
        let read: [u8; 8] = memory.mapped().read_obj(GuestAddress(0x10_0000)).expect("inside");
        assert_eq!(&read, b"\x00\x00\x0023456");
        assert_eq!(seek(&file, SeekFrom::Current(0)).expect("a position"), 10);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let memory = Memory::new(MemoryLayout::new(16 << 20)).expect("memory");
        let file = tempfile::tempfile().expect("a file");
        let copy = Copy { file_offset: 0, len: 5, address: 0x10_0000 };
        assert_eq!(memory.copy_from(&file, &copy).expect_err("empty").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn memory_above_the_hole_follows_in_the_file() {
        let memory = Memory::new(MemoryLayout::new(5 << 30)).expect("promises");
        assert_eq!(memory.file_position(1 << 32), Some(0xd000_0000));
        assert_eq!(memory.file_position(0xd000_0000), None);
        let offsets: Vec<_> =
            memory.mapped().iter().map(|region| region.file_offset().expect("a file").start()).collect();
        assert_eq!(offsets, [0, 0xd000_0000]);
    }
}
