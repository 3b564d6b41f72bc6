//! The only unsafe code of this crate but for taps: taking ownership of inherited descriptors, memory mappings that KVM and the guest use at the
//! same time as we do, and the signal that gets a vCPU out of KVM_RUN. None of it has a safe form in the crates below.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr, thread,
};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, VolatileSlice, mmap::MmapRegionBuilder};
use vmm_boot::MemoryRange;
use vmm_control::FdNumber;
use vmm_sys_util::{
    errno,
    eventfd::EventFd,
    signal::{Killable, SIGRTMIN, register_signal_handler},
};

use crate::control::Control;

/// One heap for all threads, to be called before the second thread: by default the C library gives each thread its own, with 128 MiB of
/// addresses and pages that nobody else can use. Nothing here allocates where two threads would meet.
pub fn share_heap() {
    // SAFETY: mallopt takes no pointer, and no other thread exists yet that might allocate meanwhile.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Why an inherited descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Standard streams and negative numbers are nobody's to give.
    #[error("the {what} cannot be descriptor {fd}: give it a number above 2")]
    Number {
        /// What it was to be.
        what: String,
        /// The number.
        fd: FdNumber,
    },
    /// Named twice.
    #[error("descriptor {fd} is named twice, the second time as {what}: give each object a number of its own")]
    Twice {
        /// The second use.
        what: String,
        /// The number.
        fd: FdNumber,
    },
    /// Nothing there.
    #[error("the {what} should be descriptor {fd}, which is not open: let the launcher pass it on")]
    NotOpen {
        /// What it was to be.
        what: String,
        /// The number.
        fd: FdNumber,
    },
}

/// Inherited descriptors, of which each can be claimed once.
///
/// Made once, in the first milliseconds of the process, when every open descriptor above 2 is inherited: nothing of ours
/// is open yet but what is listed in `claimed`.
#[derive(Debug)]
pub struct Inherited {
    claimed: Vec<RawFd>,
}

/// Claims the one descriptor that is needed before [`Inherited`] exists.
pub fn claim_one(fd: FdNumber, what: &str) -> Result<OwnedFd, ClaimError> {
    Inherited { claimed: Vec::new() }.claim(fd, what)
}

impl Inherited {
    /// All but the control socket, which has an owner.
    pub fn besides(control: &Control) -> Self {
        Self { claimed: vec![control.as_raw_fd()] }
    }

    /// Takes ownership of descriptor `fd`, which is to be the `what`.
    pub fn claim(&mut self, fd: FdNumber, what: &str) -> Result<OwnedFd, ClaimError> {
        let what = || what.to_owned();
        if fd <= 2 {
            return Err(ClaimError::Number { what: what(), fd });
        }
        if self.claimed.contains(&fd) {
            return Err(ClaimError::Twice { what: what(), fd });
        }
        // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is not open gives EBADF.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(ClaimError::NotOpen { what: what(), fd });
        }
        self.claimed.push(fd);
        // SAFETY: the descriptor is open, as just checked. Nobody else owns it: it is inherited (see the type's text), was
        // not claimed before (checked above), and this type alone turns inherited numbers into owners.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Closes every descriptor above 2 that nobody claimed: the launcher's leaks are not ours to hold. Needs Linux 5.9.
    pub fn close_others(mut self) -> io::Result<()> {
        self.claimed.sort_unstable();
        let mut first = 3;
        for fd in self.claimed.into_iter().chain([RawFd::MAX]) {
            if first < fd {
                // SAFETY: close_range takes no pointer. The range holds no claimed number, and nothing else is owned yet
                // (see the type's text), so that no owner loses its descriptor.
                if unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            first = fd.saturating_add(1);
        }
        Ok(())
    }
}

/// Backs and maps a stretch of guest memory (madvise(2), MADV_POPULATE_WRITE), which must begin at a page.
pub fn map_ahead(slice: &VolatileSlice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice borrows a live mapping, and this advice changes no byte of it: it only makes the pages present.
    match unsafe { libc::madvise(guard.as_ptr().cast(), slice.len(), libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptor of an eventfd, whose type does not lend it itself.
pub fn borrow_eventfd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow of `event`, which owns the descriptor, outlasts the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// /dev/kvm from its descriptor. Any other file makes every ioctl fail, and no more.
pub fn kvm(fd: OwnedFd) -> Kvm {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is open and ours alone; ownership moves into the `Kvm`, which closes it once.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Inaccessible memory before and behind each mapping of guest memory; more than any device moves by one unchecked step.
const GUARD_LEN: usize = 1 << 20;

/// Maps a stretch of the memory file at a new place between guard pages. The mapping lives as long as the process: a machine's
/// memory is never unmapped before its end, as vCPUs and devices hold it to the last.
pub fn map_guarded(part: FileOffset, range: &MemoryRange) -> io::Result<GuestRegionMmap> {
    let len = usize::try_from(range.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let reserved = len.checked_add(2 * GUARD_LEN).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at a place of the kernel's choice touches no existing one.
    let guards = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
    if guards == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `guards` is the start of `reserved` bytes, and GUARD_LEN is less than that.
    let place = unsafe { guards.byte_add(GUARD_LEN) };
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    let start = libc::off_t::try_from(part.start()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: MAP_FIXED replaces pages of the reservation that was just made, which nobody uses: `place..place + len` lies inside it.
    let mapped = unsafe { libc::mmap(place, len, prot, flags | libc::MAP_FIXED, part.file().as_raw_fd(), start) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // No core dump holds a guest's memory. Advice only: a failure changes nothing.
    // SAFETY: the range was mapped just now and stays mapped.
    unsafe { libc::madvise(place, len, libc::MADV_DONTDUMP) };
    let builder = MmapRegionBuilder::new(len).with_mmap_prot(prot).with_mmap_flags(flags).with_file_offset(part);
    // SAFETY: the pointer and length are the mapping above, which is never unmapped (the builder does not own it).
    let region = unsafe { builder.with_raw_mmap_pointer(mapped.cast()) }.build();
    let region = region.map_err(|error| io::Error::other(error.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// What the guest may do with memory that it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All.
    ReadWrite,
    /// Reading; a write exits as one to an address without memory does (KVM_MEM_READONLY).
    ReadOnly,
}

/// Makes one region of memory visible to the guest.
pub fn set_memory_slot(vm: &VmFd, slot: u32, region: &GuestRegionMmap, access: Access) -> errno::Result<()> {
    let flags = if access == Access::ReadOnly { KVM_MEM_READONLY } else { 0 };
    let slot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the memory stays mapped for the life of the process (see `map_guarded`), and is only ever accessed as volatile
    // memory, so that the guest may write it at any time. Slots do not overlap: the ranges of a memory layout do not, and registers lie in its hole.
    unsafe { vm.set_user_memory_region(slot) }
}

thread_local! {
    /// In a vCPU's thread, the `immediate_exit` byte that it shares with KVM; elsewhere null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that gets a vCPU's thread out of KVM_RUN, or keeps it from going in.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Runs in the kicked thread. If the signal comes before KVM_RUN, the byte makes it return at once; if it comes within, the
/// signal does. So no kick is lost, whenever it comes (KVM API, "immediate_exit").
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let byte = IMMEDIATE_EXIT.get();
    if !byte.is_null() {
        // SAFETY: the pointer is set by `RunningVcpu::new` in this thread and cleared by its drop before the mapping goes. It points
        // into memory shared with the kernel, which is why the write is volatile. A thread-local of this kind
        // (constant, without destructor) is plain memory, which a signal handler may read.
        unsafe { byte.write_volatile(1) };
    }
}

/// To be called once before any vCPU runs.
pub fn install_kick() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Kicks the vCPU that `thread` runs.
pub fn kick<T>(thread: &thread::JoinHandle<T>) {
    // A thread that has ended already needs no kick.
    let _ = thread.kill(kick_signal());
}

/// A vCPU in the thread that runs it. Not `Send`: kicks reach the thread it was made in.
pub struct RunningVcpu {
    fd: VcpuFd,
    thread_bound: PhantomData<*const ()>,
}

impl RunningVcpu {
    /// Binds the vCPU to this thread, which can be kicked from now on.
    pub fn new(mut fd: VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
        Self { fd, thread_bound: PhantomData }
    }

    /// Into the guest, until something needs an answer.
    pub fn run(&mut self) -> errno::Result<VcpuExit<'_>> {
        self.fd.run()
    }

    /// After a kick: the next [`run`](Self::run) goes in again.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Registers, for the account of a fault.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Detail of KVM_EXIT_INTERNAL_ERROR: kind of error and data words.
    pub fn internal_error(&mut self) -> (u32, Vec<u64>) {
        // SAFETY: plain integers at a fixed place of the mapped `kvm_run`; any bit pattern is a value. The caller
        // asks after KVM_EXIT_INTERNAL_ERROR, when KVM has filled them; at other times they mean nothing, but are no less readable.
        let detail = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let count = usize::try_from(detail.ndata).unwrap_or(0).min(detail.data.len());
        (detail.suberror, detail.data[..count].to_vec())
    }
}

impl Drop for RunningVcpu {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_can_be_claimed_once_and_only_if_it_is_open() {
        let fd = tempfile::tempfile().map(IntoRawFd::into_raw_fd).expect("a file");
        let mut inherited = Inherited { claimed: Vec::new() };
        let owned = inherited.claim(fd, "kernel").expect("open");
        assert!(matches!(inherited.claim(fd, "disk"), Err(ClaimError::Twice { .. })));
        assert!(matches!(inherited.claim(2, "disk"), Err(ClaimError::Number { .. })));
        assert!(matches!(inherited.claim(1_000_000, "disk"), Err(ClaimError::NotOpen { .. })));
        drop(owned);
    }
}
