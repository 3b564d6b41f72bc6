//! What a network device offers, and what follows from what the driver takes. Pure.

use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
        VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::{
    backend::Offloads,
    header::{ETHERNET_LEN, FRAME_MAX, HEADER_LEN, VLAN_LEN},
};

/// Offered by every device.
const ALWAYS: &[u32] = &[
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
];
/// Offered where the host's taps know segmentation of UDP (Linux 6.2).
const UDP: &[u32] = &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];
/// Offered with several queue pairs.
const SEVERAL_PAIRS: &[u32] = &[VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ];

/// The features of a device.
pub(super) fn offered(pairs: usize, udp: bool) -> u64 {
    let udp = udp.then_some(UDP).into_iter().flatten();
    let several = (pairs > 1).then_some(SEVERAL_PAIRS).into_iter().flatten();
    ALWAYS.iter().chain(udp).chain(several).fold(0, |sum, bit| sum | 1 << bit)
}

/// Features that whoever serves the queues must know; the rest is between the driver and the tap.
const OF_THE_QUEUES: &[u32] =
    &[VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_NET_F_MRG_RXBUF];

/// What of `features` is left when the host's kernel, which knows `vhost`, serves the queues.
pub(super) fn served_by_vhost(features: u64, vhost: u64) -> u64 {
    features & (vhost | !of_the_queues(u64::MAX))
}

/// Those of `features` that the kernel is told of.
pub(super) fn of_the_queues(features: u64) -> u64 {
    OF_THE_QUEUES.iter().fold(0, |sum, bit| sum | 1 << bit) & features
}

/// Whether `features` has this bit.
pub(super) fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// What a driver that took `features` finishes by itself. All of it rests on checksums (section 5.1.3.1).
pub(super) fn offloads(features: u64) -> Offloads {
    let checksum = has(features, VIRTIO_NET_F_GUEST_CSUM);
    let with_checksum = |bit| checksum && has(features, bit);
    let (tcp4, tcp6) = (with_checksum(VIRTIO_NET_F_GUEST_TSO4), with_checksum(VIRTIO_NET_F_GUEST_TSO6));
    Offloads {
        checksum,
        tcp4,
        tcp6,
        ecn: (tcp4 || tcp6) && has(features, VIRTIO_NET_F_GUEST_ECN),
        // The host's taps know both or none.
        udp: with_checksum(VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6),
    }
}

/// Bytes of the largest frame that may come for such a driver, header counted.
pub(super) fn largest_received(features: u64, mtu: u16) -> usize {
    let Offloads { tcp4, tcp6, udp, .. } = offloads(features);
    HEADER_LEN + if tcp4 || tcp6 || udp { FRAME_MAX } else { usize::from(mtu) + ETHERNET_LEN + VLAN_LEN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pairs_and_udp_are_offered_where_they_are() {
        assert!(!has(offered(1, false), VIRTIO_NET_F_MQ) && !has(offered(1, false), VIRTIO_NET_F_HOST_USO));
        assert!(has(offered(2, false), VIRTIO_NET_F_MQ) && has(offered(2, false), VIRTIO_NET_F_CTRL_VQ));
        assert!(has(offered(1, true), VIRTIO_NET_F_HOST_USO));
    }

    #[test]
    fn vhost_narrows_what_it_serves_and_nothing_else() {
        let all = offered(1, true);
        let vhost = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF;
        assert_eq!(served_by_vhost(all, vhost), all & !(1 << VIRTIO_RING_F_INDIRECT_DESC));
        assert_eq!(of_the_queues(all) & !vhost, 1 << VIRTIO_RING_F_INDIRECT_DESC);
    }

    #[test]
    fn a_driver_without_checksums_gets_finished_frames_no_larger_than_the_mtu() {
        let all = offered(1, true);
        assert_eq!(offloads(all), Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: true });
        assert_eq!(largest_received(all, 1500), 12 + 65535 + 18);
        let none = all & !(1 << VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(offloads(none), Offloads::default());
        assert_eq!(largest_received(none, 1500), 12 + 1500 + 18);
    }
}
