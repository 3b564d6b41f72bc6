//! An address of an interface: as the host tells it, as the kernel tells it, as the kernel is told.

use std::net::{IpAddr, Ipv4Addr};

use agent_protocol::messages as m;
use netlink::packet::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};

use super::{
    NetworkError,
    field::{self, Family},
};

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface's own.
    pub address: IpAddr,
    /// How many bits those reached directly have in common.
    pub prefix_length: u8,
    /// The other end, where the prefix is of that.
    pub peer: Option<IpAddr>,
    /// Where everybody listens.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid (rtm_scope). An IPv6 address says so itself: 0 here.
    pub scope: u8,
}

impl Address {
    /// Checks what the host says.
    pub fn parse(wanted: &m::InterfaceAddress) -> Result<Self, NetworkError> {
        let address = field::address("interface's address", &wanted.address)?
            .filter(|address| !address.is_unspecified() && !address.is_multicast())
            .ok_or_else(|| field::invalid("interface's address", field::hexadecimal(&wanted.address), "one host's"))?;
        let family = Family::of(address);
        let broadcast = match field::address("broadcast address", &wanted.broadcast)? {
            None => None,
            Some(IpAddr::V4(broadcast)) if address.is_ipv4() => Some(broadcast),
            Some(other) => return Err(field::invalid("broadcast address", other, "IPv4 addresses have one")),
        };
        let scope = field::byte("scope of an interface's address", wanted.scope)?;
        Ok(Self {
            address,
            prefix_length: family.prefix_length("prefix length of an interface's address", wanted.prefix_length)?,
            peer: family.address("peer address", &wanted.peer)?.filter(|peer| *peer != address),
            broadcast,
            scope: if family == Family::V4 { scope } else { 0 },
        })
    }

    /// Number of the interface, and the address that it has for good; none for one that came by itself and goes by itself.
    pub fn of(message: &AddressMessage) -> Option<(u32, Self)> {
        let (mut local, mut peer, mut broadcast) = (None, None, None);
        let mut permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                AddressAttribute::Broadcast(address) => broadcast = Some(*address),
                AddressAttribute::Flags(flags) => permanent |= flags.contains(AddressFlags::Permanent),
                _ => {}
            }
        }
        let address = local.or(peer).filter(|_| permanent)?;
        let scope = if address.is_ipv4() { u8::from(message.header.scope) } else { 0 };
        let peer = peer.filter(|peer| *peer != address);
        Some((message.header.index, Self { address, prefix_length: message.header.prefix_len, peer, broadcast, scope }))
    }

    /// For adding it to, or taking it from, the interface with this number. Nobody looks for duplicates: the host has.
    pub fn message(&self, index: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = Family::of(self.address).packet();
        message.header.prefix_len = self.prefix_length;
        message.header.index = index;
        message.header.scope = AddressScope::from(self.scope);
        if self.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes.push(AddressAttribute::Local(self.address));
        message.attributes.push(AddressAttribute::Address(self.peer.unwrap_or(self.address)));
        message.attributes.extend(self.broadcast.map(AddressAttribute::Broadcast));
        message
    }

    /// The guest's kernel makes it from the hardware address.
    pub fn is_link_local(&self) -> bool {
        field::is_link_local(self.address)
    }

    /// An IPv4 address goes with the first one of its range.
    pub fn goes_with(&self, other: &Self) -> bool {
        let range = |of: &Self| field::network(of.peer.unwrap_or(of.address), of.prefix_length);
        self.address.is_ipv4() && self.prefix_length == other.prefix_length && range(self) == range(other)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)?;
        self.peer.map_or(Ok(()), |peer| write!(f, " (peer {peer})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(address: &[u8], prefix_length: u32) -> m::InterfaceAddress {
        m::InterfaceAddress { address: address.to_vec(), prefix_length, ..Default::default() }
    }

    #[test]
    fn what_the_kernel_is_told_is_what_it_tells() {
        let mut with_peer = wanted(&[10, 1, 0, 5], 32);
        with_peer.peer = vec![10, 1, 0, 1];
        with_peer.broadcast = vec![10, 1, 0, 255];
        with_peer.scope = 253;
        let mut v6 = [0; 16];
        (v6[0], v6[15]) = (0xfd, 5);
        for wanted in [with_peer, wanted(&[10, 1, 0, 5], 24), wanted(&v6, 64)] {
            let address = Address::parse(&wanted).unwrap();
            let mut message = address.message(7);
            message.header.flags |= AddressHeaderFlags::Permanent;
            assert_eq!(Address::of(&message), Some((7, address)));
        }
    }

    #[test]
    fn an_address_that_expires_is_not_ours() {
        let message = Address::parse(&wanted(&[10, 1, 0, 5], 24)).unwrap().message(7);
        assert_eq!(Address::of(&message), None);
    }

    #[test]
    fn wrong_lengths_families_and_addresses_of_nobody_are_refused() {
        for bad in [wanted(&[], 0), wanted(&[1, 2], 0), wanted(&[0; 4], 8), wanted(&[224, 0, 0, 1], 8)] {
            assert!(Address::parse(&bad).is_err(), "{bad:?}");
        }
        assert!(Address::parse(&wanted(&[10, 0, 0, 1], 33)).is_err());
        assert!(Address::parse(&m::InterfaceAddress { peer: vec![1; 16], ..wanted(&[10, 0, 0, 1], 8) }).is_err());
        assert!(Address::parse(&m::InterfaceAddress { broadcast: vec![1; 4], ..wanted(&[0xfd; 16], 8) }).is_err());
        assert!(Address::parse(&m::InterfaceAddress { scope: 256, ..wanted(&[10, 0, 0, 1], 8) }).is_err());
    }

    #[test]
    fn an_address_goes_with_the_first_of_its_range_only() {
        let of = |address: [u8; 4], length| Address::parse(&wanted(&address, length)).unwrap();
        assert!(of([10, 0, 0, 1], 24).goes_with(&of([10, 0, 0, 2], 24)));
        assert!(!of([10, 0, 0, 1], 24).goes_with(&of([10, 0, 1, 2], 24)));
        assert!(!of([10, 0, 0, 1], 24).goes_with(&of([10, 0, 0, 2], 16)));
    }
}
