//! A network namespace of a test's own, with one tap in it.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SocketType, socket};

use super::{PATIENCE, sys};

/// The host's address in the namespace.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The guest's.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Sockets in a namespace, which lives as long as one of them or the tap's descriptor.
pub struct Namespace {
    links: OwnedFd,
    /// Bound to the host's address.
    pub udp: UdpSocket,
    /// Listening on it.
    pub tcp: TcpListener,
}

impl Namespace {
    /// Removes the tap interface, as `ip link delete` does, whoever holds its descriptor.
    pub fn remove_tap(&self) {
        const NAME: &[u8; 8] = b"tap0\0\0\0\0";
        let mut message = Vec::new();
        // Header: length, RTM_DELLINK, NLM_F_REQUEST, number and sender. Then an ifinfomsg that names nothing, and IFLA_IFNAME.
        message.extend(44u32.to_ne_bytes());
        message.extend([17u16, 1].into_iter().flat_map(u16::to_ne_bytes));
        message.extend([0; 8 + 16]);
        message.extend([12u16, 3].into_iter().flat_map(u16::to_ne_bytes));
        message.extend(NAME);
        assert_eq!(rustix::io::write(&self.links, &message).expect("the kernel listens"), message.len());
    }
}

/// A new namespace and the descriptors of its tap, one a queue, or a skip in the name of `test`.
pub fn namespace(test: &str, queues: usize) -> Option<(Namespace, Vec<OwnedFd>)> {
    // A thread of its own, which takes the namespace with it.
    let made = std::thread::spawn(move || {
        sys::new_namespace()?;
        let taps = (0..queues).map(|_| sys::tap("tap0", queues > 1)).collect::<std::io::Result<_>>()?;
        sys::bring_up("tap0", HOST)?;
        let udp = UdpSocket::bind((HOST, 0))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        // Protocol 0 is NETLINK_ROUTE.
        let links = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
        Ok::<_, std::io::Error>((Namespace { links, udp, tcp: TcpListener::bind((HOST, 0))? }, taps))
    });
    match made.join().expect("it does not panic") {
        Ok(made) => Some(made),
        Err(error) => super::skip(test, &format!("root and /dev/net/tun ({error})")),
    }
}
