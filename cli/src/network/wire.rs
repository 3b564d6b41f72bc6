//! Frames between a tap and passt. passt speaks on a stream: each frame after its length, four bytes, the highest first.
//!
//! One thread a direction. passt stops reading now and then until somebody has read what it wrote, so neither direction may wait for the other.
//! What a tap does not take is lost, as on any wire.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{PollFd, PollFlags, poll};

/// `struct virtio_net_hdr`, which a tap has before each frame: all noughts for a frame that is whole.
const HEADER: [u8; 10] = [0; 10];
/// Kind of an Ethernet frame with an IPv6 packet.
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Length of a length.
const LENGTH_LEN: usize = 4;
/// Longest frame: the largest IP packet, an Ethernet header, a VLAN tag.
const FRAME_LEN_MAX: usize = 65_535 + 14 + 4;
/// What one reading takes at most.
const BUFFER_LEN: usize = 4 * (LENGTH_LEN + FRAME_LEN_MAX);

/// The two threads. Dropping it ends them, and with the last descriptor of the stream passt ends too.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Begins to copy. The tap was opened with O_NONBLOCK; `frames` has what of the stream was read before. `broken` is called when passt goes away by itself.
    pub fn start(
        tap: &File,
        stream: UnixStream,
        frames: Frames,
        broken: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let mut wire = Self { stream, ended: Arc::default(), threads: Vec::new() };
        let (from, to) = (tap.try_clone()?, wire.stream.try_clone()?);
        wire.spawn("network out", move || {
            // The other direction sees the same end, and tells.
            let _ = outward(&from, &to);
        })?;
        let (from, to) = (wire.stream.try_clone()?, tap.try_clone()?);
        let ended = Arc::clone(&wire.ended);
        wire.spawn("network in", move || {
            let _ = inward(&from, frames, &to);
            if !ended.load(Ordering::Relaxed) {
                broken();
            }
        })?;
        Ok(wire)
    }

    fn spawn(&mut self, name: &str, copy: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(copy)?);
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // One that passt has closed already is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Sends a frame to passt.
pub fn send(mut stream: &UnixStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?.to_be_bytes();
    stream.write_all(&[&length, frame].concat())
}

/// From the tap to passt, until the stream ends. The length takes the place of the header's tail, so that a frame is one write and no copy.
fn outward(mut tap: &File, mut stream: &UnixStream) -> io::Result<()> {
    const LENGTH_AT: usize = HEADER.len() - LENGTH_LEN;
    let mut buffer = vec![0; HEADER.len() + FRAME_LEN_MAX];
    loop {
        let mut waiting = [PollFd::new(tap, PollFlags::IN), PollFd::new(stream, PollFlags::empty())];
        poll(&mut waiting, None)?;
        if !waiting[1].revents().is_empty() {
            return Ok(());
        }
        loop {
            let end = match tap.read(&mut buffer) {
                Ok(end) => end,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let frame = buffer.get(HEADER.len()..end).unwrap_or_default();
            if is_from_nobody(frame) {
                continue;
            }
            let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
            buffer[LENGTH_AT..HEADER.len()].copy_from_slice(&length.to_be_bytes());
            stream.write_all(&buffer[LENGTH_AT..end.max(HEADER.len())])?;
        }
    }
}

/// An IPv6 packet without a source: its sender asks whether an address is free, or joins a group. Nobody here answers that, and passt would take the
/// source for the container's address, and send there what comes from outside.
fn is_from_nobody(frame: &[u8]) -> bool {
    const KIND: std::ops::Range<usize> = 12..14;
    const SOURCE: std::ops::Range<usize> = 22..38;
    frame.get(KIND) == Some(&IPV6[..]) && frame.get(SOURCE).is_some_and(|source| source.iter().all(|byte| *byte == 0))
}

/// From passt to the tap, until the stream ends.
fn inward(stream: &UnixStream, mut frames: Frames, mut tap: &File) -> io::Result<()> {
    loop {
        while let Some(frame) = frames.next()? {
            // The tap is full, or nobody has it up.
            let _ = tap.write_vectored(&[IoSlice::new(&HEADER), IoSlice::new(frame)]);
        }
        if !frames.read(stream)? {
            return Ok(());
        }
    }
}

/// Frames out of a stream.
#[derive(Debug)]
pub struct Frames {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER_LEN], start: 0, end: 0 }
    }
}

impl Frames {
    /// Reads more, once; false at the end of the stream. Whole frames were taken before, so there is room.
    pub fn read(&mut self, mut stream: impl Read) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = stream.read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count > 0)
    }

    /// The next frame that is whole.
    pub fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let unread = &self.buffer[self.start..self.end];
        let Some((length, rest)) = unread.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_LEN_MAX {
            return Err(io::Error::other(format!("passt wrote a frame of {length} bytes")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let begin = self.start + LENGTH_LEN;
        self.start = begin + length;
        Ok(Some(&self.buffer[begin..self.start]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stream that gives so many bytes at each reading.
    struct Pieces<'a>(&'a [u8], std::iter::Cycle<std::slice::Iter<'a, usize>>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.next().copied().unwrap_or(1).min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn however_a_stream_is_cut_the_frames_are_whole(
            lengths in prop::collection::vec(prop_oneof![0..2000usize, FRAME_LEN_MAX - 2..=FRAME_LEN_MAX], 0..12),
            pieces in prop::collection::vec(prop_oneof![1..40usize, 60_000..300_000usize], 1..6),
        ) {
            let sent: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(n, length)| vec![n.to_le_bytes()[0]; *length]).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|frame| [&u32::try_from(frame.len()).expect("short").to_be_bytes(), frame.as_slice()].concat()).collect();
            let (mut stream, mut frames, mut got) = (Pieces(&bytes, pieces.iter().cycle()), Frames::default(), Vec::new());
            while frames.read(&mut stream).expect("memory does not fail") {
                while let Some(frame) = frames.next().expect("short enough") {
                    got.push(frame.to_vec());
                }
            }
            prop_assert!(got == sent);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_ends_it() {
        let mut frames = Frames::default();
        frames.read(&[0xff; 64][..]).expect("memory does not fail");
        assert!(frames.next().is_err());
    }

    /// What a tap is for this purpose: something that is read and written in whole pieces.
    fn pair() -> (File, UnixStream) {
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .expect("a pair");
        (File::from(ours), UnixStream::from(theirs))
    }

    #[test]
    fn frames_pass_both_ways_and_the_end_of_passt_is_told_once() {
        let (tap, mut behind_the_tap) = pair();
        behind_the_tap.set_nonblocking(false).expect("set");
        let (stream, mut passt) = UnixStream::pair().expect("a pair");
        let (tell, told) = std::sync::mpsc::channel();
        let wire =
            Wire::start(&tap, stream, Frames::default(), move || tell.send(()).expect("awaited")).expect("started");
        let mut from_nobody = [0; 54];
        from_nobody[12..14].copy_from_slice(&IPV6);
        behind_the_tap.write_all(&[&HEADER[..], &from_nobody].concat()).expect("written");
        behind_the_tap.write_all(&[&HEADER[..], b"out"].concat()).expect("written");
        let mut seen = [0; 7];
        passt.read_exact(&mut seen).expect("read");
        assert_eq!(&seen, b"\0\0\0\x03out");
        send(&passt, b"in").expect("sent");
        let mut seen = [0; 64];
        let count = behind_the_tap.read(&mut seen).expect("read");
        assert_eq!(&seen[..count], [&HEADER[..], b"in"].concat());
        drop(passt);
        told.recv().expect("told");
        drop(wire);
        assert!(told.recv().is_err(), "once");
    }

    #[test]
    fn a_wire_that_is_dropped_ends_without_a_word() {
        let (tap, _behind_the_tap) = pair();
        let (stream, mut passt) = UnixStream::pair().expect("a pair");
        drop(Wire::start(&tap, stream, Frames::default(), || panic!("nobody went away")).expect("started"));
        assert_eq!(passt.read(&mut [0; 1]).expect("closed"), 0);
    }
}
