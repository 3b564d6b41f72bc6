//! Network devices as drivers, friendly and hostile, see them. The host's end is a socket pair: one datagram a frame.

use std::{
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    sync::Mutex,
};

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use super::*;
use crate::{
    driver::{self, Buffer, DriverQueue, RecordedInterrupt, eventually, into, out},
    net::header::{FRAME_MAX, HEAD_LEN, HEADER_LEN},
};

mod hostile;
mod life;
mod pairs;
mod receiving;
mod sending;
mod vhost;

const MEMORY_LEN: u64 = 4 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUT_AT: u64 = 0x10_0000;
const IN_AT: u64 = 0x20_0000;
const MRG: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// One end of a socket pair in the place of a tap's queue.
struct Wire {
    socket: UnixDatagram,
    seen: Arc<Seen>,
}

/// What was asked of a [`Wire`], and what it is to fail with.
#[derive(Default)]
struct Seen {
    offloads: Mutex<Vec<Offloads>>,
    joined: Mutex<Vec<bool>>,
    send_fails: Mutex<Option<Errno>>,
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl NetBackend for Wire {
    fn send(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some(error) = *self.seen.send_fails.lock().expect("whole") {
            return Err(error.into());
        }
        let mut frame = head.to_vec();
        for slice in rest {
            let start = frame.len();
            frame.resize(start + slice.len(), 0);
            slice.copy_to(&mut frame[start..]);
        }
        self.socket.send(&frame).map(drop)
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut frame = vec![0; HEADER_LEN + FRAME_MAX + 1];
        let len = self.socket.recv(&mut frame)?;
        let mut rest = &frame[..len];
        for slice in into {
            let now = rest.len().min(slice.len());
            slice.copy_from(&rest[..now]);
            rest = &rest[now..];
        }
        Ok(len)
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.seen.offloads.lock().expect("whole").push(offloads);
        Ok(())
    }

    fn set_joined(&mut self, joined: bool) -> io::Result<()> {
        self.seen.joined.lock().expect("whole").push(joined);
        Ok(())
    }
}

/// A tap in which nothing happens but its end: that of a pipe.
struct Silent(io::PipeReader);

impl AsRawFd for Silent {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl NetBackend for Silent {
    fn send(&mut self, _head: &[u8], _rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
    fn receive(&mut self, _into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_joined(&mut self, _joined: bool) -> io::Result<()> {
        Ok(())
    }
}

fn wire() -> (Box<dyn NetBackend>, UnixDatagram, Arc<Seen>) {
    let (ours, theirs) = UnixDatagram::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    theirs.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a socket");
    let seen = Arc::new(Seen::default());
    (Box::new(Wire { socket: ours, seen: seen.clone() }), theirs, seen)
}

fn config() -> NetConfig {
    NetConfig {
        name: "net0".into(),
        mac: MAC,
        mtu: 1500,
        any_source_mac: false,
        pairs: 1,
        udp_segmentation: false,
        transmit_limit: RateLimit::default(),
        receive_limit: RateLimit::default(),
    }
}

struct Bench {
    net: Net,
    memory: GuestMemoryMmap,
    receive: DriverQueue,
    transmit: DriverQueue,
    interrupt: Arc<RecordedInterrupt>,
    host: UnixDatagram,
    seen: Arc<Seen>,
}

impl Bench {
    fn new(config: NetConfig, features: impl FnOnce(u64) -> u64) -> Self {
        let (backend, host, seen) = wire();
        let memory = driver::memory(MEMORY_LEN as usize);
        let receive = DriverQueue::new(&memory, 0x1000, QUEUE_SIZE);
        let transmit = DriverQueue::new(&memory, 0x4000, QUEUE_SIZE);
        let interrupt = RecordedInterrupt::new();
        let mut net = Net::new(config, vec![backend]).expect("a device");
        let features = features(net.traits().features);
        net.activate(driver::activation(&memory, features, &[&receive, &transmit], &interrupt)).expect("starts");
        Self { net, memory, receive, transmit, interrupt, host, seen }
    }

    fn plain() -> Self {
        Self::new(config(), |offered| offered)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("memory");
    }

    fn take(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("memory");
        bytes
    }

    /// The guest sends these bytes in buffers of these lengths.
    fn send(&mut self, bytes: &[u8], cuts: &[u32]) -> u32 {
        self.put(OUT_AT, bytes);
        let mut at = OUT_AT;
        let buffers = cuts.iter().map(|len| {
            at += u64::from(*len);
            out(at - u64::from(*len), *len)
        });
        let buffers: Vec<Buffer> = buffers.collect();
        self.transmit.call(&buffers)
    }

    /// The next frame that reached the host.
    fn arrived(&self) -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN + FRAME_MAX];
        let len = self.host.recv(&mut frame).expect("a frame");
        frame.truncate(len);
        frame
    }

    fn nothing_arrived(&self) {
        self.host.set_nonblocking(true).expect("a socket");
        assert_eq!(self.host.recv(&mut [0]).expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
        self.host.set_nonblocking(false).expect("a socket");
    }

    /// The guest offers `count` receive buffers of `len` bytes, and kicks once.
    fn offer(&mut self, count: u64, len: u32) {
        for index in 0..count {
            self.receive.add(&[into(IN_AT + index * u64::from(len), len)]);
        }
        self.receive.kick();
    }

    fn counters(&self) -> Arc<NetCounters> {
        self.net.counters()
    }
}

/// A frame of `len` bytes without its header, from `source`.
fn ethernet(len: usize, source: [u8; 6]) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|position| (position / 3) as u8).collect();
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&source);
    frame
}

fn with_header(header: [u8; HEADER_LEN], frame: &[u8]) -> Vec<u8> {
    [&header[..], frame].concat()
}

/// TCP over IPv4 in segments of 1448 bytes.
const LARGE_TCP: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
const NO_OFFLOAD: [u8; HEADER_LEN] = [0; HEADER_LEN];
