//! The block device from the driver's side.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::driver::{self, Buffer, DriverQueue, RecordedInterrupt, into, out};

const HEADER_AT: u64 = 0x8000;
const DATA_AT: u64 = 0x10000;
const STATUS_AT: u64 = 0x9000;

struct Bench {
    block: Block,
    queue: DriverQueue,
    memory: GuestMemoryMmap,
    interrupt: Arc<RecordedInterrupt>,
}

impl Bench {
    fn new(backend: impl BlockBackend, read_only: bool, features: impl FnOnce(u64) -> u64) -> Self {
        let memory = driver::memory(1 << 20);
        let queue = DriverQueue::new(&memory, 0x1000, QUEUE_SIZE);
        let mut block = Block::new("blk0", Box::new(backend), read_only, "guest-image");
        let interrupt = RecordedInterrupt::new();
        let features = features(block.traits().features);
        block.activate(driver::activation(&memory, features, &[&queue], &interrupt)).expect("starts");
        Self { block, queue, memory, interrupt }
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.memory.write_obj(kind, GuestAddress(HEADER_AT)).expect("header");
        self.memory.write_obj(sector, GuestAddress(HEADER_AT + 8)).expect("header");
        self.memory.write_obj(0xffu8, GuestAddress(STATUS_AT)).expect("status");
        let mut buffers = vec![out(HEADER_AT, 16)];
        buffers.extend(data);
        buffers.push(into(STATUS_AT, 1));
        let written = self.queue.call(&buffers);
        (self.memory.read_obj(GuestAddress(STATUS_AT)).expect("status"), written)
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(DATA_AT)).expect("data");
        data
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|position| (position / 7) as u8).collect()
}

#[test]
fn a_long_read_over_many_buffers_brings_the_disks_bytes() {
    let disk = pattern(400 * 512);
    let mut bench = Bench::new(MemoryBackend(disk.clone()), true, |offered| offered);
    let counted = bench.block.bytes_read();
    let buffers = [into(DATA_AT, 512), into(DATA_AT + 512, 64 * 1024), into(DATA_AT + 512 + 65536, 64 * 1024)];
    assert_eq!(bench.request(0, 3, &buffers), (0, 512 + 2 * 65536 + 1));
    assert_eq!(bench.data(512 + 2 * 65536), disk[3 * 512..][..512 + 2 * 65536]);
    assert_eq!(counted.load(Ordering::Relaxed), 512 + 2 * 65536);
    assert_eq!(bench.block.stop()[0].next_avail, 1);
}

#[test]
fn header_and_status_may_be_cut_into_any_buffers() {
    let mut bench = Bench::new(MemoryBackend(pattern(4 * 512)), true, |offered| offered);
    bench.memory.write_obj(0u64, GuestAddress(HEADER_AT)).expect("header");
    bench.memory.write_obj(1u64, GuestAddress(HEADER_AT + 8)).expect("header");
    let written =
        bench.queue.call(&[out(HEADER_AT, 7), out(HEADER_AT + 7, 9), into(DATA_AT, 100), into(DATA_AT + 100, 413)]);
    assert_eq!(written, 513);
    assert_eq!(bench.data(513)[..512], pattern(4 * 512)[512..1024]);
    assert_eq!(bench.data(513)[512], 0);
    bench.block.stop();
}

#[test]
fn a_written_file_can_be_read_back_and_is_durable_on_flush() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(8 * 512).expect("size");
    let seen = file.try_clone().expect("file");
    let mut bench = Bench::new(FileBackend::new(file, false).expect("backend"), false, |offered| offered);
    bench.memory.write_slice(&pattern(1024), GuestAddress(DATA_AT)).expect("data");
    assert_eq!(bench.request(1, 6, &[out(DATA_AT, 1024)]), (0, 1));
    assert_eq!(bench.request(4, 0, &[]), (0, 1));
    bench.block.stop();
    let mut back = vec![0; 1024];
    FileBackend::new(seen, false).expect("backend").read_at(&mut back, 6 * 512).expect("read");
    assert_eq!(back, pattern(1024));
}

// negotiating nothing but VERSION_1 does not open the disk for writing.
#[test]
fn a_read_only_disk_refuses_writes_whatever_was_negotiated() {
    let disk = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(disk.path(), pattern(4 * 512)).expect("image");
    let file = std::fs::File::open(disk.path()).expect("image");
    let backend = FileBackend::new(file, true).expect("backend");
    let mut bench = Bench::new(backend, true, |_| 1 << VIRTIO_F_VERSION_1);
    assert_eq!(bench.request(1, 0, &[out(DATA_AT, 512)]), (1, 1));
    for kind in [11, 13] {
        assert_eq!(bench.request(kind, 0, &[out(DATA_AT, 16)]), (2, 1));
    }
    bench.block.stop();
    assert_eq!(std::fs::read(disk.path()).expect("image"), pattern(4 * 512));
}

#[test]
fn a_writable_file_is_no_backend_for_a_read_only_disk() {
    let error = FileBackend::new(tempfile::tempfile().expect("file"), true).err().expect("refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_id_is_the_serial_padded_with_zeros() {
    let mut bench = Bench::new(MemoryBackend(vec![0; 512]), true, |offered| offered);
    assert_eq!(bench.request(8, 0, &[into(DATA_AT, 20)]), (0, 21));
    assert_eq!(bench.data(20), b"guest-image\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.request(8, 0, &[into(DATA_AT, 19)]), (1, 1));
    bench.block.stop();
}

#[test]
fn a_disk_that_shrank_under_us_is_an_io_error() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(8 * 512).expect("size");
    let shrink = file.try_clone().expect("file");
    let mut bench = Bench::new(FileBackend::new(file, false).expect("backend"), false, |offered| offered);
    shrink.set_len(512).expect("size");
    assert_eq!(bench.request(0, 4, &[into(DATA_AT, 512)]), (1, 1));
    bench.block.stop();
}

#[test]
fn a_request_without_header_or_status_asks_for_a_reset() {
    for buffers in [vec![out(HEADER_AT, 15), into(STATUS_AT, 1)], vec![out(HEADER_AT, 16)], vec![into(STATUS_AT, 1)]] {
        let mut bench = Bench::new(MemoryBackend(vec![0; 512]), true, |offered| offered);
        bench.queue.add(&buffers);
        bench.queue.kick();
        assert!(bench.interrupt.wait_for_reset());
        assert!(bench.queue.used().is_empty());
        bench.block.stop();
    }
}

#[test]
fn a_stopped_disk_starts_again_where_it_was_told() {
    let mut bench = Bench::new(MemoryBackend(pattern(4 * 512)), true, |offered| offered);
    assert_eq!(bench.request(0, 0, &[into(DATA_AT, 512)]).0, 0);
    let state = bench.block.stop().remove(0);
    let mut with = driver::activation(&bench.memory, bench.block.traits().features, &[&bench.queue], &bench.interrupt);
    with.queues[0].queue = virtio_queue::Queue::try_from(state).expect("a good state");
    bench.block.activate(with).expect("starts again");
    assert_eq!(bench.request(0, 1, &[into(DATA_AT, 512)]).0, 0);
    assert_eq!(bench.data(512), pattern(4 * 512)[512..1024]);
    bench.block.stop();
}

// the available index may jump anywhere; the work per notification stays bounded.
#[test]
fn an_available_index_beyond_the_ring_asks_for_a_reset() {
    let mut bench = Bench::new(MemoryBackend(vec![0; 512]), true, |offered| offered);
    bench.queue.set_available_index(QUEUE_SIZE + 1);
    bench.queue.kick();
    assert!(bench.interrupt.wait_for_reset());
    bench.block.stop();
}

#[test]
fn configuration_space_tells_capacity_and_limits_and_then_zeros() {
    let block = Block::new("blk0", Box::new(MemoryBackend(vec![0; 5 * 512 + 100])), true, "");
    let mut config = [0xff; 8];
    block.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 5);
    let mut seg_max = [0; 4];
    block.read_config(12, &mut seg_max);
    assert_eq!(u32::from_le_bytes(seg_max), SEGMENTS_MAX);
    let mut beyond = [0; 4];
    block.read_config(u32::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

// the same head twice, while the first is not given back. Both are answered, each once.
#[test]
fn one_chain_offered_twice_is_answered_twice() {
    let mut bench = Bench::new(MemoryBackend(pattern(512)), true, |offered| offered);
    bench.memory.write_obj(0u32, GuestAddress(HEADER_AT)).expect("header");
    bench.memory.write_obj(0u64, GuestAddress(HEADER_AT + 8)).expect("header");
    let head = bench.queue.add(&[out(HEADER_AT, 16), into(DATA_AT, 512), into(STATUS_AT, 1)]);
    bench.queue.offer(head);
    bench.queue.kick();
    let mut used = Vec::new();
    driver::eventually("both answers", || {
        used.extend(bench.queue.used());
        used.len() == 2
    });
    assert_eq!(used, [(head, 513), (head, 513)]);
    assert!(!bench.interrupt.reset_asked());
    bench.block.stop();
}

// Data, status and header in one place: the guest gets what it asked for, and nothing else is touched.
#[test]
fn overlapping_buffers_harm_only_the_request() {
    let mut bench = Bench::new(MemoryBackend(vec![0xaa; 512]), true, |offered| offered);
    bench.memory.write_slice(&[0; 16], GuestAddress(DATA_AT)).expect("header");
    let written = bench.queue.call(&[out(DATA_AT, 16), into(DATA_AT, 512), into(DATA_AT, 1)]);
    assert_eq!(written, 513);
    assert_eq!(bench.data(512)[..2], [0, 0xaa]);
    bench.block.stop();
}
