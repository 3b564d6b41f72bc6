//! An interface in few words.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};

use crate::{Result, Socket};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as iproute2 writes it (`veth`, `macvlan`, `tun`), empty for loopback and hardware.
    pub kind: String,
    /// What its frames are.
    pub layer: LinkLayerType,
    /// Its hardware address: six bytes for Ethernet, others for tunnels, none for loopback's like.
    pub mac: Vec<u8>,
    /// Its largest packet.
    pub mtu: u32,
    /// Its flags.
    pub flags: LinkFlags,
    /// The interface of the same namespace that it lies on (a VLAN's, a macvlan's) or is the pair of.
    pub lower: Option<u32>,
    /// The interface of the same namespace that it is a port of.
    pub controller: Option<u32>,
}

impl Link {
    /// Reads a message about an interface.
    pub fn of(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: String::new(),
            layer: message.header.link_layer_type,
            mac: Vec::new(),
            mtu: 0,
            flags: message.header.flags,
            lower: None,
            controller: None,
        };
        let mut elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
                LinkAttribute::Link(index) => link.lower = Some(*index).filter(|index| *index != 0),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
                _ => {}
            }
        }
        // Its number means nothing here then.
        link.lower = link.lower.filter(|_| !elsewhere);
        link
    }

    /// Is it switched on?
    pub fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }

    /// Does it ask nobody for hardware addresses?
    pub fn is_without_arp(&self) -> bool {
        self.flags.contains(LinkFlags::Noarp)
    }

    /// Is it `lo`?
    pub fn is_loopback(&self) -> bool {
        self.flags.contains(LinkFlags::Loopback)
    }
}

fn kind(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

impl Socket {
    /// All interfaces, by their numbers.
    ///
    /// # Errors
    /// What [`Socket::dump`] says.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let mut links: Vec<Link> = answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
                _ => None,
            })
            .collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_namespace;

    #[test]
    fn needs_root_a_new_namespace_has_loopback_that_is_down() {
        own_namespace::within("needs_root_a_new_namespace_has_loopback_that_is_down", || {
            let links = Socket::open().expect("opened").links().expect("listed");
            let lo = links.iter().find(|link| link.is_loopback()).expect("there is one");
            assert_eq!((lo.name.as_str(), lo.index, lo.kind.as_str()), ("lo", 1, ""));
            assert_eq!(lo.layer, LinkLayerType::Loopback);
            assert!(!lo.is_up());
            assert_eq!((lo.lower, lo.controller), (None, None));
        });
    }
}
