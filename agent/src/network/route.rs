//! A route: as the host tells it, as the kernel tells it, as the kernel is told.

use std::net::IpAddr;

use agent_protocol::messages as m;
use netlink::packet::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use super::{
    NetworkError,
    device::Devices,
    field::{self, Family, Prefix, invalid},
    hop::{Hop, ip},
};

/// RT_TABLE_MAIN, where a route is that names no table.
pub const TABLE_MAIN: u32 = 254;
/// RT_TABLE_LOCAL, which the kernel keeps.
const TABLE_LOCAL: u32 = 255;
/// RTN_UNICAST to RTN_THROW; what comes behind is not for us to set.
const KIND_UNICAST: u8 = 1;
const KIND_MAX: u8 = 9;
/// RTN_BLACKHOLE and what is behind it lead nowhere.
const KIND_NOWHERE: u8 = 6;
/// What the kernel gives an IPv6 route without a metric (IP6_RT_PRIO_USER).
const METRIC_V6: u32 = 1024;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// For packets to there,
    pub destination: Prefix,
    /// from there (IPv6).
    pub source: Option<Prefix>,
    /// One of these ways; none if it leads nowhere.
    pub hops: Vec<Hop>,
    /// Which address of ours they get.
    pub preferred_source: Option<IpAddr>,
    /// The lowest is taken.
    pub metric: u32,
    /// The table it is in.
    pub table: u32,
    /// How far it leads (rtm_scope). IPv6 has no such thing: 0 there.
    pub scope: u8,
    /// rtm_type.
    pub kind: u8,
    /// Who made it (rtm_protocol).
    pub protocol: u8,
    /// Largest packet on this way.
    pub mtu: Option<u32>,
}

impl Route {
    /// Checks what the host says.
    pub fn parse(wanted: &m::Route) -> Result<Self, NetworkError> {
        let family = Family::parse("family of a route", wanted.family)?;
        let v6 = family == Family::V6;
        let kind = kind(wanted.kind)?;
        // An IPv6 route that leads nowhere is shown at the loopback interface.
        let hops = if kind < KIND_NOWHERE { Hop::parse_all(wanted, family)? } else { Vec::new() };
        if kind < KIND_NOWHERE && hops.is_empty() {
            let rule = "a route names an interface, unless it leads nowhere (kinds 6 to 9)";
            return Err(invalid("kind of a route", kind, rule));
        }
        Ok(Self {
            destination: family.prefix("destination of a route", &wanted.destination, wanted.prefix_length)?,
            source: source(wanted, family)?,
            hops,
            preferred_source: family.address("preferred source of a route", &wanted.preferred_source)?,
            metric: if v6 { or(wanted.metric, METRIC_V6) } else { wanted.metric },
            table: or(wanted.table, TABLE_MAIN),
            scope: if v6 { 0 } else { field::byte("scope of a route", wanted.scope)? },
            kind,
            protocol: match field::byte("protocol of a route", wanted.protocol)? {
                0 => RouteProtocol::Static.into(),
                protocol => protocol,
            },
            mtu: field::mtu("MTU of a route", wanted.mtu)?,
        })
    }

    /// None for one that we could not have made: it is left alone.
    pub fn of(message: &RouteMessage, devices: &Devices) -> Option<Self> {
        let header = &message.header;
        let family = Family::of_packet(header.address_family)?;
        if header.tos != 0 || header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut route = Self {
            destination: Prefix { address: family.any(), length: header.destination_prefix_length },
            source: None,
            hops: Vec::new(),
            preferred_source: None,
            metric: 0,
            table: header.table.into(),
            scope: header.scope.into(),
            kind: header.kind.into(),
            protocol: header.protocol.into(),
            mtu: None,
        };
        for attribute in &message.attributes {
            route.take(attribute, header.source_prefix_length, devices)?;
        }
        if route.kind >= KIND_NOWHERE {
            route.hops.clear();
        } else if route.hops.is_empty() {
            route.hops.push(Hop::only(message, devices)?);
        }
        Some(route)
    }

    fn take(&mut self, attribute: &RouteAttribute, source_length: u8, devices: &Devices) -> Option<()> {
        match attribute {
            RouteAttribute::Destination(to) => self.destination.address = ip(to)?,
            RouteAttribute::Source(from) => self.source = Some(Prefix { address: ip(from)?, length: source_length }),
            RouteAttribute::PrefSource(source) => self.preferred_source = Some(ip(source)?),
            RouteAttribute::Priority(metric) => self.metric = *metric,
            RouteAttribute::Table(table) => self.table = *table,
            RouteAttribute::Metrics(metrics) => self.mtu = metrics.iter().find_map(mtu),
            RouteAttribute::MultiPath(ways) => {
                self.hops = ways.iter().map(|way| Hop::one_of(way, devices)).collect::<Option<_>>()?;
            }
            RouteAttribute::Encap(_) | RouteAttribute::NhId(_) => return None,
            _ => {}
        }
        Some(())
    }

    /// For making it, or taking it away.
    pub fn message(&self, devices: &Devices) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = Family::of(self.destination.address).packet();
        header.destination_prefix_length = self.destination.length;
        header.source_prefix_length = self.source.map_or(0, |source| source.length);
        header.protocol = RouteProtocol::from(self.protocol);
        header.scope = RouteScope::from(self.scope);
        header.kind = RouteType::from(self.kind);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        if self.destination.length != 0 {
            attributes.push(RouteAttribute::Destination(self.destination.address.into()));
        }
        attributes.extend(self.source.map(|source| RouteAttribute::Source(source.address.into())));
        attributes.extend(self.preferred_source.map(|source| RouteAttribute::PrefSource(source.into())));
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        let family = Family::of(self.destination.address);
        match self.hops.as_slice() {
            [] => {}
            [hop] => {
                attributes.push(RouteAttribute::Oif(devices.index(&hop.interface)));
                attributes.extend(hop.router(family));
                header.flags.set(RouteFlags::Onlink, hop.onlink);
            }
            hops => {
                let ways = hops.iter().map(|hop| hop.message(family, devices)).collect();
                attributes.push(RouteAttribute::MultiPath(ways));
            }
        }
        message
    }

    /// Another route must lead to its router first.
    pub fn needs_another(&self) -> bool {
        self.hops.iter().any(|hop| hop.gateway.is_some())
    }

    /// The kernel takes the two for one when it is told to replace.
    pub fn is_in_place_of(&self, other: &Self) -> bool {
        let place = |route: &Self| (route.destination, route.source, route.table, route.metric);
        place(self) == place(other)
    }

    /// It comes and goes by itself: what the kernel needs for its own, and what a router told it. Not so the route to an address's
    /// neighbours, which some plugins take away.
    pub fn is_by_itself(&self) -> bool {
        let told = matches!(RouteProtocol::from(self.protocol), RouteProtocol::Ra | RouteProtocol::IcmpRedirect);
        let to = self.destination.address;
        told || self.table == TABLE_LOCAL || to.is_multicast() || field::is_link_local(to)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.destination)?;
        for hop in &self.hops {
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev {}", hop.interface)?;
        }
        if self.table == TABLE_MAIN { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

fn or(number: u32, otherwise: u32) -> u32 {
    if number == 0 { otherwise } else { number }
}

fn kind(number: u32) -> Result<u8, NetworkError> {
    match field::byte("kind of a route", number)? {
        0 => Ok(KIND_UNICAST),
        kind @ KIND_UNICAST..=KIND_MAX => Ok(kind),
        kind => Err(invalid("kind of a route", kind, "1 (unicast) to 9 (throw)")),
    }
}

fn source(wanted: &m::Route, family: Family) -> Result<Option<Prefix>, NetworkError> {
    let source = family.prefix("source of a route", &wanted.source, wanted.source_prefix_length)?;
    match (source.length, family) {
        (0, _) => Ok(None),
        (_, Family::V6) => Ok(Some(source)),
        (_, Family::V4) => Err(invalid("source of a route", source, "IPv6 routes have one; IPv4 has rules for that")),
    }
}

fn mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}
