//! A machine's network devices, as plain data.

use serde::{Deserialize, Serialize};

use crate::{FdNumber, SpecError};

/// Most network devices of a machine.
pub const NETWORKS_MAX: usize = 8;
/// Most queue pairs of one network device.
pub const TAPS_MAX: usize = 16;
/// Most queue pairs of all network devices of a machine: each costs six descriptors.
pub const TAPS_IN_ALL_MAX: usize = 32;
/// Least packet size that an IPv4 host must take whole (RFC 791).
pub const MTU_MIN: u16 = 68;
/// Least burst of a limit on bytes: the largest frame, with offloads, must pass at once or it never would.
pub const BURST_BYTES_MIN: u64 = 128 * 1024;
/// Most units a second of a limit, and most units of its burst: beyond what any interface does, and small enough for exact arithmetic.
pub const RATE_MAX: u64 = 1 << 40;

/// A network device over tap queues of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// One tap descriptor a queue pair, opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (and IFF_MULTI_QUEUE for several).
    pub taps: Vec<FdNumber>,
    /// One /dev/vhost-net a tap, with which the host's kernel moves the frames; none, and the VMM does.
    pub vhosts: Vec<FdNumber>,
    /// The interface behind them.
    pub interface: InterfaceSpec,
}

/// What a network device shows the guest of the interface behind it, and what it lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    /// The interface's address, which the guest's has too. Frames that the guest sends from another source are dropped.
    pub mac: [u8; 6],
    /// Largest packet in bytes, Ethernet header not counted.
    pub mtu: u16,
    /// Let the guest send from other addresses than `mac`. With vhost-net that is for the tap's own filter to say.
    pub any_source_mac: bool,
    /// Limits on what passes; `None` for none. There are none with vhost-net.
    pub rate: Option<NetRate>,
}

/// Limits of a network device, for each direction by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRate {
    /// From the guest to the host.
    pub transmit: NetLimit,
    /// From the host to the guest.
    pub receive: NetLimit,
}

/// Limits of one direction; both hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimit {
    /// Of bytes, Ethernet header counted.
    pub bytes: Option<Bucket>,
    /// Of frames. A frame with offloads counts once, however many packets it becomes.
    pub frames: Option<Bucket>,
}

/// A token bucket: never more than `burst + per_second * t` units pass in any time of t seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Units that pass in the long run, 1 to [`RATE_MAX`].
    pub per_second: u64,
    /// Units that may pass at once after a pause.
    pub burst: u64,
}

/// Why a network device cannot be.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// No queue pair, or too many on one device.
    #[error("it has {0} taps, a device has 1 to {TAPS_MAX}: open the tap with another number of queues")]
    Taps(usize),
    /// A group address, or none.
    #[error("its address {} is not that of one interface: give a unicast address other than zero", mac_text(.0))]
    Mac([u8; 6]),
    /// Another device has the same address, and the agent tells them apart by it.
    #[error("its address {} is another device's as well: give each an address of its own", mac_text(.0))]
    SameMac([u8; 6]),
    /// Packet size out of range.
    #[error("its MTU is {0}, an interface has {MTU_MIN} to {max}", max = u16::MAX)]
    Mtu(u16),
    /// Some queue pairs with vhost-net and some without.
    #[error("it has {0} vhost-net descriptors and {1} taps: open one for each tap, or none")]
    Vhosts(usize, usize),
    /// What vhost-net cannot do.
    #[error(
        "it has vhost-net and a limit of its rate, which holds in the VMM's own device alone: leave one of them out"
    )]
    VhostRate,
    /// A limit that lets nothing pass, or more than can be counted.
    #[error(
        "its limit of {0} {1} a second is not from 1 to {RATE_MAX}: leave the limit out for an interface without one"
    )]
    Rate(u64, &'static str),
    /// A burst that no frame fits, or more than can be counted.
    #[error("its burst of {0} {1} is not from {2} to {RATE_MAX}: choose another")]
    Burst(u64, &'static str, u64),
}

/// An address as people write it.
fn mac_text(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl InterfaceSpec {
    /// Checks a device over so many taps and instances of vhost-net.
    ///
    /// # Errors
    /// The first thing that cannot be.
    pub fn check(&self, taps: usize, vhosts: usize) -> Result<(), NetworkError> {
        if !(1..=TAPS_MAX).contains(&taps) {
            return Err(NetworkError::Taps(taps));
        }
        if vhosts != 0 && vhosts != taps {
            return Err(NetworkError::Vhosts(vhosts, taps));
        }
        if vhosts != 0 && self.rate.is_some() {
            return Err(NetworkError::VhostRate);
        }
        // The lowest bit of the first byte marks a group.
        if self.mac == [0; 6] || self.mac[0] & 1 != 0 {
            return Err(NetworkError::Mac(self.mac));
        }
        if self.mtu < MTU_MIN {
            return Err(NetworkError::Mtu(self.mtu));
        }
        let limits = self.rate.iter().flat_map(|rate| [rate.transmit, rate.receive]);
        for limit in limits {
            check_bucket(limit.bytes, "bytes", BURST_BYTES_MIN)?;
            check_bucket(limit.frames, "frames", 1)?;
        }
        Ok(())
    }
}

fn check_bucket(bucket: Option<Bucket>, unit: &'static str, burst_min: u64) -> Result<(), NetworkError> {
    let Some(Bucket { per_second, burst }) = bucket else { return Ok(()) };
    if !(1..=RATE_MAX).contains(&per_second) {
        return Err(NetworkError::Rate(per_second, unit));
    }
    if !(burst_min..=RATE_MAX).contains(&burst) {
        return Err(NetworkError::Burst(burst, unit, burst_min));
    }
    Ok(())
}

/// Checks all network devices of a machine, and the empty places for more.
pub(crate) fn check_networks(networks: &[NetSpec], places: u8) -> Result<(), SpecError> {
    let count = networks.len() + usize::from(places);
    if count > NETWORKS_MAX {
        return Err(SpecError::Networks(count));
    }
    let taps = networks.iter().map(|network| network.taps.len()).sum();
    if taps > TAPS_IN_ALL_MAX {
        return Err(SpecError::Taps(taps));
    }
    for (index, network) in networks.iter().enumerate() {
        let mac = network.interface.mac;
        let same = networks.iter().take(index).any(|before| before.interface.mac == mac);
        let checked = network.interface.check(network.taps.len(), network.vhosts.len());
        let checked = checked.and(if same { Err(NetworkError::SameMac(mac)) } else { Ok(()) });
        checked.map_err(|source| SpecError::Network { index, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> InterfaceSpec {
        InterfaceSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, any_source_mac: false, rate: None }
    }

    fn with_limit(bytes: Option<Bucket>, frames: Option<Bucket>) -> Result<(), NetworkError> {
        let rate = NetRate { transmit: NetLimit::default(), receive: NetLimit { bytes, frames } };
        InterfaceSpec { rate: Some(rate), ..interface() }.check(1, 0)
    }

    fn numbered(count: u8, taps: usize) -> Vec<NetSpec> {
        let one = |n| NetSpec {
            taps: vec![11; taps],
            vhosts: vec![],
            interface: InterfaceSpec { mac: [2, 0, 0, 0, 0, n], ..interface() },
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn ordinary_devices_pass_and_places_for_more() {
        assert_eq!(check_networks(&numbered(1, 1), 7), Ok(()));
        assert_eq!(check_networks(&numbered(8, 4), 0), Ok(()));
        assert_eq!(InterfaceSpec { mtu: u16::MAX, ..interface() }.check(1, 0), Ok(()));
    }

    #[test]
    fn too_many_devices_or_taps_are_refused() {
        assert_eq!(check_networks(&numbered(9, 1), 0), Err(SpecError::Networks(9)));
        assert_eq!(check_networks(&numbered(8, 1), 1), Err(SpecError::Networks(9)));
        assert_eq!(check_networks(&numbered(3, 11), 0), Err(SpecError::Taps(33)));
        for taps in [0, 17] {
            let source = NetworkError::Taps(taps);
            assert_eq!(check_networks(&numbered(1, taps), 0), Err(SpecError::Network { index: 0, source }));
        }
    }

    #[test]
    fn vhost_net_is_for_all_queue_pairs_or_none_and_has_no_limits() {
        assert_eq!(interface().check(2, 2), Ok(()));
        assert_eq!(interface().check(2, 1), Err(NetworkError::Vhosts(1, 2)));
        let limited = InterfaceSpec { rate: Some(NetRate::default()), ..interface() };
        assert_eq!((limited.check(1, 0), limited.check(1, 1)), (Ok(()), Err(NetworkError::VhostRate)));
    }

    #[test]
    fn an_address_is_unicast_and_of_one_device() {
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert_eq!(InterfaceSpec { mac, ..interface() }.check(1, 0), Err(NetworkError::Mac(mac)));
        }
        let twice = NetSpec { taps: vec![11], vhosts: vec![], interface: interface() };
        let error = check_networks(&[twice.clone(), twice], 0).expect_err("one address twice");
        let source = NetworkError::SameMac(interface().mac);
        assert!(source.to_string().contains("02:00:00:00:00:01"), "{source}");
        assert_eq!(error, SpecError::Network { index: 1, source });
    }

    #[test]
    fn packet_sizes_below_the_least_are_refused() {
        for mtu in [0, 67] {
            assert_eq!(InterfaceSpec { mtu, ..interface() }.check(1, 0), Err(NetworkError::Mtu(mtu)));
        }
        assert_eq!(InterfaceSpec { mtu: 68, ..interface() }.check(1, 0), Ok(()));
    }

    #[test]
    fn a_limit_lets_the_largest_frame_pass_and_can_be_counted() {
        let good = Bucket { per_second: 1, burst: BURST_BYTES_MIN };
        assert_eq!(with_limit(Some(good), Some(Bucket { per_second: RATE_MAX, burst: 1 })), Ok(()));
        let stopped = Bucket { per_second: 0, ..good };
        assert_eq!(with_limit(Some(stopped), None), Err(NetworkError::Rate(0, "bytes")));
        let narrow = Bucket { burst: 1500, ..good };
        let expected = NetworkError::Burst(1500, "bytes", BURST_BYTES_MIN);
        assert_eq!(with_limit(Some(narrow), None), Err(expected));
        let closed = Bucket { burst: 0, ..good };
        assert_eq!(with_limit(None, Some(closed)), Err(NetworkError::Burst(0, "frames", 1)));
    }
}
