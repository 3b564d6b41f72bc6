//! Listeners of ours in the pod's namespace, and what leads connections to any port of its loopback to them, for as long as this lives.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::{set_ip_freebind, set_ipv6_freebind, set_ipv6_v6only},
};

use super::{
    others, program,
    sys::{self, MapKind},
};
use crate::{PodError, network::namespace::Namespace};

/// Connections that wait to be taken.
const QUEUE_LEN: i32 = 64;
/// Most ports that are left to others.
const LEFT_MAX: u32 = 256;

/// The listeners, one a family, and what steers.
#[derive(Debug)]
pub(super) struct Steering {
    /// Those that there could be: without IPv6 in the namespace there is one.
    pub listeners: Vec<TcpListener>,
    /// Ends with its descriptor.
    _link: OwnedFd,
    left: OwnedFd,
}

impl Steering {
    /// Begins to lead connections here.
    ///
    /// # Errors
    /// The kernel has no sk_lookup (Linux 5.9), or we may not use it (CAP_BPF and CAP_NET_ADMIN), or the namespace has no loopback.
    pub(super) fn begin(namespace: &Namespace) -> Result<Self, PodError> {
        let cannot = |error| PodError::host("cannot lead connections to the pod's loopback into the machine", error);
        namespace.within(|| Self::begin_here(namespace).map_err(cannot))
    }

    fn begin_here(namespace: &Namespace) -> io::Result<Self> {
        let left = sys::make_map(MapKind::Numbers, LEFT_MAX)?;
        let sockets = sys::make_map(MapKind::Sockets, 2)?;
        for port in others::ports()? {
            sys::put(left.as_fd(), port.into(), 1)?;
        }
        let four = listener(Ipv4Addr::LOCALHOST.into())?;
        sys::put(sockets.as_fd(), program::FOUR, sys::number(&four))?;
        let six = listener(Ipv6Addr::LOCALHOST.into()).ok();
        if let Some(six) = &six {
            sys::put(sockets.as_fd(), program::SIX, sys::number(six))?;
        }
        let program = sys::load(&program::instructions(sys::number(&left), sys::number(&sockets)))?;
        let link = sys::link(program.as_fd(), namespace.as_fd())?;
        Ok(Self { listeners: std::iter::once(four).chain(six).collect(), _link: link, left })
    }

    /// Leaves a port to somebody who serves it in the namespace.
    pub(super) fn leave(&self, port: u16) -> io::Result<()> {
        sys::put(self.left.as_fd(), port.into(), 1)
    }

    /// The ports that are ours only because a listener has one.
    pub(super) fn own_ports(&self) -> impl Iterator<Item = u16> {
        self.listeners.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port()))
    }
}

/// One on a port of the kernel's choice, before the loopback has its address, too.
fn listener(address: std::net::IpAddr) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if address.is_ipv4() {
        set_ip_freebind(&socket, true)?;
    } else {
        set_ipv6_v6only(&socket, true)?;
        set_ipv6_freebind(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, 0))?;
    listen(&socket, QUEUE_LEN)?;
    Ok(socket.into())
}
