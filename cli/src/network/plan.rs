//! Addresses of a container's network, and what passt is told. Pure.
//!
//! The addresses are the same in every run: each has a network of its own, which nobody else sees. What the host's own network has at these addresses
//! is the price; so they are few, from corners that home and office networks leave alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    publish::{Protocol, Publish},
    reach::Reach,
};

/// The container's interface.
pub const MAC: [u8; 6] = [0x02, b'k', b'a', b't', b'a', 0x01];
/// Its largest packet: as much as fits into one, so that there are few; passt cuts streams for the real network itself.
pub const MTU: u32 = 65_520;
/// The container and its way out, in 10.170.85.0/29.
const V4: Ipv4Addr = Ipv4Addr::new(10, 170, 85, 2);
const V4_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 170, 85, 1);
const V4_PREFIX_LENGTH: u8 = 29;
/// The same, in a private prefix (RFC 4193).
const V6: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x6174, 0x6100, 0, 0, 0, 0, 2);
const V6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x6174, 0x6100, 0, 0, 0, 0, 1);
const V6_PREFIX_LENGTH: u8 = 64;

/// Addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The container's.
    pub address: IpAddr,
    /// Its network.
    pub prefix_length: u8,
    /// Its way out.
    pub gateway: IpAddr,
}

/// The network of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Families that the host reaches the world by.
    pub reach: Reach,
    /// Published ports.
    pub published: Vec<Publish>,
}

impl Plan {
    /// What the container has of each family.
    pub fn families(&self) -> Vec<Family> {
        let v4 = Family { address: V4.into(), prefix_length: V4_PREFIX_LENGTH, gateway: V4_GATEWAY.into() };
        let v6 = Family { address: V6.into(), prefix_length: V6_PREFIX_LENGTH, gateway: V6_GATEWAY.into() };
        [(self.reach.v4, v4), (self.reach.v6, v6)].into_iter().filter(|(there, _)| *there).map(|(_, f)| f).collect()
    }

    /// The container's address on its link, with IPv6.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.reach.v6.then(|| link_local(MAC))
    }

    /// passt's arguments; it inherits its end of the stream as the descriptor `fd`. The host's loopback stays the host's: the container cannot
    /// reach what listens there. All addresses are set already, so nobody asks for one.
    pub fn arguments(&self, fd: i32) -> Vec<String> {
        let mut words: Vec<String> =
            ["--foreground", "--quiet", "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"].map(str::to_owned).into();
        let mut say = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        say("--fd", fd.to_string());
        // It would read the host's servers for DHCP, which there is none of.
        say("--dns", "none".to_owned());
        for family in self.families() {
            say("--address", family.address.to_string());
            say("--gateway", family.gateway.to_string());
        }
        if self.reach.v4 {
            say("--netmask", V4_PREFIX_LENGTH.to_string());
        }
        for publish in &self.published {
            say(if publish.protocol == Protocol::Tcp { "--tcp-ports" } else { "--udp-ports" }, forward(publish));
        }
        words.extend((!self.reach.v6).then(|| "--ipv4-only".to_owned()));
        words.extend((!self.reach.v4).then(|| "--ipv6-only".to_owned()));
        words
    }

    /// Questions that passt answers as soon as it is ready, one frame each, from each address of the container: who has the way out? They also
    /// tell it where the container is, which no option does: a connection from outside would get lost before the guest's first word. Clients at the
    /// host's own ::1 are led to the link-local address.
    pub fn questions(&self) -> Vec<Vec<u8>> {
        let v6 = self.reach.v6.then_some(V6).into_iter().chain(self.link_local());
        self.reach.v4.then(who_has_v4).into_iter().chain(v6.map(who_has_v6)).collect()
    }
}

/// passt's word for a published port.
fn forward(publish: &Publish) -> String {
    let host = publish.host.map(|host| format!("{host}/")).unwrap_or_default();
    format!("{host}{}:{}", publish.host_port, publish.port)
}

/// An ARP request (RFC 826).
fn who_has_v4() -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &MAC, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1], &MAC].concat();
    frame.extend(V4.octets());
    frame.extend([0; 6]);
    frame.extend(V4_GATEWAY.octets());
    frame
}

/// The address that the guest's kernel gives the interface by itself (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    const UNIVERSAL: u8 = 2;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ UNIVERSAL, b, c, 0xff, 0xfe, d, e, f])
}

/// A neighbour solicitation (RFC 4861, 4.3) to the group of the way out (RFC 4291, 2.7.1).
fn who_has_v6(source: Ipv6Addr) -> Vec<u8> {
    const NEXT_HEADER_ICMPV6: u8 = 58;
    const HOP_LIMIT: u8 = 255;
    let target = V6_GATEWAY.octets();
    let [.., a, b, c] = target;
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1], &MAC].concat();
    let length = u8::try_from(message.len()).expect("one option").to_be_bytes();
    let addresses = [source.octets(), group.octets()].concat();
    let pseudo = [&addresses[..], &[0, 0, 0], &length, &[0, 0, 0, NEXT_HEADER_ICMPV6], &message].concat();
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let header = [&[0x60, 0, 0, 0, 0], &length[..], &[NEXT_HEADER_ICMPV6, HOP_LIMIT]].concat();
    [&[0x33, 0x33, 0xff, a, b, c][..], &MAC, &[0x86, 0xdd], &header, &addresses, &message].concat()
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(v4: bool, v6: bool, published: &[&str]) -> Plan {
        let published = published.iter().map(|text| Publish::parse(text).expect("valid")).collect();
        Plan { reach: Reach { v4, v6 }, published }
    }

    fn said(plan: &Plan) -> String {
        plan.arguments(3).join(" ")
    }

    #[test]
    fn each_published_port_is_said_by_itself() {
        let said = said(&plan(true, true, &["8080:80", "127.0.0.1:53:5353/udp", "[::1]:1:2"]));
        assert!(said.contains("--tcp-ports 8080:80 --udp-ports 127.0.0.1/53:5353 --tcp-ports ::1/1:2"), "{said}");
    }

    #[test]
    fn the_hosts_loopback_stays_the_hosts() {
        assert!(said(&plan(true, true, &[])).contains("--no-map-gw"));
    }

    #[test]
    fn a_family_that_the_host_lacks_is_not_served() {
        let v4 = said(&plan(true, false, &[]));
        assert!(v4.contains("--ipv4-only") && !v4.contains("fd6b"), "{v4}");
        let v6 = said(&plan(false, true, &[]));
        assert!(v6.contains("--ipv6-only") && !v6.contains("10.170"), "{v6}");
    }

    #[test]
    fn the_link_local_address_is_the_kernels() {
        assert_eq!(link_local(MAC).to_string(), "fe80::6b:61ff:fe74:6101");
        assert_eq!(plan(true, true, &[]).questions().len(), 3);
        assert_eq!(plan(true, false, &[]).questions().len(), 1);
    }

    #[test]
    fn the_questions_are_well_formed() {
        assert_eq!(who_has_v4().len(), 42);
        let frame = who_has_v6(V6);
        assert_eq!((frame.len(), frame[14] >> 4), (14 + 40 + 32, 6));
        let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat();
        assert_eq!(checksum(&pseudo), 0, "a message with its right sum sums up to nothing");
    }
}
