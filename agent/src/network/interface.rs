//! An interface as it is wanted.

use super::{
    NetworkError,
    address::Address,
    device::{Device, Request},
    field::{self, LOOPBACK, Mac, invalid},
};
use agent_protocol::{
    messages as m,
    network::{ADDRESSES_MAX, INTERFACES_MAX},
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
    pub fn change(&self, device: &Device) -> Option<Change> {
        let change = Change {
            index: device.index,
            name: self.name.clone(),
            rename: device.name != self.name,
            mtu: self.mtu.filter(|mtu| *mtu != device.mtu),
            no_arp: self.no_arp,
        };
        let flags_fit = device.up && device.no_arp == self.no_arp;
        (change.rename || change.mtu.is_some() || !flags_fit).then_some(change)
    }

    /// It has a link-local address that the host tells: the kernel need not find one, and need not ask for a second whether it is free.
    pub fn has_told_link_local(&self) -> bool {
        self.addresses.iter().any(|address| address.is_link_local())
    }

    /// The device with our MAC. What is made on top of a device (VLANs, bridges) has its MAC too, and comes later.
    pub fn device<'a>(&self, devices: &'a [Device]) -> Result<&'a Device, NetworkError> {
        let ours = devices.iter().filter(|device| device.is_known_by(&self.mac));
        ours.min_by_key(|device| device.index)
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
    pub fn message(&self) -> Request {
        Request {
            index: self.index,
            name: self.rename.then(|| self.name.clone()),
            mtu: self.mtu,
            up_without_arp: Some(self.no_arp),
            ..Request::default()
        }
    }
}
