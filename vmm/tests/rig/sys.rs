//! What tests do with networks that has no safe form: interfaces by ioctl, as neither the guest nor every host has a program for it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = interface.bytes().take(libc::IFNAMSIZ - 1);
    request.ifr_name.iter_mut().zip(name).for_each(|(into, byte)| *into = byte as libc::c_char);
    request
}

/// Mounts sysfs at /sys, if it is not there yet.
pub fn mount_sys() {
    // SAFETY: all four strings end with a nought, and the data may be none. A second mount is EBUSY, and all is as it should be.
    unsafe { libc::mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null()) };
}

/// Moves this thread, and no other, into a new network namespace.
pub fn new_namespace() -> io::Result<()> {
    // SAFETY: unshare takes a number; other threads keep their namespace.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// A queue of a tap interface of this thread's namespace; the first one makes the interface. With `several` there may be more of them.
pub fn tap(interface: &str, several: bool) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(interface);
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which `request` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file.into())
}

/// Gives an interface of this thread's namespace an address with 24 bits of network, and brings it up.
pub fn bring_up(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for (operation, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut request = request(interface);
        // The family, a port that nobody reads, then the address.
        let bytes = [libc::AF_INET as u8, 0, 0, 0].into_iter().chain(address.octets());
        let mut data = [0; 14];
        data.iter_mut().zip(bytes.skip(2)).for_each(|(into, byte)| *into = byte as libc::c_char);
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
        // SAFETY: the descriptor is open, and both operations read one ifreq, which `request` is.
        checked(unsafe { libc::ioctl(socket.as_raw_fd(), operation, &raw const request) })?;
    }
    let mut request = request(interface);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one ifreq, which `request` is.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// Whether an interface of this thread's namespace has a link.
pub fn has_link(interface: &str) -> io::Result<bool> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = request(interface);
    // SAFETY: the descriptor is open, and SIOCGIFFLAGS reads and writes one ifreq, which `request` is.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS has set the flags of the union, and any bits are a value of theirs.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_RUNNING != 0)
}
