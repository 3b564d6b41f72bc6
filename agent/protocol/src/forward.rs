//! Connections of the host to the guest's loopback, as `kubectl port-forward` wants them.

use std::net::IpAddr;

/// The lowest number of a stream that is a forwarded connection; stdio counts up from 1 and never gets here.
const FIRST: u64 = 1 << 63;
/// Set for IPv6. The port is below it.
const SIX: u64 = 1 << 16;
/// Most forwarded connections of a pod at one time: those of some twenty browsers.
pub const FORWARDS_MAX: usize = 128;
/// What the agent says once the guest's server has taken the connection. It closes instead when nobody does.
pub const JOINED: u8 = 1;

/// A port of the guest's loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Asked for by IPv6, and to be tried there first.
    pub six: bool,
    /// The port.
    pub port: u16,
}

impl Forward {
    /// What somebody asked for who connected to this address of the pod's loopback.
    pub fn to(address: IpAddr, port: u16) -> Self {
        Self { six: address.to_canonical().is_ipv6(), port }
    }

    /// The stream number that asks for it.
    pub fn number(self) -> u64 {
        FIRST | if self.six { SIX } else { 0 } | u64::from(self.port)
    }

    /// What a stream number asks for; none where it is of stdio.
    pub fn of(number: u64) -> Option<Self> {
        let [.., high, low] = number.to_be_bytes();
        let forward = Self { six: number & SIX != 0, port: u16::from_be_bytes([high, low]) };
        (forward.number() == number).then_some(forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_read_the_same() {
        for forward in [Forward { six: false, port: 0 }, Forward { six: true, port: 65_535 }] {
            assert_eq!(Forward::of(forward.number()), Some(forward));
        }
        for number in [0, 1, 8080, SIX | 80, FIRST | SIX << 1, u64::MAX] {
            assert_eq!(Forward::of(number), None, "{number:#x}");
        }
    }

    #[test]
    fn an_ipv4_address_in_the_form_of_ipv6_is_one_of_ipv4() {
        assert!(!Forward::to("::ffff:127.0.0.1".parse().expect("one"), 80).six);
        assert!(Forward::to("::1".parse().expect("one"), 80).six);
    }
}
