//! The only unsafe code of this crate: what a child does between fork and exec, and what makes a tap, have no safe form in the crates below.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd, os::unix::process::CommandExt, process::Command};

use nix::libc;

/// First descriptor after the standard streams.
const FIRST_STRAY: libc::c_uint = 3;

/// Lets the program that `command` starts have its standard streams, the descriptors that are mapped into it *after* this call, and nothing else.
/// Who started us may have left anything open without O_CLOEXEC: a file server must not hold the host's sockets, nor keep them open for years.
pub fn inherit_nothing_else(command: &mut Command) {
    let mark = || {
        // SAFETY: close_range(2) takes two numbers and a flag, no pointer; with this flag it closes nothing, but marks.
        match unsafe { libc::syscall(libc::SYS_close_range, FIRST_STRAY, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
        {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may be done: this is one system call, and a read of errno.
    unsafe { command.pre_exec(mark) };
}

/// Longest name of an interface, with the nought that ends it (IFNAMSIZ).
const NAME_LEN_MAX: usize = 16;

/// `struct ifreq` of linux/if.h, as TUNSETIFF reads it.
#[repr(C)]
struct TapRequest {
    name: [u8; NAME_LEN_MAX],
    flags: libc::c_short,
    unused: [u8; 22],
}

/// Makes a tap of the open /dev/net/tun in the namespace of this thread, or opens another queue of the one with this name. Tells its name: `%d` in it
/// becomes a number. A header (`struct virtio_net_hdr`) is before each frame. The tap goes with the last descriptor of a queue.
///
/// # Errors
/// The name is too long or taken, or there is no CAP_NET_ADMIN in the namespace.
pub fn make_tap(device: &File, name: &str, several_queues: bool) -> io::Result<String> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several_queues {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let mut request = TapRequest { name: [0; NAME_LEN_MAX], flags, unused: [0; 22] };
    let room = request.name.get_mut(..name.len()).filter(|room| room.len() < NAME_LEN_MAX);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` is in size and form, and keeps no pointer to it.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = request.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN_MAX);
    Ok(String::from_utf8_lossy(&request.name[..len]).into_owned())
}

/// Sets the length of the header before each frame of a tap's queue.
pub(crate) fn set_header_len(queue: &File, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, and keeps no pointer to it.
    let set = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
