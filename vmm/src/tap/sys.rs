//! System calls on a tap that have no safe form: ioctls of tun(4), and reads and writes of guest memory that nobody may borrow.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use vm_memory::VolatileSlice;

/// Most stretches of memory in one call (IOV_MAX).
const VECTORS_MAX: usize = 1024;

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The flags that the interface was opened with; ENOTTY when this is no tap.
pub(super) fn interface_flags(tap: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: an ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: the descriptor is open, and TUNGETIFF fills one ifreq, which `request` is; another file takes it for nothing.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF has set the flags of the union, and any bits are a value of theirs.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags.cast_unsigned()))
}

/// How long the header before each frame is.
pub(super) fn set_header_len(tap: &OwnedFd, len: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one int, which `len` is.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// What frames may come out of the tap.
pub(super) fn set_offloads(tap: &OwnedFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes a number, no pointer.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// Whether this queue of the interface gets frames.
pub(super) fn set_queue_joined(tap: &OwnedFd, joined: bool) -> io::Result<()> {
    // SAFETY: an ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let flag = if joined { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETQUEUE reads one ifreq, which `request` is.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Writes `head` and `rest` as one frame.
pub(super) fn write_vectored(tap: &OwnedFd, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = rest.iter().map(VolatileSlice::ptr_guard).collect();
    let first = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
    let others = guards.iter().map(|guard| vector(guard.as_ptr().cast_mut(), guard.len()));
    let vectors: Vec<_> = [first].into_iter().chain(others).collect();
    let count = count(&vectors)?;
    retried(|| {
        // SAFETY: each vector is `head` or one of `rest`, which are borrowed and mapped until we return. writev only reads them; the
        // guest may write its memory meanwhile, which the kernel copies as it finds it, and no Rust reference to it exists.
        unsafe { libc::writev(tap.as_raw_fd(), vectors.as_ptr(), count) }
    })
}

/// Reads one frame into `into`, and what does not fit as far as `spill` goes.
pub(super) fn read_vectored(tap: &OwnedFd, into: &[VolatileSlice<'_>], spill: &mut [u8]) -> io::Result<usize> {
    let guards: Vec<_> = into.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let last = libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() };
    let firsts = guards.iter().map(|guard| vector(guard.as_ptr(), guard.len()));
    let vectors: Vec<_> = firsts.chain([last]).collect();
    let count = count(&vectors)?;
    retried(|| {
        // SAFETY: each vector is one of `into` or `spill`, which are borrowed and mapped until we return, `spill` exclusively. The guest's
        // memory is volatile: no Rust reference to it exists, so that the kernel may write it.
        unsafe { libc::readv(tap.as_raw_fd(), vectors.as_ptr(), count) }
    })
}

fn vector(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

fn count(vectors: &[libc::iovec]) -> io::Result<libc::c_int> {
    match libc::c_int::try_from(vectors.len()) {
        Ok(count) if vectors.len() <= VECTORS_MAX => Ok(count),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A signal (a kick of another thread's vCPU) is no reason to lose a frame.
fn retried(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
