//! Fields of the host's messages about the network, read into values that can be right only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink::packet::AddressFamily;

use super::NetworkError;

/// Longest name of an interface (IFNAMSIZ without its NUL).
const NAME_MAX: usize = 15;
/// The loopback interface, which is the guest's own and not configured.
pub const LOOPBACK: &str = "lo";
/// Smallest packet that an IPv4 link must carry (RFC 791), and the largest there is.
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_535;
/// AF_INET and AF_INET6, the families that a pod's network has.
const INET: u32 = 2;
const INET6: u32 = 10;

/// A hardware address of Ethernet.
pub type Mac = [u8; 6];

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of this address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// By the kernel's number.
    pub fn parse(field: &'static str, number: u32) -> Result<Self, NetworkError> {
        match number {
            INET => Ok(Self::V4),
            INET6 => Ok(Self::V6),
            other => Err(invalid(field, other, "2 for IPv4 or 10 for IPv6")),
        }
    }

    /// As messages of the kernel have it; none for what is not IP.
    pub fn of_packet(family: AddressFamily) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|own| own.packet() == family)
    }

    /// The other way round.
    pub fn packet(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    /// The address of nobody in particular.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// An address of this family, or none.
    pub fn address(self, field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>, NetworkError> {
        match address(field, bytes)? {
            Some(address) if Self::of(address) != self => {
                Err(invalid(field, address, "it is not of the family of what it belongs to"))
            }
            address => Ok(address),
        }
    }

    /// A range of addresses of this family; without an address, all of them.
    pub fn prefix(self, field: &'static str, bytes: &[u8], length: u32) -> Result<Prefix, NetworkError> {
        let range = self.range(field, bytes, length)?;
        match self.address(field, bytes)? {
            Some(address) if address != range.address => {
                Err(invalid(field, format!("{address}/{length}"), "bits behind the prefix are zero"))
            }
            _ => Ok(range),
        }
    }

    /// The same of any address in it, as the kernel keeps a rule's.
    pub fn range(self, field: &'static str, bytes: &[u8], length: u32) -> Result<Prefix, NetworkError> {
        let address = self.address(field, bytes)?.unwrap_or(self.any());
        let length = self.prefix_length(field, length)?;
        Ok(Prefix { address: network(address, length), length })
    }

    /// How many bits a prefix has.
    pub fn prefix_length(self, field: &'static str, length: u32) -> Result<u8, NetworkError> {
        let small = u8::try_from(length).ok().filter(|length| *length <= self.bits());
        small.ok_or_else(|| invalid(field, length, "a prefix has at most 32 bits for IPv4 and 128 for IPv6"))
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits of it are fixed.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The first address of the range that this address is in.
pub fn network(address: IpAddr, length: u8) -> IpAddr {
    let behind = |bits: u32| bits.saturating_sub(length.into());
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(behind(32)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(behind(128)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// Of IPv6, and of one link only (fe80::/10): what the kernel gives each interface.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// An address of either family, or none.
pub fn address(field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>, NetworkError> {
    match bytes.len() {
        0 => Ok(None),
        4 => Ok(<[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)),
        16 => Ok(<[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)),
        _ => Err(invalid(field, hexadecimal(bytes), "an address has 4 or 16 bytes")),
    }
}

/// A hardware address.
pub fn mac(field: &'static str, bytes: &[u8]) -> Result<Mac, NetworkError> {
    bytes.try_into().map_err(|_| invalid(field, hexadecimal(bytes), "a hardware address has 6 bytes"))
}

/// The hardware address that one device has.
pub fn own_mac(field: &'static str, bytes: &[u8]) -> Result<Mac, NetworkError> {
    match mac(field, bytes)? {
        mac if mac[0] & 1 != 0 || mac == Mac::default() => {
            Err(invalid(field, hexadecimal(bytes), "neither that of a group nor all zeros"))
        }
        mac => Ok(mac),
    }
}

/// A name as the kernel takes it: `%` would have it choose a number.
pub fn name(field: &'static str, name: &str) -> Result<String, NetworkError> {
    let refused = |byte: u8| b"/:%\0".contains(&byte) || byte.is_ascii_whitespace() || byte == 0x0b;
    if name.is_empty() || name.len() > NAME_MAX || [".", ".."].contains(&name) || name.bytes().any(refused) {
        return Err(invalid(field, name, "1 to 15 bytes without slash, colon, percent sign, space or NUL"));
    }
    Ok(name.to_owned())
}

/// The same, or none.
pub fn optional_name(field: &'static str, text: &str) -> Result<Option<String>, NetworkError> {
    if text.is_empty() { Ok(None) } else { name(field, text).map(Some) }
}

/// Length of the largest packet, or none of one's own.
pub fn mtu(field: &'static str, number: u32) -> Result<Option<u32>, NetworkError> {
    match number {
        0 => Ok(None),
        MTU_MIN..=MTU_MAX => Ok(Some(number)),
        _ => Err(invalid(field, number, "68 to 65535 bytes, or 0 for no change")),
    }
}

/// A number that the kernel keeps in one byte.
pub fn byte(field: &'static str, number: u32) -> Result<u8, NetworkError> {
    u8::try_from(number).map_err(|_| invalid(field, number, "it has at most 8 bits"))
}

/// A list no longer than that.
pub fn at_most<T>(field: &'static str, list: &[T], max: usize) -> Result<(), NetworkError> {
    if list.len() > max {
        return Err(NetworkError::TooMany { what: field, count: list.len(), max });
    }
    Ok(())
}

/// The error of a field.
pub fn invalid(field: &'static str, value: impl ToString, rule: &'static str) -> NetworkError {
    NetworkError::Invalid { field, value: value.to_string(), rule }
}

/// At most the first bytes: whatever was sent is not told at length.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(17).map(|byte| format!("{byte:02x}")).collect();
    shown.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_4_or_16_bytes_or_none() {
        assert_eq!(address("x", &[]).unwrap(), None);
        assert_eq!(address("x", &[10, 0, 0, 1]).unwrap(), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address("x", &[0; 16]).unwrap(), Some("::".parse().unwrap()));
        for len in [1, 3, 5, 15, 17, 1000] {
            assert!(address("x", &vec![1; len]).is_err(), "{len}");
        }
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "net1", "a", "abcdefghijklmno", "veth.1", "x@y"] {
            assert_eq!(name("x", good).unwrap(), good);
        }
        for bad in ["", "abcdefghijklmnop", "a/b", "a\0", "a b", "a\tb", "a:b", "eth%d", ".", ".."] {
            assert!(name("x", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_begins_at_its_first_address_and_fits_its_family() {
        let v4 = |bytes: &[u8], length| Family::V4.prefix("x", bytes, length).map(|prefix| prefix.to_string());
        assert_eq!(v4(&[10, 0, 0, 0], 8).unwrap(), "10.0.0.0/8");
        assert_eq!(v4(&[10, 0, 0, 1], 32).unwrap(), "10.0.0.1/32");
        assert_eq!(v4(&[], 0).unwrap(), "0.0.0.0/0");
        assert!(v4(&[10, 0, 0, 1], 8).is_err());
        assert!(v4(&[10, 0, 0, 1], 33).is_err());
        assert!(v4(&[], 8).is_ok_and(|prefix| prefix == "0.0.0.0/8"));
        assert!(v4(&[0; 16], 0).is_err());
        assert!(Family::V6.prefix("x", &[0; 16], 129).is_err());
        assert!(Family::V6.prefix("x", &[], 0).is_ok());
    }

    #[test]
    fn a_long_value_is_not_told_at_length() {
        assert!(mac("x", &[7; 4096]).unwrap_err().to_string().len() < 200);
    }
}
