//! One message on the wire: a 4-byte big-endian length, then JSON.

use std::io::{Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Longest message; a spec with a hundred disks is a tenth of it.
pub const FRAME_LEN_MAX: usize = 256 * 1024;

/// Why a message did not pass.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end closed between two messages.
    #[error("the other end of the control socket is gone")]
    Closed,
    /// Reading or writing failed.
    #[error("the control socket failed")]
    Io(#[source] std::io::Error),
    /// Longer than [`FRAME_LEN_MAX`].
    #[error("a control message of {0} bytes is over the limit of {FRAME_LEN_MAX}")]
    TooLong(usize),
    /// Not a message of ours.
    #[error("a control message does not parse: are both binaries of one version?")]
    Malformed(#[source] serde_json::Error),
}

/// The bytes of one message, length first.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message).map_err(FrameError::Malformed)?;
    if body.len() > FRAME_LEN_MAX {
        return Err(FrameError::TooLong(body.len()));
    }
    let len = u32::try_from(body.len()).map_err(|_| FrameError::TooLong(body.len()))?;
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// How many bytes of JSON follow this length prefix.
pub fn body_len(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let len = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if len > FRAME_LEN_MAX { Err(FrameError::TooLong(len)) } else { Ok(len) }
}

/// The message in a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Malformed)
}

/// Writes one message.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    to.write_all(&encode(message)?).map_err(FrameError::Io)
}

/// Reads one message, waiting for it.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, FrameError> {
    let mut prefix = [0u8; 4];
    if let Err(error) = from.read_exact(&mut prefix) {
        let closed = error.kind() == std::io::ErrorKind::UnexpectedEof;
        return Err(if closed { FrameError::Closed } else { FrameError::Io(error) });
    }
    let mut body = vec![0u8; body_len(prefix)?];
    from.read_exact(&mut body).map_err(FrameError::Io)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromMachine, ToMachine};

    #[test]
    fn messages_come_out_as_they_went_in() {
        let mut wire = Vec::new();
        write(&mut wire, &ToMachine::Report).expect("a vector takes all");
        write(&mut wire, &ToMachine::Stop).expect("a vector takes all");
        let mut wire = wire.as_slice();
        assert_eq!(read::<ToMachine>(&mut wire).expect("first"), ToMachine::Report);
        assert_eq!(read::<ToMachine>(&mut wire).expect("second"), ToMachine::Stop);
        assert!(matches!(read::<ToMachine>(&mut wire), Err(FrameError::Closed)));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_any_memory_is_taken() {
        let wire = u32::MAX.to_be_bytes();
        assert!(matches!(read::<FromMachine>(&mut wire.as_slice()), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let mut wire = encode(&ToMachine::Stop).expect("small");
        wire.pop();
        assert!(matches!(read::<ToMachine>(&mut wire.as_slice()), Err(FrameError::Io(_))));
    }
}
