//! The kernel's messages about a namespace, in the words of the agent's protocol. Pure.
//!
//! Each says one of three things: the thing in the guest's words; nothing, since the guest's kernel makes the like by itself; or a sentence, since the
//! guest cannot be told, and half of a route would lead elsewhere.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_protocol::messages as m;
use netlink::packet::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
    },
    rule::{RuleAttribute, RuleFlags, RuleMessage},
};

/// Names of interfaces by their numbers.
pub(super) type Names = BTreeMap<u32, String>;
/// What the guest is told, nothing, or why it cannot be told.
pub(super) type Said<T> = Result<Option<T>, String>;

/// Tables of routes (rtnetlink.h): the kernel fills the local one by itself.
const TABLE_LOCAL: u32 = 255;
const TABLE_MAIN: u32 = 254;
const TABLE_DEFAULT: u32 = 253;
/// Priorities of the rules that each namespace begins with, and their tables.
const FIRST_RULES: [(u32, u32); 3] = [(0, TABLE_LOCAL), (32_766, TABLE_MAIN), (32_767, TABLE_DEFAULT)];

/// An address, and the number of its interface.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, m::InterfaceAddress)> {
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut local, mut other, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // A router's word is heard by the guest itself; an address that somebody else has is of no use.
    let routers = header.family == AddressFamily::Inet6 && !flags.contains(AddressFlags::Permanent);
    if routers || flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    let own = local.or(other)?;
    let address = m::InterfaceAddress {
        address: bytes(own),
        prefix_length: header.prefix_len.into(),
        peer: other.filter(|ip| *ip != own).map(bytes).unwrap_or_default(),
        broadcast: broadcast.map(|ip| bytes(ip.into())).unwrap_or_default(),
        scope: u8::from(header.scope).into(),
        ..Default::default()
    };
    Some((header.index, address))
}

/// A route.
pub(super) fn route(message: &RouteMessage, names: &Names) -> Said<m::Route> {
    let header = &message.header;
    let mut route = blank(header);
    let mut strange = (header.tos != 0).then_some("a type of service");
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination = route_address(to),
            RouteAttribute::Source(from) => route.source = route_address(from),
            RouteAttribute::Gateway(gateway) => route.gateway = route_address(gateway),
            RouteAttribute::Via(via) => route.gateway = via_address(via),
            RouteAttribute::PrefSource(source) => route.preferred_source = route_address(source),
            RouteAttribute::Oif(index) => route.interface = named(names, *index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => route.mtu = mtu(metrics),
            RouteAttribute::MultiPath(hops) => route.next_hops = hops.iter().map(|hop| next_hop(hop, names)).collect(),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => strange = Some("an encapsulation"),
            _ => {}
        }
    }
    if !is_ip(header.address_family) || route.table == TABLE_LOCAL || made_by_the_kernel_alone(header) {
        return Ok(None);
    }
    if is_refusal(header.kind) {
        // The kernel names loopback there.
        route.interface.clear();
    } else if leads_nowhere(&route) {
        strange = Some("no interface of the namespace");
    }
    match strange {
        Some(what) => Err(format!("the route to {} has {what}", place(&route.destination, route.prefix_length))),
        None => Ok(Some(route)),
    }
}

fn blank(header: &RouteHeader) -> m::Route {
    m::Route {
        family: u8::from(header.address_family).into(),
        prefix_length: header.destination_prefix_length.into(),
        source_prefix_length: header.source_prefix_length.into(),
        table: header.table.into(),
        scope: u8::from(header.scope).into(),
        kind: u8::from(header.kind).into(),
        flags: (header.flags & RouteFlags::Onlink).bits(),
        protocol: u8::from(header.protocol).into(),
        ..Default::default()
    }
}

/// What a conversation or a router taught it, and what belongs to its own addresses.
fn made_by_the_kernel_alone(header: &RouteHeader) -> bool {
    header.flags.contains(RouteFlags::Cloned)
        || matches!(header.protocol, RouteProtocol::Ra | RouteProtocol::IcmpRedirect)
        || matches!(header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast)
}

fn is_refusal(kind: RouteType) -> bool {
    matches!(kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw)
}

fn leads_nowhere(route: &m::Route) -> bool {
    if route.next_hops.is_empty() {
        route.interface.is_empty()
    } else {
        route.next_hops.iter().any(|hop| hop.interface.is_empty())
    }
}

fn next_hop(hop: &RouteNextHop, names: &Names) -> m::NextHop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => Some(route_address(gateway)),
        RouteAttribute::Via(via) => Some(via_address(via)),
        _ => None,
    });
    m::NextHop {
        gateway: gateway.unwrap_or_default(),
        interface: named(names, hop.interface_index),
        // The kernel counts from nought.
        weight: u32::from(hop.hops) + 1,
        flags: (hop.flags & RouteNextHopFlags::Onlink).bits().into(),
        ..Default::default()
    }
}

fn mtu(metrics: &[RouteMetric]) -> u32 {
    let mtu = metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

/// A neighbour that somebody wrote down: the others are found again.
pub(super) fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<m::Neighbour> {
    let header = &message.header;
    let proxied = header.flags.contains(NeighbourFlags::Proxy);
    if !proxied && !matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp) {
        return None;
    }
    let (mut ip, mut mac) = (None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(address) => mac.clone_from(address),
            _ => {}
        }
    }
    let ip = ip.filter(|ip| !is_of_many(ip))?;
    Some(m::Neighbour {
        address: bytes(ip),
        mac: if proxied { Vec::new() } else { mac },
        interface: named(names, header.ifindex),
        state: if proxied { 0 } else { u16::from(header.state).into() },
        flags: (header.flags & (NeighbourFlags::Proxy | NeighbourFlags::Router)).bits().into(),
        ..Default::default()
    })
}

/// The kernel computes the addresses of groups.
fn is_of_many(ip: &IpAddr) -> bool {
    ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() || *ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A rule other than those that each namespace begins with.
pub(super) fn rule(message: &RuleMessage) -> Said<m::Rule> {
    let header = &message.header;
    let mut rule = m::Rule {
        family: u8::from(header.family).into(),
        source_prefix_length: header.src_len.into(),
        destination_prefix_length: header.dst_len.into(),
        table: header.table.into(),
        action: u8::from(header.action).into(),
        ..Default::default()
    };
    let mut strange = (header.tos != 0).then_some("a type of service");
    if header.flags.contains(RuleFlags::Invert) {
        strange = Some("a `not`");
    }
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(ip) => rule.source = bytes(*ip),
            RuleAttribute::Destination(ip) => rule.destination = bytes(*ip),
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Iifname(name) => rule.incoming_interface.clone_from(name),
            RuleAttribute::Oifname(name) => rule.outgoing_interface.clone_from(name),
            other => strange = strange_in(other).or(strange),
        }
    }
    if !is_ip(header.family) || is_first(&rule) {
        return Ok(None);
    }
    match strange {
        Some(what) => Err(format!("the rule of priority {} has {what}", rule.priority)),
        None => Ok(Some(rule)),
    }
}

fn is_first(rule: &m::Rule) -> bool {
    let everything = rule.source.is_empty()
        && rule.destination.is_empty()
        && rule.mark == 0
        && rule.incoming_interface.is_empty()
        && rule.outgoing_interface.is_empty();
    everything && FIRST_RULES.contains(&(rule.priority, rule.table))
}

/// What a rule asks for that the guest cannot be told; some attributes are there and say "nothing".
fn strange_in(attribute: &RuleAttribute) -> Option<&'static str> {
    match attribute {
        RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => None,
        RuleAttribute::SuppressPrefixLen(_) | RuleAttribute::SuppressIfGroup(_) => Some("a suppressor"),
        RuleAttribute::Goto(_) => Some("a goto"),
        RuleAttribute::TunId(_) => Some("a tunnel's number"),
        RuleAttribute::L3MDev(true) => Some("an l3mdev"),
        RuleAttribute::UidRange(_) => Some("users"),
        RuleAttribute::IpProtocol(_) => Some("a protocol"),
        RuleAttribute::SourcePortRange(_) | RuleAttribute::DestinationPortRange(_) => Some("ports"),
        _ => None,
    }
}

/// Routing of multicasts has families of its own, which a daemon fills.
fn is_ip(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

fn named(names: &Names, index: u32) -> String {
    names.get(&index).cloned().unwrap_or_default()
}

/// As the protocol writes addresses: four bytes, or sixteen.
pub(super) fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn route_address(address: &RouteAddress) -> Vec<u8> {
    match address {
        RouteAddress::Inet(v4) => v4.octets().to_vec(),
        RouteAddress::Inet6(v6) => v6.octets().to_vec(),
        _ => Vec::new(),
    }
}

fn via_address(via: &RouteVia) -> Vec<u8> {
    match via {
        RouteVia::Inet(v4) => v4.octets().to_vec(),
        RouteVia::Inet6(v6) => v6.octets().to_vec(),
        _ => Vec::new(),
    }
}

/// For people.
fn place(address: &[u8], prefix_length: u32) -> String {
    let v4 = <[u8; 4]>::try_from(address).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
    let ip = v4.or_else(|_| <[u8; 16]>::try_from(address).map(|octets| IpAddr::from(Ipv6Addr::from(octets))));
    ip.map_or_else(|_| "everywhere".to_owned(), |ip| format!("{ip}/{prefix_length}"))
}

#[cfg(test)]
mod tests {
    use netlink::packet::{
        address::{AddressHeaderFlags, AddressScope},
        rule::RuleAction,
    };

    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

    fn names() -> Names {
        [(1, "lo".to_owned()), (2, "eth0".to_owned())].into()
    }

    fn ipv6_address(flags: AddressHeaderFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.flags = flags;
        message.header.index = 2;
        message.header.prefix_len = 64;
        message.attributes.push(AddressAttribute::Address("2001:db8::2".parse().expect("one")));
        message
    }

    #[test]
    fn an_address_has_its_peer_when_it_has_one() {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = 2;
        message.header.prefix_len = 24;
        message.header.scope = AddressScope::Link;
        message.attributes = vec![AddressAttribute::Address(OWN.into()), AddressAttribute::Local(OWN.into())];
        let (index, told) = address(&message).expect("told");
        assert_eq!((index, told.prefix_length, told.scope), (2, 24, 253));
        assert!(told.address == OWN.octets() && told.peer.is_empty(), "{told}");
        message.attributes[0] = AddressAttribute::Address(Ipv4Addr::new(10, 1, 0, 1).into());
        assert_eq!(address(&message).expect("told").1.peer, [10, 1, 0, 1]);
    }

    #[test]
    fn what_a_router_says_and_what_somebody_else_has_is_not_told() {
        assert!(address(&ipv6_address(AddressHeaderFlags::Permanent | AddressHeaderFlags::Tentative)).is_some());
        assert!(address(&ipv6_address(AddressHeaderFlags::empty())).is_none());
        assert!(address(&ipv6_address(AddressHeaderFlags::Permanent | AddressHeaderFlags::Dadfailed)).is_none());
    }

    #[test]
    fn a_route_has_its_table_whatever_its_number() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        message.attributes = vec![
            RouteAttribute::Table(1000),
            RouteAttribute::Gateway(OWN.into()),
            RouteAttribute::Oif(2),
            RouteAttribute::Metrics(vec![RouteMetric::Advmss(1000), RouteMetric::Mtu(1400)]),
        ];
        let told = route(&message, &names()).expect("can be told").expect("told");
        assert_eq!((told.table, told.mtu, told.flags, told.interface.as_str()), (1000, 1400, 4, "eth0"));
        message.attributes[2] = RouteAttribute::Oif(4711);
        assert!(route(&message, &names()).expect_err("elsewhere").contains("no interface"));
        message.attributes[0] = RouteAttribute::Table(TABLE_LOCAL);
        assert_eq!(route(&message, &names()), Ok(None));
    }

    #[test]
    fn a_route_of_several_ways_has_their_weights() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.kind = RouteType::Unicast;
        let mut hop = RouteNextHop::default();
        hop.interface_index = 2;
        hop.hops = 2;
        hop.attributes = vec![RouteAttribute::Via(RouteVia::Inet6(Ipv6Addr::LOCALHOST))];
        message.attributes = vec![RouteAttribute::MultiPath(vec![hop])];
        let told = route(&message, &names()).expect("can be told").expect("told");
        let hop = told.next_hops.first().expect("one");
        assert_eq!((hop.weight, hop.interface.as_str(), hop.gateway.len()), (3, "eth0", 16));
    }

    #[test]
    fn half_of_a_route_or_a_rule_is_not_told() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.tos = 8;
        message.attributes = vec![RouteAttribute::Oif(2)];
        let sentence = route(&message, &names()).expect_err("strange");
        assert!(sentence.contains("everywhere") && sentence.contains("type of service"), "{sentence}");
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes = vec![RuleAttribute::Priority(5), RuleAttribute::IpProtocol(6.into())];
        assert!(rule(&message).expect_err("strange").contains("priority 5"));
        message.attributes = vec![RuleAttribute::Priority(5), RuleAttribute::SuppressPrefixLen(u32::MAX)];
        assert!(rule(&message).expect("nothing is suppressed").is_some());
    }

    #[test]
    fn an_unreachable_route_names_no_interface() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.kind = RouteType::Unreachable;
        message.attributes = vec![RouteAttribute::Oif(1)];
        assert_eq!(route(&message, &names()).expect("can be told").expect("told").interface, "");
    }

    #[test]
    fn the_first_rules_of_a_namespace_are_not_told_and_others_of_their_priorities_are() {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::Priority(32_766), RuleAttribute::Table(TABLE_MAIN)];
        assert_eq!(rule(&message), Ok(None));
        message.attributes.push(RuleAttribute::FwMark(7));
        assert_eq!(rule(&message).expect("can be told").expect("told").mark, 7);
        message.header.family = AddressFamily::Other(129);
        assert_eq!(rule(&message), Ok(None), "routing of multicasts");
    }

    #[test]
    fn only_neighbours_that_somebody_wrote_down_are_told() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(OWN.into()),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
        ];
        let told = neighbour(&message, &names()).expect("told");
        assert_eq!((told.state, told.interface.as_str(), told.mac.len()), (0x80, "eth0", 6));
        message.header.state = NeighbourState::Reachable;
        assert_eq!(neighbour(&message, &names()), None);
        message.header.state = NeighbourState::Noarp;
        message.attributes[0] = NeighbourAttribute::Destination(Ipv4Addr::new(224, 0, 0, 22).into());
        assert_eq!(neighbour(&message, &names()), None);
    }
}
