//! Bytes between the caller's standard streams and the container's.
//!
//! One thread a direction, blocking reads and writes: back-pressure comes for free, and a thread stuck in a read of the terminal holds up
//! nobody, as the process ends without it.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
};

use pod::ProcessStreams;

const BUFFER_LEN: usize = 64 << 10;

/// The copying threads of one process.
pub struct Copying {
    out: Vec<JoinHandle<()>>,
}

impl Copying {
    /// Starts to copy what is there.
    pub fn start(streams: ProcessStreams) -> io::Result<Self> {
        let mut out = Vec::new();
        if let Some(stream) = streams.stdout {
            out.push(outward(stream, io::stdout().as_fd())?);
        }
        if let Some(stream) = streams.stderr {
            out.push(outward(stream, io::stderr().as_fd())?);
        }
        if let Some(stream) = streams.stdin {
            inward(stream)?;
        }
        Ok(Self { out })
    }

    /// Waits until all output has been written. Blocks.
    pub fn drain(self) {
        for thread in self.out {
            // A copying thread does not panic; if it did, its bytes are lost and the exit code still counts.
            let _ = thread.join();
        }
    }
}

fn outward(mut from: UnixStream, to: BorrowedFd<'_>) -> io::Result<JoinHandle<()>> {
    from.set_nonblocking(false)?;
    let mut to = File::from(to.try_clone_to_owned()?);
    Ok(thread::spawn(move || {
        // A reader that went away (`| head`) ends the copying, and the container sees it as a closed pipe.
        let _ = copy(&mut from, &mut to);
        let _ = from.shutdown(Shutdown::Both);
    }))
}

fn inward(mut to: UnixStream) -> io::Result<()> {
    to.set_nonblocking(false)?;
    let mut from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    thread::spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_passes_every_byte_and_ends_at_the_end() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut copied = Vec::new();
        copy(&mut bytes.as_slice(), &mut copied).expect("memory does not fail");
        assert_eq!(copied, bytes);
    }
}
