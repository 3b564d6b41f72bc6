//! What one block request asks for, section 5.2.6. Pure: bytes and sizes in, a checked request or a status out.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes that GET_ID answers.
pub(super) const ID_LEN: usize = 20;
/// Unit of sector numbers and of all lengths.
pub(super) const SECTOR_LEN: u64 = 512;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A request that lies within the disk. Offsets and lengths are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize },
    Flush,
    Id,
}

impl Request {
    /// `data_out` and `data_in` are the bytes between header and status that the driver offers to the device and wants from it;
    /// `capacity` is in sectors.
    pub(super) fn parse(
        header: [u8; HEADER_LEN],
        data_out: usize,
        data_in: usize,
        capacity: u64,
        read_only: bool,
    ) -> Result<Self, Status> {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => Ok(Self::Read { offset: offset_of(sector, data_in, capacity)?, len: data_in }),
            VIRTIO_BLK_T_OUT if read_only => Err(Status::IoError),
            VIRTIO_BLK_T_OUT => Ok(Self::Write { offset: offset_of(sector, data_out, capacity)?, len: data_out }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if data_in >= ID_LEN => Ok(Self::Id),
            VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
            _ => Err(Status::Unsupported),
        }
    }
}

/// The byte where a transfer starts, if all of it is on the disk and in whole sectors.
fn offset_of(sector: u64, len: usize, capacity: u64) -> Result<u64, Status> {
    let len = len as u64;
    if !len.is_multiple_of(SECTOR_LEN) {
        return Err(Status::IoError);
    }
    let end = sector.checked_add(len / SECTOR_LEN).ok_or(Status::IoError)?;
    if end > capacity {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR_LEN).ok_or(Status::IoError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    #[test]
    fn a_read_inside_the_disk_is_a_read() {
        let request = Request::parse(header(VIRTIO_BLK_T_IN, 3), 0, 1024, 5, true);
        assert_eq!(request, Ok(Request::Read { offset: 1536, len: 1024 }));
    }

    #[test]
    fn transfers_over_the_end_or_in_parts_of_sectors_fail() {
        for (sector, len) in
            [(4, 1024), (5, 512), (0, 511), (0, 513), (u64::MAX, 512), (1 << 55, 0), (u64::MAX / 512, 512)]
        {
            let request = Request::parse(header(VIRTIO_BLK_T_IN, sector), 0, len, 5, false);
            assert_eq!(request, Err(Status::IoError), "sector {sector}, {len} bytes");
        }
    }

    #[test]
    fn a_read_only_disk_refuses_writes_before_it_looks_at_anything_else() {
        for sector in [0, 4, u64::MAX] {
            let request = Request::parse(header(VIRTIO_BLK_T_OUT, sector), 512, 0, 5, true);
            assert_eq!(request, Err(Status::IoError));
        }
    }

    #[test]
    fn discard_write_zeroes_and_unknown_types_are_unsupported() {
        for kind in [11, 13, 14, 25, u32::MAX] {
            assert_eq!(Request::parse(header(kind, 0), 512, 512, 5, false), Err(Status::Unsupported), "type {kind}");
        }
    }

    proptest! {
        #[test]
        fn whatever_passes_lies_on_the_disk(
            kind in prop_oneof![Just(0u32), Just(1), any::<u32>()],
            sector in prop_oneof![0u64..20, any::<u64>()],
            out in 0usize..9000, data_in in 0usize..9000, capacity in prop_oneof![0u64..20, 0..u64::MAX / 512],
            read_only: bool,
        ) {
            match Request::parse(header(kind, sector), out, data_in, capacity, read_only) {
                Ok(Request::Read { offset, len }) => prop_assert!(offset + len as u64 <= capacity * SECTOR_LEN),
                Ok(Request::Write { offset, len }) => {
                    prop_assert!(!read_only);
                    prop_assert!(offset + len as u64 <= capacity * SECTOR_LEN);
                }
                _ => (),
            }
        }
    }
}
