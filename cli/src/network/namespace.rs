//! The network namespace of one run: `eth0`, a tap, with addresses and default routes. It has no name anywhere; it goes with its last descriptor, and
//! so does all that is in it.

use std::{fs::File, io, net::IpAddr, os::unix::fs::OpenOptionsExt, thread};

use netlink::{
    NetlinkError, Socket,
    core::{NLM_F_CREATE, NLM_F_EXCL},
    packet::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};
use nix::sched::{CloneFlags, unshare};
use rustix::{fs::OFlags, io::Errno};

use super::{
    NetworkError,
    plan::{Family, MAC, MTU, Plan},
};

/// Where taps come from.
const DEVICE: &str = "/dev/net/tun";
/// Of a link-local address (RFC 4291, 2.5.6).
const LINK_LOCAL_PREFIX_LENGTH: u8 = 64;
/// What the container sees.
const NAME: &str = "eth0";

/// The namespace, and the other end of its interface.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace.
    pub file: File,
    /// Frames of the interface, each after a header; does not block.
    pub tap: File,
}

impl Namespace {
    /// Makes it, by a thread that enters it and ends.
    pub fn make(plan: &Plan) -> Result<Self, NetworkError> {
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                let failed = |doing: &'static str| move |source| NetworkError::Namespace { doing, source };
                unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed("make it")(errno.into()))?;
                let file = File::open("/proc/thread-self/ns/net").map_err(failed("open it"))?;
                let tap = tap()?;
                fill(plan).map_err(|error| failed("set up its interface")(io::Error::other(error)))?;
                Ok(Self { file, tap })
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn tap() -> Result<File, NetworkError> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open(2)");
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(flags).open(DEVICE).map_err(NetworkError::NoTaps)?;
    pod::make_tap(&file, NAME, false)
        .map_err(|source| NetworkError::Namespace { doing: "make a tap in it (CAP_NET_ADMIN is needed)", source })?;
    Ok(file)
}

fn fill(plan: &Plan) -> netlink::Result<()> {
    let mut socket = Socket::open()?;
    let links = socket.links()?;
    let index = links.iter().find(|link| link.name == NAME).map_or(0, |link| link.index);
    // The namespace's own kernel stays silent: what it said would be taken for the container's words.
    let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    match socket.change(link(index, vec![LinkAttribute::AfSpecUnspec(vec![silent])], false), 0) {
        // A kernel without IPv6 has nothing to say.
        Err(error) if error.errno() == Some(Errno::AFNOSUPPORT) => {}
        done => done?,
    }
    socket.change(link(index, vec![LinkAttribute::Address(MAC.to_vec()), LinkAttribute::Mtu(MTU)], false), 0)?;
    socket.change(link(index, Vec::new(), true), 0)?;
    if let Some(own) = plan.link_local() {
        // As the guest's kernel would give it, but ready at once: passt asks a container once, and not again.
        socket.change(address(index, own.into(), LINK_LOCAL_PREFIX_LENGTH), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    for family in plan.families() {
        socket.change(address(index, family.address, family.prefix_length), NLM_F_CREATE | NLM_F_EXCL)?;
        socket.change(default_route(index, &family), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    Ok::<(), NetlinkError>(())
}

fn link(index: u32, attributes: Vec<LinkAttribute>, up: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

fn address(index: u32, own: IpAddr, prefix_length: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = number(own);
    message.header.prefix_len = prefix_length;
    message.header.index = index;
    if own.is_ipv6() {
        // Nobody else is there.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(own)];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, family: &Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number(family.address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(family.gateway.into()), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn number(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
