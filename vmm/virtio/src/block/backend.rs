//! Where a disk's bytes are.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// The bytes of a disk. Only ranges below [`Self::len`] are asked for.
pub trait BlockBackend: Send + 'static {
    /// Size in bytes, the same for the device's whole life. What is beyond the last whole sector is out of reach.
    fn len(&self) -> u64;
    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `into` from `offset`. A hole at a shrunken file's end is an error.
    fn read_at(&mut self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `from` at `offset`.
    fn write_at(&mut self, from: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all that was written durable.
    fn flush(&mut self) -> io::Result<()>;
}

/// A raw image file or a block device.
///
/// It is read and written by position, never through the file's own offset: the open file may be shared with other processes,
/// and one of them moving the offset would put wrong sectors under a guest.
pub struct FileBackend {
    file: File,
    len: u64,
    read_only: bool,
}

impl FileBackend {
    /// Takes an open file. For a read-only disk it must be open for reading only, so that the kernel refuses writes as well.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        let mode = rustix::fs::fcntl_getfl(&file)? & rustix::fs::OFlags::RWMODE;
        if read_only && mode != rustix::fs::OFlags::RDONLY {
            let message = "a read-only disk's file is open for writing; open it O_RDONLY";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // Works for block devices too, whose metadata has no length.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len, read_only })
    }
}

impl BlockBackend for FileBackend {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&mut self, from: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

/// Bytes in memory, for tests of what drives a disk.
pub struct MemoryBackend(pub Vec<u8>);

impl BlockBackend for MemoryBackend {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let from = self.0.get(start..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, from: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let into = self.0.get_mut(start..).and_then(|rest| rest.get_mut(..from.len()));
        into.ok_or(io::ErrorKind::WriteZero)?.copy_from_slice(from);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
