//! What the VMM says: bytes from its control socket, cut into messages.

use std::io;

use rustix::net::RecvFlags;
use tokio::{io::AsyncReadExt, net::unix::OwnedReadHalf};
use vmm_control::{
    FromMachine,
    frame::{self, FRAME_LEN_MAX, FrameError},
};

/// Bytes of a message's length.
const PREFIX_LEN: usize = 4;
/// How much of a dead VMM's last words is taken: one message. Whoever else holds its socket could go on for ever.
const REST_LEN_MAX: usize = PREFIX_LEN + FRAME_LEN_MAX;

/// The reading end, and what was heard of a message that is not whole.
pub(super) struct Words {
    read: OwnedReadHalf,
    heard: Vec<u8>,
}

impl Words {
    pub(super) fn new(read: OwnedReadHalf) -> Self {
        Self { read, heard: Vec::new() }
    }

    /// The next message, if a whole one was heard.
    pub(super) fn next(&mut self) -> Result<Option<FromMachine>, FrameError> {
        let Some(prefix) = self.heard.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let end = PREFIX_LEN + frame::body_len(*prefix)?;
        let Some(body) = self.heard.get(PREFIX_LEN..end) else { return Ok(None) };
        let message = frame::decode(body)?;
        self.heard.drain(..end);
        Ok(Some(message))
    }

    /// Waits for more; false at the end. Can be given up at any moment, nothing is lost.
    pub(super) async fn hear(&mut self) -> io::Result<bool> {
        Ok(self.read.read_buf(&mut self.heard).await? > 0)
    }

    /// Takes what a process that has ended left in the socket. All of it is there: a write is in our buffer before the writer goes on.
    pub(super) fn hear_the_rest(&mut self) {
        let mut chunk = [0; 4096];
        while self.heard.len() < REST_LEN_MAX
            && let Ok((len @ 1.., _)) = rustix::net::recv(self.read.as_ref(), &mut chunk, RecvFlags::DONTWAIT)
        {
            self.heard.extend_from_slice(&chunk[..len]);
        }
    }
}
