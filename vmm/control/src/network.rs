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
    /// None for a device that waits for its interface with its link down; it has one queue pair.
    pub taps: Vec<FdNumber>,
    /// The interface's address, which the guest's has too. Frames that the guest sends from another source are dropped.
    pub mac: [u8; 6],
    /// Largest packet in bytes, Ethernet header not counted.
    pub mtu: u16,
    /// Let the guest send from other addresses than `mac`.
    pub any_source_mac: bool,
    /// Limits on what passes; `None` for none.
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
    /// Too many queue pairs on one device.
    #[error("it has {0} taps, a device has at most {TAPS_MAX}: open the tap with fewer queues")]
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

impl NetSpec {
    fn check(&self) -> Result<(), NetworkError> {
        if self.taps.len() > TAPS_MAX {
            return Err(NetworkError::Taps(self.taps.len()));
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

/// Checks all network devices of a machine.
pub(crate) fn check_networks(networks: &[NetSpec]) -> Result<(), SpecError> {
    if networks.len() > NETWORKS_MAX {
        return Err(SpecError::Networks(networks.len()));
    }
    let taps = networks.iter().map(|network| network.taps.len()).sum();
    if taps > TAPS_IN_ALL_MAX {
        return Err(SpecError::Taps(taps));
    }
    for (index, network) in networks.iter().enumerate() {
        let same = networks.iter().take(index).any(|before| before.mac == network.mac);
        let checked = network.check().and(if same { Err(NetworkError::SameMac(network.mac)) } else { Ok(()) });
        checked.map_err(|source| SpecError::Network { index, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetSpec {
        NetSpec { taps: vec![11], mac: [2, 0, 0, 0, 0, 1], mtu: 1500, any_source_mac: false, rate: None }
    }

    fn with_limit(bytes: Option<Bucket>, frames: Option<Bucket>) -> NetSpec {
        let rate = NetRate { transmit: NetLimit::default(), receive: NetLimit { bytes, frames } };
        NetSpec { rate: Some(rate), ..network() }
    }

    fn numbered(count: u8, taps: usize) -> Vec<NetSpec> {
        let one = |n| NetSpec { taps: vec![11; taps], mac: [2, 0, 0, 0, 0, n], ..network() };
        (0..count).map(one).collect()
    }

    #[test]
    fn an_ordinary_device_passes_with_a_tap_or_without_one() {
        assert_eq!(check_networks(&[network()]), Ok(()));
        assert_eq!(check_networks(&[NetSpec { taps: vec![], mtu: u16::MAX, ..network() }]), Ok(()));
        assert_eq!(check_networks(&numbered(8, 4)), Ok(()));
    }

    #[test]
    fn too_many_devices_or_taps_are_refused() {
        assert_eq!(check_networks(&numbered(9, 1)), Err(SpecError::Networks(9)));
        assert_eq!(check_networks(&numbered(3, 11)), Err(SpecError::Taps(33)));
        let source = NetworkError::Taps(17);
        assert_eq!(check_networks(&numbered(1, 17)), Err(SpecError::Network { index: 0, source }));
    }

    #[test]
    fn an_address_is_unicast_and_of_one_device() {
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert_eq!(NetSpec { mac, ..network() }.check(), Err(NetworkError::Mac(mac)));
        }
        let error = check_networks(&[network(), network()]).expect_err("one address twice");
        let source = NetworkError::SameMac(network().mac);
        assert!(source.to_string().contains("02:00:00:00:00:01"), "{source}");
        assert_eq!(error, SpecError::Network { index: 1, source });
    }

    #[test]
    fn packet_sizes_below_the_least_are_refused() {
        for mtu in [0, 67] {
            assert_eq!(NetSpec { mtu, ..network() }.check(), Err(NetworkError::Mtu(mtu)));
        }
        assert_eq!(NetSpec { mtu: 68, ..network() }.check(), Ok(()));
    }

    #[test]
    fn a_limit_lets_the_largest_frame_pass_and_can_be_counted() {
        let good = Bucket { per_second: 1, burst: BURST_BYTES_MIN };
        assert_eq!(with_limit(Some(good), Some(Bucket { per_second: RATE_MAX, burst: 1 })).check(), Ok(()));
        let stopped = Bucket { per_second: 0, ..good };
        assert_eq!(with_limit(Some(stopped), None).check(), Err(NetworkError::Rate(0, "bytes")));
        let narrow = Bucket { burst: 1500, ..good };
        let expected = NetworkError::Burst(1500, "bytes", BURST_BYTES_MIN);
        assert_eq!(with_limit(Some(narrow), None).check(), Err(expected));
        let closed = Bucket { burst: 0, ..good };
        assert_eq!(with_limit(None, Some(closed)).check(), Err(NetworkError::Burst(0, "frames", 1)));
    }
}
