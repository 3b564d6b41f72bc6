//! The guest's devices: as the kernel tells them, and as it is told to change them.

use std::collections::BTreeMap;

use netlink::core::{DecodeError, DefaultNla, Emitable, NlasIterator, Parseable};

use super::{NetworkError, interface::Interface};

/// Length of `struct ifinfomsg` (rtnetlink(7)): family, type, index, flags, and which flags are meant.
const HEADER_LEN: usize = 16;
/// IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU and IFLA_PERM_ADDRESS.
const MAC: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const PERMANENT_MAC: u16 = 54;
/// IFF_UP and IFF_NOARP.
const UP: u32 = 1;
const NO_ARP: u32 = 1 << 7;

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, 6 bytes of Ethernet's.
    pub mac: Vec<u8>,
    /// The one that it came with, if it came with one; a container may have given it another.
    pub permanent_mac: Vec<u8>,
    /// Its largest packet.
    pub mtu: u32,
    /// It is switched on.
    pub up: bool,
    /// It asks nobody for hardware addresses.
    pub no_arp: bool,
}

impl Parseable<[u8]> for Device {
    fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let number = |at: usize| -> Result<u32, DecodeError> {
            let bytes = body.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(DecodeError::from("the header is too short"))
        };
        let flags = number(8)?;
        let mut device =
            Self { index: number(4)?, up: flags & UP != 0, no_arp: flags & NO_ARP != 0, ..Self::default() };
        for attribute in NlasIterator::new(body.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                MAC => device.mac = attribute.value().to_vec(),
                PERMANENT_MAC => device.permanent_mac = attribute.value().to_vec(),
                NAME => {
                    device.name = String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned();
                }
                MTU => device.mtu = attribute.value().try_into().map_or(0, u32::from_ne_bytes),
                _ => {}
            }
        }
        Ok(device)
    }
}

impl Device {
    /// Is this the hardware address by which the host knows it?
    pub fn is_known_by(&self, mac: &[u8]) -> bool {
        if self.permanent_mac.is_empty() { self.mac == mac } else { self.permanent_mac == mac }
    }
}

/// What the kernel is told about a device; all devices are asked for with the default.
#[derive(Debug, Default)]
pub struct Request {
    /// Of the device.
    pub index: u32,
    /// Its new name.
    pub name: Option<String>,
    /// Its new MTU.
    pub mtu: Option<u32>,
    /// Bring it up, without asking for hardware addresses or with it.
    pub up_without_arp: Option<bool>,
    /// Keep the kernel from giving it a link-local address when it comes up.
    pub no_own_link_local: bool,
}

impl Request {
    fn attributes(&self) -> Vec<DefaultNla> {
        let name = self.name.as_ref().map(|name| DefaultNla::new(NAME, [name.as_bytes(), &[0]].concat()));
        let mtu = self.mtu.map(|mtu| DefaultNla::new(MTU, mtu.to_ne_bytes().to_vec()));
        let own = self.no_own_link_local.then(no_own_link_local);
        name.into_iter().chain(mtu).chain(own).collect()
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes().as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let (flags, meant) = match self.up_without_arp {
            None => (0, 0),
            Some(false) => (UP, UP | NO_ARP),
            Some(true) => (UP | NO_ARP, UP | NO_ARP),
        };
        let (header, attributes) = buffer.split_at_mut(HEADER_LEN);
        header.fill(0);
        header[4..8].copy_from_slice(&self.index.to_ne_bytes());
        header[8..12].copy_from_slice(&u32::to_ne_bytes(flags));
        header[12..].copy_from_slice(&u32::to_ne_bytes(meant));
        self.attributes().as_slice().emit(attributes);
    }
}

/// IFLA_AF_SPEC, in it AF_INET6, in it IFLA_INET6_ADDR_GEN_MODE with IN6_ADDR_GEN_MODE_NONE (linux/if_link.h).
fn no_own_link_local() -> DefaultNla {
    const AF_SPEC: u16 = 26;
    const AF_INET6: u16 = 10;
    const ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let within = |kind: u16, inner: DefaultNla| {
        let mut bytes = vec![0; [inner.clone()].as_slice().buffer_len()];
        [inner].as_slice().emit(&mut bytes);
        DefaultNla::new(kind, bytes)
    };
    within(AF_SPEC, within(AF_INET6, DefaultNla::new(ADDR_GEN_MODE, vec![NONE])))
}

/// The devices of the guest, by the names that they have when all are renamed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Devices(BTreeMap<u32, String>);

impl Devices {
    /// Finds all wanted interfaces among the guest's.
    pub fn find(wanted: &[Interface], devices: &[Device]) -> Result<Self, NetworkError> {
        let mut names = BTreeMap::new();
        for device in devices {
            let taken = wanted.iter().any(|interface| interface.name == device.name);
            names.insert(device.index, if taken { aside(device.index) } else { device.name.clone() });
        }
        for interface in wanted {
            names.insert(interface.device(devices)?.index, interface.name.clone());
        }
        Ok(Self(names))
    }

    /// The name of this one.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(String::as_str)
    }

    /// The number of this one. A name that no device has is none of a checked network's; the kernel refuses its number.
    pub fn index(&self, name: &str) -> u32 {
        self.0.iter().find(|(_, own)| *own == name).map_or(0, |(index, _)| *index)
    }
}

/// The name of a device that stands in another's place.
pub fn aside(index: u32) -> String {
    format!("moved{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_from_what_the_kernel_is_told() {
        let request = Request {
            index: 7,
            name: Some("eth0".into()),
            mtu: Some(1400),
            up_without_arp: Some(true),
            ..Request::default()
        };
        let mut body = vec![0xff; request.buffer_len()];
        request.emit(&mut body);
        let device = Device::parse(&body).unwrap();
        let wanted = Device { index: 7, name: "eth0".into(), mtu: 1400, up: true, no_arp: true, ..Device::default() };
        assert_eq!(device, wanted);
    }

    #[test]
    fn a_device_is_known_by_the_address_that_it_came_with() {
        let changed = Device { mac: vec![2; 6], permanent_mac: vec![4; 6], ..Device::default() };
        assert!(changed.is_known_by(&[4; 6]) && !changed.is_known_by(&[2; 6]));
        let made_by_software = Device { mac: vec![2; 6], ..Device::default() };
        assert!(made_by_software.is_known_by(&[2; 6]) && !made_by_software.is_known_by(&[]));
    }

    #[test]
    fn what_is_cut_short_is_no_device() {
        for len in 0..12 {
            assert!(Device::parse(&vec![0; len]).is_err(), "{len}");
        }
        let mut cut = vec![0; HEADER_LEN];
        cut.extend([200, 0, 3, 0]);
        assert!(Device::parse(&cut).is_err());
    }
}
