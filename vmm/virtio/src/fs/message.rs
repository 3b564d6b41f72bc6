//! Messages of the vhost-user protocol, as its specification in QEMU's documentation (interop/vhost-user) gives them. Pure bytes.

use virtio_queue::{Queue, QueueT};

/// Bytes of a message's header: request, flags, size of the payload.
pub(super) const HEADER_LEN: usize = 12;
/// Most memory regions in one table, and so most descriptors with one message.
pub(super) const REGIONS_MAX: usize = 8;

/// Feature bit by which a server says that it has protocol features.
pub(super) const FEATURE_PROTOCOL: u64 = 1 << 30;
/// Protocol feature: GET_QUEUE_NUM is understood.
pub(super) const PROTOCOL_MQ: u64 = 1;
/// Protocol feature: every message is answered when asked to.
pub(super) const PROTOCOL_REPLY_ACK: u64 = 1 << 3;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
}

/// A whole message. `acknowledge` asks for an answer to a message that otherwise has none.
pub(super) fn compose(request: Request, payload: &[u8], acknowledge: bool) -> Vec<u8> {
    let flags = VERSION | if acknowledge { NEED_REPLY } else { 0 };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [request as u32, flags, len] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Whether this header announces the answer to `request` with a payload of `len` bytes.
pub(super) fn answers(header: [u8; HEADER_LEN], request: Request, len: usize) -> bool {
    let [r0, r1, r2, r3, f0, f1, f2, f3, l0, l1, l2, l3] = header;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    u32::from_ne_bytes([r0, r1, r2, r3]) == request as u32
        && flags & VERSION_MASK == VERSION
        && flags & REPLY != 0
        && usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])) == Ok(len)
}

/// Index of a ring and a number: its size, its position, or on and off.
pub(super) fn ring_state(index: u32, number: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&index.to_ne_bytes());
    payload[4..].copy_from_slice(&number.to_ne_bytes());
    payload
}

/// Where a ring's three parts are, in the addresses of [`memory_table`].
pub(super) fn ring_addresses(index: u32, queue: &Queue) -> Vec<u8> {
    let no_flags = 0u32;
    let no_log = 0u64;
    let mut payload = Vec::with_capacity(40);
    payload.extend_from_slice(&index.to_ne_bytes());
    payload.extend_from_slice(&no_flags.to_ne_bytes());
    for address in [queue.desc_table(), queue.used_ring(), queue.avail_ring(), no_log] {
        payload.extend_from_slice(&address.to_ne_bytes());
    }
    payload
}

/// One region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) guest_address: u64,
    pub(super) len: u64,
    pub(super) file_offset: u64,
}

/// The table of regions. Their files go beside it, in the same order. "User addresses" are guest addresses.
pub(super) fn memory_table(regions: &[Region]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let mut payload = Vec::with_capacity(8 + 32 * regions.len());
    payload.extend_from_slice(&count.to_ne_bytes());
    payload.extend_from_slice(&[0; 4]);
    for region in regions {
        for word in [region.guest_address, region.len, region.guest_address, region.file_offset] {
            payload.extend_from_slice(&word.to_ne_bytes());
        }
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_three_words_and_a_payload() {
        let message = compose(Request::SetVringNum, &ring_state(1, 256), true);
        assert_eq!(message, [8, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn only_a_reply_to_the_request_of_the_right_size_and_version_answers() {
        let good = [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0];
        assert!(answers(good, Request::GetFeatures, 8));
        for (position, value) in [(0, 2), (3, 1), (4, 1), (4, 6), (8, 7), (11, 1)] {
            let mut bad = good;
            bad[position] = value;
            assert!(!answers(bad, Request::GetFeatures, 8), "byte {position} is {value}");
        }
    }

    #[test]
    fn the_memory_table_speaks_guest_addresses_only() {
        let region = Region { guest_address: 0x10_0000, len: 0x1000, file_offset: 0x20 };
        let table = memory_table(&[region]);
        assert_eq!(table.len(), 40);
        assert_eq!(table[8..16], table[24..32]);
        assert_eq!(table[32..], 0x20u64.to_ne_bytes());
    }
}
