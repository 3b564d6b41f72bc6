//! What has no safe wrapper elsewhere: two ioctls, signals by number, and registration of descriptors with the runtime.
#![allow(
    unsafe_code,
    reason = "ioctl(2) with structures that rustix does not know; rustix's and tokio's unchecked constructors"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    ioctl::{Opcode, Setter, Updater, ioctl},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::Signal,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Most entropy that one pod configuration brings, in bytes; the proto says so.
pub const ENTROPY_MAX: usize = 512;

/// SIOCGIFFLAGS and SIOCSIFFLAGS, netdevice(7), include/uapi/linux/sockios.h.
const GET_FLAGS: Opcode = 0x8913;
const SET_FLAGS: Opcode = 0x8914;
/// RNDADDENTROPY, random(4): `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: Opcode = 0x4008_5203;
/// SIGRTMAX of the kernel (_NSIG).
const SIGNAL_MAX: i32 = 64;
/// IFF_UP.
const UP: i16 = 1;

/// `struct ifreq` of include/uapi/linux/if.h, as far as the flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    /// The union's largest member is 24 bytes.
    rest: [u8; 22],
}

/// `struct rand_pool_info` of include/uapi/linux/random.h, with room for the bytes.
#[repr(C)]
struct PoolInfo {
    bits: i32,
    bytes: i32,
    buffer: [u8; ENTROPY_MAX],
}

/// Raises the loopback interface of the calling thread's network namespace.
pub fn raise_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = InterfaceRequest { name: [0; 16], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads and writes one `struct ifreq`, 40 bytes, which `InterfaceRequest` is; it lives on our stack.
    unsafe { ioctl(socket.as_fd(), Updater::<GET_FLAGS, InterfaceRequest>::new(&mut request)) }?;
    if request.flags & UP != 0 {
        return Ok(());
    }
    request.flags |= UP;
    // SAFETY: as above.
    unsafe { ioctl(socket.as_fd(), Updater::<SET_FLAGS, InterfaceRequest>::new(&mut request)) }?;
    Ok(())
}

/// Adds random bytes to the kernel's pool and credits them. `bytes` beyond [`ENTROPY_MAX`] are not used.
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let count = bytes.len().min(ENTROPY_MAX);
    let mut info = PoolInfo { bits: 0, bytes: 0, buffer: [0; ENTROPY_MAX] };
    info.buffer[..count].copy_from_slice(&bytes[..count]);
    info.bytes = i32::try_from(count).expect("at most ENTROPY_MAX");
    info.bits = info.bytes * 8;
    let pool = File::open("/dev/urandom")?;
    // SAFETY: the kernel reads the two counts and `bytes` bytes behind them, which are within `PoolInfo`'s buffer.
    unsafe { ioctl(pool.as_fd(), Setter::<ADD_ENTROPY, PoolInfo>::new(info)) }?;
    Ok(())
}

/// A descriptor with its readiness in the runtime's epoll. Call inside the runtime.
pub fn with_readiness(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and it lives inside the `AsyncFd`, which hands out
    // nothing but shared references to it and deregisters it before it is closed.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// The signal with this number, 1 to 64 (real-time ones included), for sending.
pub fn signal(number: u32) -> Option<Signal> {
    let number = i32::try_from(number).ok().filter(|number| (1..=SIGNAL_MAX).contains(number))?;
    // SAFETY: the number is one that the kernel knows. The C library's claim on signals 32 to 34 concerns handlers in this process;
    // we only send to other processes, each with a C library of its own.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

/// SIGKILL to every process but the caller and PID 1 (kill(2), pid -1). Only for PID 1 itself, at the machine's end.
pub fn kill_everybody() {
    debug_assert!(rustix::process::getpid().is_init(), "this would kill the host's processes");
    // nix has the pid -1, rustix has not. ESRCH means that nobody is left.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!(size_of::<PoolInfo>(), 8 + ENTROPY_MAX);
    }
}
