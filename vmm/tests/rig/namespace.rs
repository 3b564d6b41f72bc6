//! A network namespace of a test's own, with one tap in it.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
};

use super::{PATIENCE, sys};

/// The host's address in the namespace.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The guest's.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Sockets in a namespace, which lives as long as one of them; the tap goes with it, or with its own descriptor.
pub struct Namespace {
    /// Bound to the host's address.
    pub udp: UdpSocket,
    /// Listening on it.
    pub tcp: TcpListener,
}

/// A new namespace and the descriptor of its tap, or a skip in the name of `test`.
pub fn namespace(test: &str) -> Option<(Namespace, OwnedFd)> {
    // A thread of its own, which takes the namespace with it.
    let made = std::thread::spawn(|| {
        sys::new_namespace()?;
        let tap = sys::tap("tap0")?;
        sys::bring_up("tap0", HOST)?;
        let udp = UdpSocket::bind((HOST, 0))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>((Namespace { udp, tcp: TcpListener::bind((HOST, 0))? }, tap))
    });
    match made.join().expect("it does not panic") {
        Ok(made) => Some(made),
        Err(error) => super::skip(test, &format!("root and /dev/net/tun ({error})")),
    }
}
