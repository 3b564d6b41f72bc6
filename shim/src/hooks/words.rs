//! What a hook says: read as it comes, so that it never waits for a reader, and forgotten but for the end, so that it costs no memory.

use std::{
    io::{self, PipeReader, Read},
    os::fd::{AsFd, BorrowedFd},
};

/// Most that an error has of it: the last bytes.
const LAST_LEN: usize = 2048;
/// Bytes of one read, and as much as a pipe holds by default (pipe(7)).
const READ_LEN: usize = 64 << 10;

/// The end of what a hook has said, and the pipe by which more comes.
#[derive(Debug)]
pub(super) struct Words {
    /// `None` when nobody can say anything any more.
    pipe: Option<PipeReader>,
    last: Vec<u8>,
}

impl Words {
    /// None yet. Reading from the pipe never waits from here on.
    pub(super) fn of(pipe: PipeReader) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: Some(pipe), last: Vec::new() })
    }

    /// Readable when there is more; `None` when there will be none.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what there is, up to what a pipe holds. What the hook left running may say more; nobody hears that.
    pub(super) fn read(&mut self) {
        let mut said = [0; READ_LEN];
        match self.pipe.as_mut().map(|pipe| pipe.read(&mut said)) {
            Some(Ok(len)) if len > 0 => self.keep(said.get(..len).unwrap_or_default()),
            Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => self.pipe = None,
        }
    }

    fn keep(&mut self, said: &[u8]) {
        self.last.extend_from_slice(said);
        self.last.drain(..self.last.len().saturating_sub(LAST_LEN));
    }

    /// The last of them.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.last).trim().to_owned()
    }
}
