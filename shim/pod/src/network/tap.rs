//! Taps: the machine's ends of the pod's interfaces. One is there as long as somebody holds one of its queues.

use std::{fs::File, io, os::fd::OwnedFd};

use netlink::{
    NetlinkError, Socket,
    packet::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    },
};
use rustix::{io::Errno, net::netdevice::name_to_index};

use crate::{ErrorKind, PodError, sys};

/// Where taps come from.
const DEVICE: &str = "/dev/net/tun";
/// The kernel counts them up in each namespace.
const NAMES: &str = "katars%d";
/// Length of the header before each frame: that of a device with mergeable buffers.
const HEADER_LEN: i32 = 12;
/// Largest MTU that the kernel gives a tap (MAX_MTU of its tun driver).
const MTU_MAX: u32 = 65_535 - 14;
/// Most queues of one tap. With the most interfaces of a machine they are the most descriptors that a machine takes.
pub(crate) const QUEUES_MAX: usize = vmm_control::TAPS_IN_ALL_MAX / vmm_control::NETWORKS_MAX;

/// A tap in the namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Tap {
    /// Its number.
    pub index: u32,
    /// One descriptor a queue. The tap goes with the last one.
    pub queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes one, switched on and as wide as its interface.
    ///
    /// # Errors
    /// The host has no taps, or the caller may not make one.
    pub(crate) fn make(socket: &mut Socket, queues: usize, mtu: u32) -> Result<Self, PodError> {
        let several = queues > 1;
        let (first, name) = queue(NAMES, several)?;
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(queue(&name, several)?.0);
        }
        let index = name_to_index(&*socket, &name).map_err(|errno| failed(&name, &errno))?;
        set_up(socket, index, mtu.min(MTU_MAX)).map_err(|error| failed(&name, &error))?;
        Ok(Self { index, queues: all })
    }
}

/// Opens a queue; the first one of a name makes the tap.
fn queue(name: &str, several: bool) -> Result<(OwnedFd, String), PodError> {
    let file = File::options().read(true).write(true).open(DEVICE).map_err(missing)?;
    let name = sys::make_tap(&file, name, several).map_err(not_made)?;
    sys::set_header_len(&file, HEADER_LEN).map_err(not_made)?;
    Ok((file.into(), name))
}

/// The namespace's own kernel must stay silent on it: what it says would reach the guest, in the pod's name.
fn set_up(socket: &mut Socket, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    match socket.change(set(index, LinkFlags::empty(), vec![silent()]), 0) {
        // A kernel without IPv6 has nothing to say.
        Err(error) if error.errno() == Some(Errno::AFNOSUPPORT) => {}
        done => done?,
    }
    socket.change(set(index, LinkFlags::Up, vec![LinkAttribute::Mtu(mtu)]), 0)
}

fn set(index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// No address of its own, so no search for neighbours and routers.
fn silent() -> LinkAttribute {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])
}

fn missing(error: io::Error) -> PodError {
    let mut error = PodError::host(format!("cannot open {DEVICE}, from which the pod's interfaces come"), error);
    error.kind = ErrorKind::FailedPrecondition;
    error.message += "; load the kernel's module (modprobe tun)";
    error
}

fn not_made(error: io::Error) -> PodError {
    PodError::host("cannot make a tap in the pod's network namespace (CAP_NET_ADMIN is needed)", error)
}

fn failed(name: &str, error: &dyn std::fmt::Display) -> PodError {
    let sentence = format!("cannot set up the tap {name} in the pod's network namespace: {error}");
    PodError::new(ErrorKind::Internal, sentence)
}
