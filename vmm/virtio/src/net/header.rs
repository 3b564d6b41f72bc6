//! The header before every frame, section 5.1.6, and the start of the frame itself. Pure.
//!
//! What the guest sends begins with bytes that decide things: how the host's kernel finishes the frame, and who it claims to be from.
//! They are copied out of guest memory once, checked here as a value, and the checked value is what goes to the host.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::features::has;

/// Bytes of the header, `num_buffers` included: it is always there since version 1.
pub(super) const HEADER_LEN: usize = 12;
/// Offset of `num_buffers` in it.
pub(super) const NUM_BUFFERS_AT: usize = 10;
/// Two addresses and a type.
pub(super) const ETHERNET_LEN: usize = 14;
/// One VLAN tag.
pub(super) const VLAN_LEN: usize = 4;
/// Longest frame, header not counted: the largest IP packet in Ethernet with one tag.
pub(super) const FRAME_MAX: usize = 65535 + ETHERNET_LEN + VLAN_LEN;
/// What is copied and checked of each frame.
pub(super) const HEAD_LEN: usize = HEADER_LEN + ETHERNET_LEN;

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_UDP: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// Why a frame of the guest goes nowhere.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// No room for a header and an Ethernet frame, or too much of it.
    #[error("it has {0} bytes with its header, a frame has {HEAD_LEN} to {max}", max = HEADER_LEN + FRAME_MAX)]
    Len(usize),
    /// A checksum that was not agreed on, or that lies outside the frame.
    #[error("its checksum at {start} + {offset} is not one that the device completes in {len} bytes")]
    Checksum { start: u16, offset: u16, len: usize },
    /// A kind of segmentation that was not agreed on or does not exist.
    #[error("its segmentation {0:#x} was not agreed on")]
    Kind(u8),
    /// Segmentation without a size, or by headers longer than the frame.
    #[error("its segments of {size} bytes behind headers of {headers} make no sense in {len} bytes")]
    Segments { size: u16, headers: u16, len: usize },
    /// The claimed source is another interface.
    #[error("its source {0:02x?} is not the device's address")]
    Source([u8; 6]),
}

/// The checked fields; `num_buffers` means nothing in this direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, len0, len1, size0, size1, start0, start1, offset0, offset1, _, _] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([len0, len1]),
            gso_size: u16::from_le_bytes([size0, size1]),
            csum_start: u16::from_le_bytes([start0, start1]),
            csum_offset: u16::from_le_bytes([offset0, offset1]),
        }
    }

    fn bytes(self) -> [u8; HEADER_LEN] {
        let [len0, len1] = self.hdr_len.to_le_bytes();
        let [size0, size1] = self.gso_size.to_le_bytes();
        let [start0, start1] = self.csum_start.to_le_bytes();
        let [offset0, offset1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, len0, len1, size0, size1, start0, start1, offset0, offset1, 0, 0]
    }

    /// The header that goes to the host: only what is agreed on and makes sense, all else zero.
    fn checked(self, features: u64, frame_len: usize) -> Result<Self, HeadFault> {
        // Unknown flags are ignored, not refused (section 5.1.6.2.2).
        let flags = self.flags & NEEDS_CHECKSUM;
        let (csum_start, csum_offset) = match flags {
            0 => (0, 0),
            _ => self.checked_checksum(features, frame_len)?,
        };
        if self.gso_type == GSO_NONE {
            return Ok(Self { flags, gso_type: GSO_NONE, hdr_len: 0, gso_size: 0, csum_start, csum_offset });
        }
        self.check_segments(features, flags, frame_len)?;
        Ok(Self { flags, csum_start, csum_offset, ..self })
    }

    fn checked_checksum(self, features: u64, frame_len: usize) -> Result<(u16, u16), HeadFault> {
        let (start, offset) = (self.csum_start, self.csum_offset);
        let end = usize::from(start) + usize::from(offset) + 2;
        if has(features, VIRTIO_NET_F_CSUM) && usize::from(start) >= ETHERNET_LEN && end <= frame_len {
            return Ok((start, offset));
        }
        Err(HeadFault::Checksum { start, offset, len: frame_len })
    }

    fn check_segments(self, features: u64, flags: u8, frame_len: usize) -> Result<(), HeadFault> {
        let feature = match self.gso_type & !GSO_ECN {
            GSO_TCP4 => VIRTIO_NET_F_HOST_TSO4,
            GSO_TCP6 => VIRTIO_NET_F_HOST_TSO6,
            GSO_UDP if self.gso_type == GSO_UDP => VIRTIO_NET_F_HOST_USO,
            _ => return Err(HeadFault::Kind(self.gso_type)),
        };
        let ecn_agreed = self.gso_type & GSO_ECN == 0 || has(features, VIRTIO_NET_F_HOST_ECN);
        if !has(features, feature) || !ecn_agreed {
            return Err(HeadFault::Kind(self.gso_type));
        }
        let (size, headers) = (self.gso_size, self.hdr_len);
        // Each segment needs its own checksum, so there is no segmentation without one (section 5.1.6.2).
        if size == 0 || usize::from(headers) > frame_len || flags == 0 {
            return Err(HeadFault::Segments { size, headers, len: frame_len });
        }
        Ok(())
    }
}

/// What the device demands of the start of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRules {
    /// Features that both sides agreed on.
    pub(super) features: u64,
    /// The only source there may be; `None` for any.
    pub(super) source: Option<[u8; 6]>,
}

impl HeadRules {
    /// Whether a chain of `len` readable bytes can hold a header and a frame.
    pub(super) fn check_len(len: usize) -> Result<(), HeadFault> {
        if (HEAD_LEN..=HEADER_LEN + FRAME_MAX).contains(&len) { Ok(()) } else { Err(HeadFault::Len(len)) }
    }

    /// The head to send, of a frame that has `len` bytes together with it.
    pub(super) fn check(&self, head: [u8; HEAD_LEN], len: usize) -> Result<[u8; HEAD_LEN], HeadFault> {
        let mut checked = head;
        let Some((header, ethernet)) = checked.split_first_chunk_mut::<HEADER_LEN>() else {
            return Err(HeadFault::Len(len));
        };
        let source = ethernet.get(6..).and_then(|rest| rest.first_chunk::<6>()).copied().unwrap_or_default();
        if self.source.is_some_and(|only| only != source) {
            return Err(HeadFault::Source(source));
        }
        *header = Header::parse(*header).checked(self.features, len.saturating_sub(HEADER_LEN))?.bytes();
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::features::offered;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn rules() -> HeadRules {
        HeadRules { features: offered(1, false), source: Some(MAC) }
    }

    fn tcp4() -> Header {
        Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 }
    }

    fn head(header: Header, source: [u8; 6]) -> [u8; HEAD_LEN] {
        let mut head = [0xaa; HEAD_LEN];
        head[..HEADER_LEN].copy_from_slice(&header.bytes());
        head[HEADER_LEN + 6..][..6].copy_from_slice(&source);
        head
    }

    fn checked(header: Header, len: usize) -> Result<[u8; HEAD_LEN], HeadFault> {
        rules().check(head(header, MAC), HEADER_LEN + len)
    }

    #[test]
    fn a_large_tcp_frame_passes_as_it_is() {
        assert_eq!(checked(tcp4(), 30_000), Ok(head(tcp4(), MAC)));
        let ecn = Header { gso_type: 0x84, ..tcp4() };
        assert_eq!(checked(ecn, 30_000), Ok(head(ecn, MAC)));
    }

    #[test]
    fn what_means_nothing_is_zeroed() {
        let plain = Header { flags: 0xfe, gso_type: 0, hdr_len: 7, gso_size: 9, csum_start: 65535, csum_offset: 65535 };
        let zero = Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
        assert_eq!(checked(plain, 60), Ok(head(zero, MAC)));
    }

    #[test]
    fn a_checksum_lies_in_the_frame_and_behind_the_ethernet_header() {
        let plain = Header { gso_type: 0, hdr_len: 0, gso_size: 0, ..tcp4() };
        assert!(checked(plain, 52).is_ok(), "34 + 16 + 2");
        for (header, len) in [(plain, 51), (Header { csum_start: 13, ..plain }, 60)] {
            assert!(matches!(checked(header, len), Err(HeadFault::Checksum { .. })));
        }
        let without = HeadRules { features: 1 << 32, ..rules() };
        assert!(matches!(without.check(head(plain, MAC), 72), Err(HeadFault::Checksum { .. })));
    }

    #[test]
    fn segmentation_that_was_not_agreed_on_is_refused() {
        // UDP fragmentation, UDP segmentation (not offered here), no kind at all, and congestion notification of nothing.
        for gso_type in [3, 5, 2, 0x80, 0x85, 0xff] {
            assert_eq!(checked(Header { gso_type, ..tcp4() }, 3000), Err(HeadFault::Kind(gso_type)));
        }
        let udp = HeadRules { features: offered(1, true), ..rules() };
        assert!(udp.check(head(Header { gso_type: 5, ..tcp4() }, MAC), 3012).is_ok());
        let csum_only = HeadRules { features: 1, ..rules() };
        assert_eq!(csum_only.check(head(tcp4(), MAC), 3012), Err(HeadFault::Kind(1)));
    }

    #[test]
    fn segments_need_a_size_a_checksum_and_headers_inside_the_frame() {
        let bad = [Header { gso_size: 0, ..tcp4() }, Header { flags: 0, ..tcp4() }, Header { hdr_len: 3001, ..tcp4() }];
        for header in bad {
            assert!(matches!(checked(header, 3000), Err(HeadFault::Segments { .. })), "{header:?}");
        }
    }

    #[test]
    fn another_source_is_refused_unless_any_is_allowed() {
        let other = [2, 0, 0, 0, 0, 2];
        assert_eq!(rules().check(head(tcp4(), other), 3012), Err(HeadFault::Source(other)));
        assert!(HeadRules { source: None, ..rules() }.check(head(tcp4(), other), 3012).is_ok());
    }

    #[test]
    fn lengths_without_room_for_a_frame_are_refused() {
        for len in (0..HEAD_LEN).chain([HEADER_LEN + FRAME_MAX + 1, usize::MAX]) {
            assert_eq!(HeadRules::check_len(len), Err(HeadFault::Len(len)));
        }
        assert_eq!(HeadRules::check_len(HEAD_LEN), Ok(()));
        assert_eq!(HeadRules::check_len(HEADER_LEN + FRAME_MAX), Ok(()));
    }

    proptest! {
        // Whatever the guest writes: no panic, and what passes is agreed on, inside the frame, and passes again unchanged.
        #[test]
        fn what_passes_is_sound(
            bytes in any::<[u8; HEAD_LEN]>(),
            kind in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x81, 0x84]),
            keep_kind in any::<bool>(),
            len in HEAD_LEN..HEADER_LEN + FRAME_MAX,
            features in any::<u64>(),
        ) {
            let mut head = bytes;
            if !keep_kind {
                head[1] = kind;
            }
            let rules = HeadRules { features, source: None };
            if let Ok(checked) = rules.check(head, len) {
                let frame_len = len - HEADER_LEN;
                let header = Header::parse(*checked.first_chunk().expect("a header"));
                prop_assert_eq!(header.flags & !NEEDS_CHECKSUM, 0);
                if header.flags != 0 {
                    prop_assert!(usize::from(header.csum_start) + usize::from(header.csum_offset) + 2 <= frame_len);
                    prop_assert!(features & 1 != 0);
                }
                if header.gso_type != 0 {
                    prop_assert!(header.flags != 0 && header.gso_size > 0);
                    prop_assert!(usize::from(header.hdr_len) <= frame_len);
                }
                prop_assert_eq!(&checked[HEADER_LEN..], &head[HEADER_LEN..]);
                prop_assert_eq!(rules.check(checked, len), Ok(checked));
            }
        }
    }
}
