//! How the machine sees an interface, by the operator's rules. Pure.

use vmm_control::{BURST_BYTES_MIN, Bucket, InterfaceSpec, NetLimit, NetRate};

use crate::InterfaceRules;

/// Bytes a second of one Mbit/s.
const MBIT: u64 = 1_000_000 / 8;
/// What passes at once after a pause, as part of a second: enough that a limit is reached in spite of late wake-ups.
const BURSTS_A_SECOND: u64 = 20;

/// An interface with this address and packet size.
pub(crate) fn interface(mac: [u8; 6], mtu: u16, rules: InterfaceRules) -> InterfaceSpec {
    let InterfaceRules { transmit_mbit, receive_mbit, any_source, .. } = rules;
    let rate = NetRate { transmit: limit(transmit_mbit), receive: limit(receive_mbit) };
    let limited = (transmit_mbit, receive_mbit) != (0, 0);
    InterfaceSpec { mac, mtu, any_source_mac: any_source, rate: limited.then_some(rate) }
}

fn limit(mbit: u32) -> NetLimit {
    let per_second = u64::from(mbit) * MBIT;
    let bucket = Bucket { per_second, burst: (per_second / BURSTS_A_SECOND).max(BURST_BYTES_MIN) };
    NetLimit { bytes: (mbit > 0).then_some(bucket), frames: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn without_rules_there_is_no_limit_and_one_source() {
        let spec = interface(MAC, 1400, InterfaceRules::default());
        assert_eq!(spec, InterfaceSpec { mac: MAC, mtu: 1400, any_source_mac: false, rate: None });
    }

    #[test]
    fn each_direction_has_its_own_limit_and_every_limit_can_be() {
        for (transmit_mbit, receive_mbit) in [(1, 0), (0, 1000), (1_000_000, 1_000_000)] {
            let spec =
                interface(MAC, 1500, InterfaceRules { transmit_mbit, receive_mbit, any_source: true, vhost: false });
            assert_eq!(spec.check(1, 0), Ok(()));
            let rate = spec.rate.expect("limited");
            let per_second = |limit: NetLimit| limit.bytes.map(|bucket| bucket.per_second);
            let wanted = |mbit: u32| (mbit > 0).then_some(u64::from(mbit) * 125_000);
            assert_eq!(
                (per_second(rate.transmit), per_second(rate.receive)),
                (wanted(transmit_mbit), wanted(receive_mbit))
            );
            assert!(spec.any_source_mac);
        }
    }
}
