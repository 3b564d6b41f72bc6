//! The header of a socket packet, section 5.10.6: 44 bytes, little-endian.

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;
/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// The only socket type that is offered.
pub(super) const TYPE_STREAM: u16 = 1;
/// Most bytes after one header.
pub(super) const PAYLOAD_MAX: u32 = 64 * 1024;

/// SHUTDOWN: the sender will receive no more.
pub(super) const NO_MORE_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender will send no more.
pub(super) const NO_MORE_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// A number that means nothing.
    Unknown(u16),
}

impl Op {
    fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// A header, copied once from guest memory, or on its way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) target_cid: u64,
    pub(super) source_port: u32,
    pub(super) target_port: u32,
    /// Payload bytes after the header.
    pub(super) len: u32,
    pub(super) socket_type: u16,
    pub(super) op: Op,
    pub(super) flags: u32,
    /// The sender's receive window in bytes.
    pub(super) window: u32,
    /// Bytes that the sender has taken out of that window since the start, modulo 2^32.
    pub(super) taken: u32,
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(&bytes);
        Self {
            source_cid: u64::from_le_bytes(fields.take()),
            target_cid: u64::from_le_bytes(fields.take()),
            source_port: u32::from_le_bytes(fields.take()),
            target_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            socket_type: u16::from_le_bytes(fields.take()),
            op: Op::from_number(u16::from_le_bytes(fields.take())),
            flags: u32::from_le_bytes(fields.take()),
            window: u32::from_le_bytes(fields.take()),
            taken: u32::from_le_bytes(fields.take()),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = [
            &self.source_cid.to_le_bytes()[..],
            &self.target_cid.to_le_bytes(),
            &self.source_port.to_le_bytes(),
            &self.target_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.op.number().to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.window.to_le_bytes(),
            &self.taken.to_le_bytes(),
        ];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(into, byte)| *into = *byte);
        bytes
    }

    /// The reset that answers this packet when no connection does.
    pub(super) fn reset(&self) -> Self {
        Self {
            source_cid: self.target_cid,
            target_cid: self.source_cid,
            source_port: self.target_port,
            target_port: self.source_port,
            len: 0,
            socket_type: self.socket_type,
            op: Op::Reset,
            flags: 0,
            window: 0,
            taken: 0,
        }
    }
}

/// Takes fixed-size fields off the front. A header has bytes for all of its fields; more would be zeros.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let header = Header {
            source_cid: 3,
            target_cid: 2,
            source_port: 0x11,
            target_port: 0x22,
            len: 0x33,
            socket_type: 1,
            op: Op::Data,
            flags: 0x44,
            window: 0x55,
            taken: 0x66,
        };
        let bytes = header.to_bytes();
        let firsts: Vec<u8> = [0, 8, 16, 20, 24, 28, 30, 32, 36, 40].iter().map(|offset| bytes[*offset]).collect();
        assert_eq!(firsts, [3, 2, 0x11, 0x22, 0x33, 1, 5, 0x44, 0x55, 0x66]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_that_composes_to_the_same_bytes(bytes: [u8; 32], more: [u8; 12]) {
            let mut whole = [0; HEADER_LEN];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&more);
            prop_assert_eq!(Header::parse(whole).to_bytes(), whole);
        }
    }
}
