//! One way of a route: out of an interface, to a router or directly.

use std::net::IpAddr;

use agent_protocol::{messages as m, network::NEXT_HOPS_MAX};
use netlink::packet::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteVia,
};

use super::{
    NetworkError,
    device::Devices,
    field::{self, Family, invalid},
};

/// RTNH_F_ONLINK.
const ONLINK: u32 = 4;
/// The kernel keeps one less in a byte.
const WEIGHT_MAX: u32 = 256;

/// A way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// By this router, or directly.
    pub gateway: Option<IpAddr>,
    /// Out of this interface.
    pub interface: String,
    /// The router is there although no route says so.
    pub onlink: bool,
    /// How often it is taken, 1 to 256; 1 for an only way.
    pub weight: u32,
}

impl Hop {
    /// The one way that the route has in its own fields, or those of the list.
    pub fn parse_all(wanted: &m::Route, family: Family) -> Result<Vec<Self>, NetworkError> {
        let only = m::NextHop {
            gateway: wanted.gateway.clone(),
            interface: wanted.interface.clone(),
            flags: wanted.flags,
            ..Default::default()
        };
        let has_only = !only.gateway.is_empty() || !only.interface.is_empty();
        match wanted.next_hops.as_slice() {
            [] if has_only => Ok(vec![Self::parse(&only, family)?]),
            [] => Ok(Vec::new()),
            _ if has_only => {
                Err(invalid("next hops of a route", &wanted.interface, "in place of gateway and interface"))
            }
            [one] => Ok(vec![Self { weight: 1, ..Self::parse(one, family)? }]),
            hops => {
                field::at_most("next hops of a route", hops, NEXT_HOPS_MAX)?;
                hops.iter().map(|hop| Self::parse(hop, family)).collect()
            }
        }
    }

    fn parse(wanted: &m::NextHop, family: Family) -> Result<Self, NetworkError> {
        let gateway = match family {
            Family::V4 => field::address("gateway of a route", &wanted.gateway)?,
            Family::V6 => family.address("gateway of a route", &wanted.gateway)?,
        };
        if wanted.flags & !ONLINK != 0 {
            return Err(invalid("flags of a route", wanted.flags, "4 (on-link) or none"));
        }
        if wanted.weight > WEIGHT_MAX {
            return Err(invalid("weight of a route's way", wanted.weight, "1 to 256"));
        }
        Ok(Self {
            gateway,
            interface: field::name("interface of a route", &wanted.interface)?,
            onlink: wanted.flags & ONLINK != 0,
            weight: wanted.weight.max(1),
        })
    }

    /// The only way of a route of the kernel's; none if it leads to a device that is not known.
    pub fn only(route: &RouteMessage, devices: &Devices) -> Option<Self> {
        let index = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })?;
        let onlink = route.header.flags.contains(RouteFlags::Onlink);
        let interface = devices.name(index)?.to_owned();
        Some(Self { gateway: gateway(&route.attributes), interface, onlink, weight: 1 })
    }

    /// One of several.
    pub fn one_of(way: &RouteNextHop, devices: &Devices) -> Option<Self> {
        Some(Self {
            gateway: gateway(&way.attributes),
            interface: devices.name(way.interface_index)?.to_owned(),
            onlink: way.flags.contains(RouteNextHopFlags::Onlink),
            weight: u32::from(way.hops) + 1,
        })
    }

    /// For the kernel, as one of several ways of a route of this family.
    pub fn message(&self, family: Family, devices: &Devices) -> RouteNextHop {
        let mut way = RouteNextHop::default();
        way.flags.set(RouteNextHopFlags::Onlink, self.onlink);
        way.hops = u8::try_from(self.weight.saturating_sub(1)).unwrap_or(u8::MAX);
        way.interface_index = devices.index(&self.interface);
        way.attributes.extend(self.router(family));
        way
    }

    /// The router's address, for the kernel.
    pub fn router(&self, family: Family) -> Option<RouteAttribute> {
        let gateway = self.gateway?;
        let same = Family::of(gateway) == family;
        Some(if same { RouteAttribute::Gateway(gateway.into()) } else { RouteAttribute::Via(gateway.into()) })
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => Some((*gateway).into()),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some((*gateway).into()),
        _ => None,
    })
}

/// An address of a route that is of IP; MPLS has others.
pub fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
