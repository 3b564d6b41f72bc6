//! ioctls of vhost (Linux include/uapi/linux/vhost.h and vhost_types.h).
//!
//! The kernel keeps a pointer to no memory of ours but the guest's, and checks every address that it finds in a ring against the table
//! that it was told; nothing in Rust borrows that memory. The table holds for as long as the device: the machine's memory outlives its devices.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use vmm_sys_util::{eventfd::EventFd, ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

/// Type of all of them (VHOST_VIRTIO).
const VHOST: libc::c_uint = 0xaf;
/// Takes a descriptor out again (VHOST_FILE_UNBIND).
const NO_FILE: RawFd = -1;

/// A stretch of guest memory (vhost_memory_region).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    guest_address: u64,
    len: u64,
    own_address: u64,
    no_flags: u64,
}

impl Region {
    pub(super) fn new(guest_address: u64, len: u64, own_address: u64) -> Self {
        Self { guest_address, len, own_address, no_flags: 0 }
    }
}

/// The head of the table of memory (vhost_memory).
#[repr(C)]
struct TableHead {
    regions: u32,
    padding: u32,
}

/// A number of a ring (vhost_vring_state).
#[repr(C)]
struct RingState {
    index: u32,
    number: u32,
}

/// A descriptor of a ring (vhost_vring_file).
#[repr(C)]
struct RingFile {
    index: u32,
    fd: RawFd,
}

/// Where a ring is in this process (vhost_vring_addr).
#[repr(C)]
struct RingPlaces {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// Where the parts of a ring are in this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

ioctl_ior_nr!(GET_FEATURES, VHOST, 0x00, u64);
ioctl_iow_nr!(SET_FEATURES, VHOST, 0x00, u64);
ioctl_io_nr!(SET_OWNER, VHOST, 0x01);
ioctl_iow_nr!(SET_MEM_TABLE, VHOST, 0x03, TableHead);
ioctl_iow_nr!(SET_VRING_NUM, VHOST, 0x10, RingState);
ioctl_iow_nr!(SET_VRING_ADDR, VHOST, 0x11, RingPlaces);
ioctl_iow_nr!(SET_VRING_BASE, VHOST, 0x12, RingState);
ioctl_iowr_nr!(GET_VRING_BASE, VHOST, 0x12, RingState);
ioctl_iow_nr!(SET_VRING_KICK, VHOST, 0x20, RingFile);
ioctl_iow_nr!(SET_VRING_CALL, VHOST, 0x21, RingFile);
ioctl_iow_nr!(SET_VRING_ERR, VHOST, 0x22, RingFile);
ioctl_iow_nr!(NET_SET_BACKEND, VHOST, 0x30, RingFile);

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What this kernel serves.
pub(super) fn features(vhost: &OwnedFd) -> io::Result<u64> {
    let mut features = 0u64;
    // SAFETY: the descriptor is open, and GET_FEATURES writes one u64, which `features` is; another file takes it for nothing.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), GET_FEATURES(), &raw mut features) })?;
    Ok(features)
}

/// Makes this process the one whose memory is meant.
pub(super) fn set_owner(vhost: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open, and SET_OWNER takes nothing.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_OWNER()) })
}

/// What driver and device agreed on.
pub(super) fn set_features(vhost: &OwnedFd, features: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open, and SET_FEATURES reads one u64, which `features` is.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_FEATURES(), &raw const features) })
}

/// Where guest memory is. Rings and buffers may be nowhere else.
pub(super) fn set_memory(vhost: &OwnedFd, regions: &[Region]) -> io::Result<()> {
    // As the kernel reads it: the head's eight bytes, then the regions' 32 each.
    let head = [regions.len() as u64];
    let rest = regions.iter().flat_map(|r| [r.guest_address, r.len, r.own_address, r.no_flags]);
    let table: Vec<u64> = head.into_iter().chain(rest).collect();
    // SAFETY: the descriptor is open; SET_MEM_TABLE reads the head and as many regions as it names, which `table` has. The addresses in it are
    // those of mapped guest memory, which Rust code never borrows.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_MEM_TABLE(), table.as_ptr()) })
}

/// Entries of a ring.
pub(super) fn set_ring_size(vhost: &OwnedFd, index: u32, size: u16) -> io::Result<()> {
    let state = RingState { index, number: size.into() };
    // SAFETY: the descriptor is open, and SET_VRING_NUM reads one vhost_vring_state, which `state` is.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_VRING_NUM(), &raw const state) })
}

/// How far a ring has been read.
pub(super) fn set_ring_position(vhost: &OwnedFd, index: u32, position: u16) -> io::Result<()> {
    let state = RingState { index, number: position.into() };
    // SAFETY: the descriptor is open, and SET_VRING_BASE reads one vhost_vring_state, which `state` is.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_VRING_BASE(), &raw const state) })
}

/// How far a ring has been read, by the kernel.
pub(super) fn ring_position(vhost: &OwnedFd, index: u32) -> io::Result<u16> {
    let mut state = RingState { index, number: 0 };
    // SAFETY: the descriptor is open, and GET_VRING_BASE reads and writes one vhost_vring_state, which `state` is.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), GET_VRING_BASE(), &raw mut state) })?;
    // The upper half is for packed rings, which nobody agreed on.
    Ok(state.number as u16)
}

/// Where a ring is.
pub(super) fn set_ring_addresses(vhost: &OwnedFd, index: u32, at: &RingAddresses) -> io::Result<()> {
    let RingAddresses { descriptors, available, used } = *at;
    let places = RingPlaces { index, flags: 0, descriptors, used, available, log: 0 };
    // SAFETY: the descriptor is open, and SET_VRING_ADDR reads one vhost_vring_addr, which `places` is. The addresses in it are those of
    // mapped guest memory, which Rust code never borrows.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), SET_VRING_ADDR(), &raw const places) })
}

/// By which the driver kicks.
pub(super) fn set_kick(vhost: &OwnedFd, index: u32, kick: Option<&EventFd>) -> io::Result<()> {
    set_file(vhost, SET_VRING_KICK(), index, kick.map(AsRawFd::as_raw_fd))
}

/// By which the driver is told.
pub(super) fn set_call(vhost: &OwnedFd, index: u32, call: Option<&EventFd>) -> io::Result<()> {
    set_file(vhost, SET_VRING_CALL(), index, call.map(AsRawFd::as_raw_fd))
}

/// By which we are told that a ring makes no sense.
pub(super) fn set_error(vhost: &OwnedFd, index: u32, error: Option<&EventFd>) -> io::Result<()> {
    set_file(vhost, SET_VRING_ERR(), index, error.map(AsRawFd::as_raw_fd))
}

/// Where a ring's frames come from or go to; with one, the ring is served.
pub(super) fn set_tap(vhost: &OwnedFd, index: u32, tap: Option<RawFd>) -> io::Result<()> {
    set_file(vhost, NET_SET_BACKEND(), index, tap)
}

fn set_file(vhost: &OwnedFd, request: libc::c_ulong, index: u32, fd: Option<RawFd>) -> io::Result<()> {
    let file = RingFile { index, fd: fd.unwrap_or(NO_FILE) };
    // SAFETY: the descriptor is open, and all four requests read one vhost_vring_file, which `file` is. The kernel takes a reference of
    // its own to the file behind the number.
    checked(unsafe { libc::ioctl(vhost.as_raw_fd(), request, &raw const file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!((GET_FEATURES(), SET_FEATURES(), SET_OWNER()), (0x8008_af00, 0x4008_af00, 0xaf01));
        assert_eq!((SET_MEM_TABLE(), NET_SET_BACKEND()), (0x4008_af03, 0x4008_af30));
        assert_eq!((SET_VRING_NUM(), SET_VRING_ADDR()), (0x4008_af10, 0x4028_af11));
        assert_eq!((SET_VRING_BASE(), GET_VRING_BASE()), (0x4008_af12, 0xc008_af12));
        assert_eq!((SET_VRING_KICK(), SET_VRING_CALL(), SET_VRING_ERR()), (0x4008_af20, 0x4008_af21, 0x4008_af22));
    }
}
