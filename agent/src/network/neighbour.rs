//! A neighbour whose hardware address is known, or for whom we answer.

use std::net::IpAddr;

use agent_protocol::messages as m;
use netlink::packet::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};

use super::{
    NetworkError,
    device::Devices,
    field::{self, Family, Mac, invalid},
};

/// NTF_PROXY: we answer for it.
const PROXY: u8 = 8;

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Whose hardware address
    pub address: IpAddr,
    /// is this; none for a proxied one.
    pub mac: Option<Mac>,
    /// Where it is.
    pub interface: String,
    /// For how long that holds (ndm_state).
    pub state: NeighbourState,
    /// ndm_flags.
    pub flags: u8,
}

impl Neighbour {
    /// Checks what the host says.
    pub fn parse(wanted: &m::Neighbour) -> Result<Self, NetworkError> {
        let address = field::address("address of a neighbour", &wanted.address)?
            .ok_or_else(|| invalid("address of a neighbour", "", "4 or 16 bytes"))?;
        let flags = field::byte("flags of a neighbour", wanted.flags)?;
        let mac = match wanted.mac.as_slice() {
            [] if flags & PROXY != 0 => None,
            bytes => Some(field::mac("MAC of a neighbour", bytes)?),
        };
        let state =
            u16::try_from(wanted.state).map_err(|_| invalid("state of a neighbour", wanted.state, "16 bits"))?;
        Ok(Self {
            address,
            mac,
            interface: field::name("interface of a neighbour", &wanted.interface)?,
            state: if state == 0 { NeighbourState::Permanent } else { NeighbourState::from(state) },
            flags,
        })
    }

    /// For the kernel.
    pub fn message(&self, devices: &Devices) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = Family::of(self.address).packet();
        message.header.ifindex = devices.index(&self.interface);
        message.header.state = self.state;
        message.header.flags = NeighbourFlags::from_bits_retain(self.flags);
        message.attributes.push(NeighbourAttribute::Destination(self.address.into()));
        message.attributes.extend(self.mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }
}

impl std::fmt::Display for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} dev {}", self.address, self.interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(flags: u32, mac: &[u8]) -> m::Neighbour {
        let address = vec![10, 0, 0, 1];
        m::Neighbour { address, mac: mac.to_vec(), interface: "eth0".into(), flags, ..Default::default() }
    }

    #[test]
    fn who_is_not_proxied_has_a_hardware_address() {
        assert_eq!(Neighbour::parse(&wanted(0, &[2; 6])).unwrap().state, NeighbourState::Permanent);
        assert!(Neighbour::parse(&wanted(0, &[])).is_err());
        assert_eq!(Neighbour::parse(&wanted(8, &[])).unwrap().mac, None);
    }

    #[test]
    fn fields_that_the_kernel_has_no_room_for_are_refused() {
        assert!(Neighbour::parse(&wanted(256, &[2; 6])).is_err());
        assert!(Neighbour::parse(&m::Neighbour { state: 1 << 16, ..wanted(0, &[2; 6]) }).is_err());
        assert!(Neighbour::parse(&m::Neighbour { address: vec![], ..wanted(0, &[2; 6]) }).is_err());
        assert!(Neighbour::parse(&m::Neighbour { interface: String::new(), ..wanted(0, &[2; 6]) }).is_err());
    }
}
