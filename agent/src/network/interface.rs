//! An interface as it is wanted, and the devices of the guest under the names that they will have.

use std::collections::BTreeMap;

use agent_protocol::{
    messages as m,
    network::{ADDRESSES_MAX, INTERFACES_MAX},
};
use netlink::{
    Link,
    packet::link::{LinkAttribute, LinkFlags, LinkMessage},
};

use super::{
    NetworkError,
    address::Address,
    field::{self, LOOPBACK, Mac, invalid},
};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// As containers see it.
    pub name: String,
    /// By which its device is found.
    pub mac: Mac,
    /// Largest packet, none for the device's own.
    pub mtu: Option<u32>,
    /// All that it has, but those that the kernel gives it.
    pub addresses: Vec<Address>,
    /// Nobody is asked for hardware addresses.
    pub no_arp: bool,
}

impl Interface {
    /// Checks what the host says.
    pub fn parse(wanted: &m::NetworkInterface) -> Result<Self, NetworkError> {
        let name = field::name("name of an interface", &wanted.name)?;
        if name == LOOPBACK {
            return Err(invalid("name of an interface", name, "the loopback interface is the guest's own"));
        }
        field::at_most("addresses of an interface", &wanted.addresses, ADDRESSES_MAX)?;
        Ok(Self {
            name,
            mac: field::own_mac("MAC of an interface", &wanted.mac)?,
            mtu: field::mtu("MTU of an interface", wanted.mtu)?,
            addresses: wanted.addresses.iter().map(Address::parse).collect::<Result<_, _>>()?,
            no_arp: wanted.no_arp,
        })
    }

    /// All of a network, each of which is another.
    pub fn parse_all(wanted: &[m::NetworkInterface]) -> Result<Vec<Self>, NetworkError> {
        field::at_most("interfaces of the network", wanted, INTERFACES_MAX)?;
        let all: Vec<Self> = wanted.iter().map(Self::parse).collect::<Result<_, _>>()?;
        for (at, one) in all.iter().enumerate() {
            if all[..at].iter().any(|other| other.name == one.name) {
                return Err(invalid("name of an interface", &one.name, "each has another name"));
            }
            if all[..at].iter().any(|other| other.mac == one.mac) {
                return Err(invalid("MAC of an interface", field::hexadecimal(&one.mac), "each has another MAC"));
            }
        }
        Ok(all)
    }

    /// The one message that makes the device this interface, up; none if it is so already.
    pub fn change(&self, link: &Link) -> Option<Change> {
        let change = Change {
            index: link.index,
            name: self.name.clone(),
            rename: link.name != self.name,
            mtu: self.mtu.filter(|mtu| *mtu != link.mtu),
            no_arp: self.no_arp,
        };
        let flags_fit = link.is_up() && link.flags.contains(LinkFlags::Noarp) == self.no_arp;
        (change.rename || change.mtu.is_some() || !flags_fit).then_some(change)
    }

    /// The device with our MAC. What is made on top of a device (VLANs, bridges) has its MAC too, and comes later.
    pub fn device<'a>(&self, links: &'a [Link]) -> Result<&'a Link, NetworkError> {
        let ours = links.iter().filter(|link| link.mac == self.mac);
        ours.min_by_key(|link| link.index)
            .ok_or_else(|| NetworkError::NoDevice { name: self.name.clone(), mac: field::hexadecimal(&self.mac) })
    }
}

/// What makes a device an interface of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of the device.
    pub index: u32,
    /// Which it has, or gets
    pub name: String,
    /// if so.
    pub rename: bool,
    /// If it is another.
    pub mtu: Option<u32>,
    /// Either way.
    pub no_arp: bool,
}

impl Change {
    /// For the kernel.
    pub fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        message.header.flags.set(LinkFlags::Noarp, self.no_arp);
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        message.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        if self.rename {
            message.attributes.push(LinkAttribute::IfName(self.name.clone()));
        }
        message
    }
}

/// For the kernel: a new name and nothing else.
pub fn rename(index: u32, name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// The devices of the guest, by the names that they have when all are renamed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Devices(BTreeMap<u32, String>);

impl Devices {
    /// Finds all wanted interfaces among the guest's.
    pub fn find(wanted: &[Interface], links: &[Link]) -> Result<Self, NetworkError> {
        let mut names = BTreeMap::new();
        for link in links {
            let taken = wanted.iter().any(|interface| interface.name == link.name);
            names.insert(link.index, if taken { aside(link.index) } else { link.name.clone() });
        }
        for interface in wanted {
            names.insert(interface.device(links)?.index, interface.name.clone());
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
