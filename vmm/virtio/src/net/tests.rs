//! Network devices as drivers, friendly and hostile, see them. The host's end is a socket pair: one datagram a frame.

use std::{
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    sync::Mutex,
};

use proptest::prelude::*;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use super::*;
use crate::{
    driver::{self, Buffer, DriverQueue, NEXT, RecordedInterrupt, WRITE, eventually, into, out},
    net::header::{FRAME_MAX, HEAD_LEN, HEADER_LEN},
};

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

#[test]
fn a_frame_goes_out_byte_for_byte_however_it_is_cut() {
    let mut bench = Bench::plain();
    for cuts in [vec![112], vec![12, 100], vec![5, 7, 14, 86], vec![26, 86], vec![30, 82], vec![1; 112]] {
        let frame = with_header(NO_OFFLOAD, &ethernet(100, MAC));
        assert_eq!(bench.send(&frame, &cuts), 0);
        assert_eq!(bench.arrived(), frame, "{cuts:?}");
    }
    assert_eq!(bench.counters().sent_frames.value(), 6);
    assert_eq!(bench.counters().sent_bytes.value(), 600);
    bench.net.stop();
}

#[test]
fn a_large_frame_keeps_its_offload_header() {
    let mut bench = Bench::plain();
    let frame = with_header(LARGE_TCP, &ethernet(FRAME_MAX, MAC));
    bench.send(&frame, &[66, 32_000, (frame.len() - 32_066) as u32]);
    assert_eq!(bench.arrived(), frame);
    bench.net.stop();
}

#[test]
fn a_frame_comes_in_over_as_many_buffers_as_it_needs() {
    let mut bench = Bench::plain();
    bench.offer(64, 1536);
    let frame = with_header(LARGE_TCP, &ethernet(4000, MAC));
    bench.host.send(&frame).expect("sent");
    let used = bench.receive.wait_used();
    assert_eq!(used, [(0, 1536), (1, 1536), (2, 940)], "all at once, in order");
    let mut expected = frame.clone();
    expected[10..12].copy_from_slice(&3u16.to_le_bytes());
    assert_eq!(bench.take(IN_AT, frame.len()), expected);
    assert_eq!(bench.counters().received_bytes.value(), 4000);
    // The next one begins where that one ended.
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    assert_eq!(bench.receive.wait_used(), [(3, 72)]);
    let states = bench.net.stop();
    assert_eq!((states[0].next_avail, states[0].next_used), (4, 4), "unused buffers were never taken");
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_chain() {
    let mut bench = Bench::new(config(), |offered| offered & !MRG);
    bench.receive.add(&[into(IN_AT, 12), into(IN_AT + 12, 70_000)]);
    bench.receive.add(&[into(IN_AT + 0x2_0000, 1526)]);
    bench.receive.kick();
    let frame = with_header(LARGE_TCP, &ethernet(60_000, MAC));
    bench.host.send(&frame).expect("sent");
    assert_eq!(bench.receive.wait_used(), [(0, 60_012)]);
    let mut expected = frame.clone();
    expected[10] = 1;
    assert_eq!(bench.take(IN_AT, frame.len()), expected);
    // Too large for the second: dropped, and the buffer waits for one that fits.
    bench.host.send(&frame).expect("sent");
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(1514, MAC))).expect("sent");
    assert_eq!(bench.receive.wait_used(), [(2, 1526)]);
    assert_eq!(bench.counters().dropped_unfit.value(), 1);
    bench.net.stop();
}

#[test]
fn frames_wait_for_buffers_and_a_kick() {
    let mut bench = Bench::plain();
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    eventually("hunger", || bench.counters().starved.value() == 1);
    bench.offer(64, 1536);
    assert_eq!(bench.receive.wait_used(), [(0, 72)]);
    bench.net.stop();
}

// Buffers come one by one while the device looks for them: whenever it stops looking, the next one's kick must be asked for.
#[test]
fn buffers_that_trickle_in_are_seen_by_the_kicks_that_the_event_index_asks_for() {
    let mut bench = Bench::plain();
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    eventually("hunger", || bench.counters().starved.value() == 1);
    // avail_event of the receive queue, behind the used ring.
    let event_at = GuestAddress(bench.receive.used_ring() + 4 + 8 * u64::from(QUEUE_SIZE));
    for index in 0..64u16 {
        bench.receive.add(&[into(IN_AT + u64::from(index) * 1536, 1536)]);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // As a driver does: a kick when the entry just added is the one that was asked for.
        let event: u16 = bench.memory.read_obj(event_at).expect("ring");
        if event == index {
            bench.receive.kick();
        }
    }
    assert_eq!(bench.receive.wait_used(), [(0, 72)]);
    bench.net.stop();
}

#[test]
fn a_flood_costs_a_guest_without_buffers_nothing() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    bench.host.set_nonblocking(true).expect("a socket");
    while bench.host.send(&frame).is_ok() {}
    // The other direction and the stop are served meanwhile, and the starvation was one, not a loop of them.
    bench.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC)), &[72]);
    bench.host.set_nonblocking(false).expect("a socket");
    assert_eq!(bench.arrived().len(), 72);
    eventually("hunger", || bench.counters().starved.value() == 1);
    assert_eq!(bench.counters().received_frames.value(), 0);
    bench.net.stop();
}

#[test]
fn a_frame_from_another_source_is_dropped_and_counted() {
    let mut bench = Bench::plain();
    bench.send(&with_header(NO_OFFLOAD, &ethernet(60, [2, 0, 0, 0, 0, 9])), &[72]);
    bench.nothing_arrived();
    assert_eq!(bench.counters().dropped_source.value(), 1);
    bench.net.stop();
    let mut open = Bench::new(NetConfig { any_source_mac: true, ..config() }, |offered| offered);
    open.send(&with_header(NO_OFFLOAD, &ethernet(60, [2, 0, 0, 0, 0, 9])), &[72]);
    assert_eq!(open.arrived().len(), 72);
    open.net.stop();
}

// What is sent is the copy that was checked: a guest that changes its frame afterwards changes nothing of its head.
#[test]
fn a_source_that_changes_while_it_is_sent_never_reaches_the_host() {
    let mut bench = Bench::plain();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (seen, memory) = (over.clone(), bench.memory.clone());
    let villain = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            for source in [MAC, [2, 0, 0, 0, 0, 9]] {
                memory.write_slice(&source, GuestAddress(OUT_AT + 18)).expect("memory");
            }
        }
    });
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    for _ in 0..300 {
        bench.send(&frame, &[72]);
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    villain.join().expect("villain");
    for _ in 0..bench.counters().sent_frames.value() {
        let source = bench.arrived()[18..24].to_vec();
        assert!(source.iter().zip(MAC).all(|(is, should)| *is == should || should == 1), "{source:02x?}");
        assert_eq!(source[5], 1);
    }
    bench.net.stop();
}

#[test]
fn frames_too_short_or_too_long_come_back_unsent() {
    let mut bench = Bench::plain();
    let bytes = vec![0; HEADER_LEN + FRAME_MAX + 1];
    let lens = (0..HEAD_LEN as u32).chain([(HEADER_LEN + FRAME_MAX + 1) as u32]);
    let count = lens.clone().count() as u64;
    for len in lens {
        assert_eq!(bench.send(&bytes, &[len]), 0, "{len}");
    }
    // A chain in the wrong direction holds no frame at all.
    assert_eq!(bench.transmit.call(&[into(IN_AT, 2000)]), 0);
    bench.nothing_arrived();
    assert_eq!(bench.counters().dropped_malformed.value(), count + 1);
    assert!(!bench.interrupt.reset_asked());
    bench.net.stop();
}

#[test]
fn a_header_that_was_not_agreed_on_is_dropped() {
    let mut bench = Bench::new(config(), |_| 1 << 32);
    bench.send(&with_header(LARGE_TCP, &ethernet(3000, MAC)), &[3012]);
    bench.nothing_arrived();
    assert_eq!(bench.counters().dropped_malformed.value(), 1);
    assert_eq!(*bench.seen.offloads.lock().expect("whole"), [Offloads::default()]);
    bench.net.stop();
}

#[test]
fn the_tap_gets_what_the_driver_understands_and_loses_it_at_the_end() {
    let mut bench = Bench::plain();
    bench.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC)), &[72]);
    bench.net.stop();
    let agreed = Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: false };
    assert_eq!(*bench.seen.offloads.lock().expect("whole"), [agreed, Offloads::default()]);
}

#[test]
fn a_host_that_is_full_or_refuses_costs_the_frame_only() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    for error in [Errno::AGAIN, Errno::IO, Errno::INVAL] {
        *bench.seen.send_fails.lock().expect("whole") = Some(error);
        bench.send(&frame, &[72]);
    }
    *bench.seen.send_fails.lock().expect("whole") = None;
    bench.send(&frame, &[72]);
    assert_eq!(bench.arrived(), frame);
    assert_eq!((bench.counters().dropped_full.value(), bench.counters().dropped_malformed.value()), (2, 1));
    bench.net.stop();
}

fn link_status(net: &Net) -> u16 {
    let mut status = [0; 2];
    net.read_config(6, &mut status);
    u16::from_le_bytes(status)
}

#[test]
fn an_interface_that_goes_takes_the_link_down_and_the_machine_lives_on() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    *bench.seen.send_fails.lock().expect("whole") = Some(Errno::BADFD);
    assert_eq!(link_status(&bench.net), 1);
    bench.send(&frame, &[72]);
    eventually("the news", || bench.interrupt.configs() == 1);
    assert_eq!(link_status(&bench.net), 0);
    // What is sent meanwhile is taken and dropped.
    bench.send(&frame, &[72]);
    assert_eq!(bench.counters().dropped_link.value(), 2);
    assert!(bench.interrupt.losses().is_empty() && !bench.interrupt.reset_asked());
    bench.net.stop();
}

#[test]
fn a_device_has_a_backend_for_each_pair() {
    assert!(Net::new(config(), vec![]).is_err());
}

#[test]
fn a_hang_up_of_the_tap_takes_the_link_down() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut net = Net::new(config(), vec![Box::new(Silent(reader))]).expect("a device");
    let memory = driver::memory(MEMORY_LEN as usize);
    let (receive, transmit) =
        (DriverQueue::new(&memory, 0x1000, QUEUE_SIZE), DriverQueue::new(&memory, 0x4000, QUEUE_SIZE));
    let interrupt = RecordedInterrupt::new();
    let features = net.traits().features;
    net.activate(driver::activation(&memory, features, &[&receive, &transmit], &interrupt)).expect("starts");
    assert_eq!(link_status(&net), 1);
    drop(writer);
    eventually("the news", || link_status(&net) == 0);
    net.stop();
}

#[test]
fn a_stop_with_frames_in_flight_loses_nothing_that_was_taken() {
    let mut bench = Bench::plain();
    bench.offer(200, 1536);
    bench.host.set_nonblocking(true).expect("a socket");
    let frame = with_header(NO_OFFLOAD, &ethernet(600, MAC));
    let mut sent = 0u64;
    while sent < 50 && bench.host.send(&frame).is_ok() {
        sent += 1;
    }
    let states = bench.net.stop();
    let received = bench.counters().received_frames.value();
    assert_eq!(states[0].next_used, states[0].next_avail);
    assert_eq!(u64::from(states[0].next_used), received);
    let mut with = driver::activation(
        &bench.memory,
        bench.net.traits().features,
        &[&bench.receive, &bench.transmit],
        &bench.interrupt,
    );
    with.queues[0].queue = virtio_queue::Queue::try_from(states[0]).expect("a good state");
    bench.net.activate(with).expect("starts again");
    eventually("the rest", || bench.counters().received_frames.value() == sent);
    bench.net.stop();
}

#[test]
fn the_configuration_space_tells_address_link_pairs_and_mtu() {
    let bench = Bench::new(NetConfig { mtu: 9000, ..config() }, |offered| offered);
    let mut bytes = [0xff; 14];
    bytes[12..].fill(0);
    bench.net.read_config(0, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23, 0, 0]);
}

#[test]
fn a_limit_holds_frames_back_until_their_time() {
    let frames = Some(Bucket { per_second: 50, burst: 2 });
    let limit = RateLimit { bytes: None, frames };
    let mut bench =
        Bench::new(NetConfig { transmit_limit: limit, receive_limit: limit, ..config() }, |offered| offered);
    bench.offer(100, 1536);
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    let start = std::time::Instant::now();
    for _ in 0..5 {
        bench.send(&frame, &[72]);
        bench.host.send(&frame).expect("sent");
    }
    eventually("all frames", || bench.counters().received_frames.value() == 5);
    // Two at once, three more in the rhythm of the rate.
    assert!(start.elapsed() >= std::time::Duration::from_millis(60), "{:?}", start.elapsed());
    assert!(bench.counters().held_by_rate.value() >= 2);
    assert_eq!(bench.counters().sent_frames.value(), 5);
    bench.net.stop();
}

#[test]
fn a_reset_refills_no_limit() {
    let frames = Some(Bucket { per_second: 20, burst: 1 });
    let limit = RateLimit { bytes: None, frames };
    let mut bench = Bench::new(NetConfig { transmit_limit: limit, ..config() }, |offered| offered);
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    let start = std::time::Instant::now();
    for _ in 0..4 {
        bench.send(&frame, &[72]);
        bench.net.stop();
        bench.receive.start_over();
        bench.transmit.start_over();
        let features = bench.net.traits().features;
        let queues = [&bench.receive, &bench.transmit];
        bench.net.activate(driver::activation(&bench.memory, features, &queues, &bench.interrupt)).expect("starts");
    }
    assert!(start.elapsed() >= std::time::Duration::from_millis(150), "{:?}", start.elapsed());
    bench.net.stop();
}

#[test]
fn the_interrupt_comes_when_the_driver_asked_for_it_and_not_before() {
    let mut bench = Bench::plain();
    // used_event of the transmit queue, behind the available ring: tell at the third completion.
    let event_at = GuestAddress(bench.transmit.available_ring() + 4 + 2 * u64::from(QUEUE_SIZE));
    bench.memory.write_obj(2u16, event_at).expect("ring");
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    for _ in 0..2 {
        bench.send(&frame, &[72]);
    }
    assert_eq!(bench.interrupt.signals(), 0);
    bench.send(&frame, &[72]);
    eventually("the third", || bench.interrupt.signals() == 1);
    bench.send(&frame, &[72]);
    bench.net.stop();
    assert_eq!(bench.interrupt.signals(), 1);
}

/// Two pairs and a control queue.
struct Several {
    net: Net,
    memory: GuestMemoryMmap,
    queues: Vec<DriverQueue>,
    hosts: Vec<UnixDatagram>,
    seen: Vec<Arc<Seen>>,
    interrupt: Arc<RecordedInterrupt>,
}

impl Several {
    fn new() -> Self {
        let memory = driver::memory(MEMORY_LEN as usize);
        let queue = |index: u64, size| DriverQueue::new(&memory, 0x1000 + index * 0x3000, size);
        let mut queues: Vec<_> = (0..4).map(|index| queue(index, QUEUE_SIZE)).collect();
        queues.push(queue(4, CONTROL_QUEUE_SIZE));
        let (first, second) = (wire(), wire());
        let mut net = Net::new(NetConfig { pairs: 2, ..config() }, vec![first.0, second.0]).expect("a device");
        let interrupt = RecordedInterrupt::new();
        let all: Vec<_> = queues.iter().collect();
        net.activate(driver::activation(&memory, net.traits().features, &all, &interrupt)).expect("starts");
        Self { net, memory, queues, hosts: vec![first.1, second.1], seen: vec![first.2, second.2], interrupt }
    }

    /// The answer to a control command.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.memory.write_slice(bytes, GuestAddress(OUT_AT)).expect("memory");
        self.memory.write_obj(0xffu8, GuestAddress(IN_AT)).expect("memory");
        assert_eq!(self.queues[4].call(&[out(OUT_AT, bytes.len() as u32), into(IN_AT, 1)]), 1);
        self.memory.read_obj(GuestAddress(IN_AT)).expect("memory")
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_get_frames() {
    let mut several = Several::new();
    for index in 0..50 {
        several.queues[2].add(&[into(IN_AT + 0x1000 + index * 1536, 1536)]);
    }
    assert_eq!(several.command(&[4, 0, 2, 0]), 0);
    several.hosts[1].send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    assert_eq!(several.queues[2].wait_used(), [(0, 72)]);
    assert_eq!(several.command(&[4, 0, 1, 0]), 0);
    // A pair that is not used may still send: by the first tap.
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    several.memory.write_slice(&frame, GuestAddress(OUT_AT + 0x1000)).expect("memory");
    several.queues[3].call(&[out(OUT_AT + 0x1000, 72)]);
    assert_eq!(several.hosts[0].recv(&mut [0; 100]).expect("a frame"), 72);
    assert_eq!(several.net.stop().len(), 5);
    assert_eq!(*several.seen[1].joined.lock().expect("whole"), [false, true, false]);
    assert_eq!(*several.seen[0].joined.lock().expect("whole"), [true, true, true]);
}

#[test]
fn control_commands_that_were_not_offered_or_make_no_sense_are_errors() {
    let mut several = Several::new();
    let garbage: [&[u8]; 9] = [
        &[],
        &[4],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0xff, 0xff],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[1, 1, 2, 3, 4, 5, 6, 7],
    ];
    for bytes in garbage {
        assert_eq!(several.command(bytes), 1, "{bytes:?}");
    }
    // Nowhere to put an answer.
    several.queues[4].add(&[out(OUT_AT, 4)]);
    several.queues[4].kick();
    assert!(several.interrupt.wait_for_reset());
    several.net.stop();
}

/// What a hostile driver writes into one queue; all end in a reset, and stop in time.
fn asks_for_reset(receive: bool, attack: impl FnOnce(&mut DriverQueue)) {
    let mut bench = Bench::plain();
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    let queue = if receive { &mut bench.receive } else { &mut bench.transmit };
    attack(queue);
    queue.kick();
    assert!(bench.interrupt.wait_for_reset());
    assert!(bench.interrupt.losses().is_empty(), "the guest's own fault");
    bench.net.stop();
}

#[test]
fn broken_rings_and_chains_ask_for_a_reset() {
    for receive in [false, true] {
        let direction = if receive { WRITE } else { 0 };
        asks_for_reset(receive, |queue| queue.set_available_index(QUEUE_SIZE + 1));
        asks_for_reset(receive, |queue| queue.offer(QUEUE_SIZE));
        // A loop; the end of memory; a hole; the whole of the address space; more than 2^32 in all.
        asks_for_reset(receive, |queue| {
            queue.describe(0, OUT_AT, 8, NEXT | direction, 0);
            queue.offer(0);
        });
        for (address, len) in [(MEMORY_LEN - 10, 100), (MEMORY_LEN, 100), (u64::MAX - 50, 100), (0, u32::MAX)] {
            asks_for_reset(receive, |queue| {
                queue.describe(0, address, len, direction, 0);
                queue.offer(0);
            });
        }
        asks_for_reset(receive, |queue| {
            for index in 0..20 {
                queue.describe(index, 0x1000, 0x3f_0000, NEXT | direction, index + 1);
            }
            queue.describe(20, 0x1000, 0x3f_0000, direction, 0);
            queue.offer(0);
        });
    }
    // Receive buffers without room for a header, or in the wrong direction.
    for len in 0..HEADER_LEN as u32 {
        asks_for_reset(true, |queue| {
            queue.add(&[into(IN_AT, len)]);
        });
    }
    asks_for_reset(true, |queue| {
        queue.add(&[out(IN_AT, 2000)]);
    });
}

#[test]
fn tiny_buffers_get_the_frames_that_fit_and_the_others_are_dropped() {
    let mut bench = Bench::plain();
    for _ in 0..QUEUE_SIZE {
        bench.receive.add(&[into(IN_AT, 16)]);
    }
    bench.receive.kick();
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(9000, MAC))).expect("sent");
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    assert_eq!(bench.receive.wait_used().len(), 5, "72 bytes of 16 each");
    assert_eq!(bench.counters().dropped_unfit.value(), 1);
    bench.net.stop();
}

// one buffer offered as often as the ring has room for. The guest harms itself alone.
#[test]
fn one_receive_buffer_offered_many_times_is_used_many_times() {
    let mut bench = Bench::plain();
    bench.receive.describe(0, IN_AT, 1536, WRITE, 0);
    for _ in 0..QUEUE_SIZE {
        bench.receive.offer(0);
    }
    bench.receive.kick();
    bench.host.send(&with_header(NO_OFFLOAD, &ethernet(3000, MAC))).expect("sent");
    assert_eq!(bench.receive.wait_used(), [(0, 1536), (0, 1476)]);
    bench.net.stop();
}

// work without end must not keep the device from its stop.
#[test]
fn a_driver_that_never_pauses_cannot_keep_the_device_from_stopping() {
    let mut bench = Bench::plain();
    bench.put(OUT_AT, &with_header(NO_OFFLOAD, &ethernet(60, [6; 6])));
    bench.transmit.describe(0, OUT_AT, 72, 0, 0);
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = over.clone();
    let mut queue = bench.transmit;
    let villain = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            queue.offer(0);
            queue.kick();
            while queue.used().is_empty() && !seen.load(std::sync::atomic::Ordering::Relaxed) {}
        }
    });
    let counters = bench.net.counters();
    eventually("some work", || counters.dropped_source.value() > 100);
    assert_eq!(bench.net.stop().len(), 2);
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    villain.join().expect("villain");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    // Any table and any ring: no panic, the device stops, and what the host gets is a frame from the guest's own address.
    #[test]
    fn arbitrary_rings_never_panic_or_hang(
        descriptors in prop::collection::vec((0u64..MEMORY_LEN + 0x1000, 0u32..80_000, 0u16..8, 0u16..20), 1..16),
        heads in prop::collection::vec(0u16..20, 1..16),
        receive in any::<bool>(),
    ) {
        let mut bench = Bench::plain();
        let queue = if receive { &mut bench.receive } else { &mut bench.transmit };
        for (index, (address, len, flags, next)) in (0u16..).zip(descriptors) {
            queue.describe(index, address.max(0x1_0000), len, flags, next);
        }
        heads.into_iter().for_each(|head| queue.offer(head));
        queue.kick();
        bench.host.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
        bench.net.stop();
        for _ in 0..bench.counters().sent_frames.value() {
            prop_assert_eq!(&bench.arrived()[18..24], &MAC[..]);
        }
    }
}
