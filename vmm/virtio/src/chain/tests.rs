//! Chains as a hostile driver may build them.

use proptest::prelude::*;
use vm_memory::Address;

use super::*;
use crate::{
    driver::{self, Buffer, DriverQueue, INDIRECT, NEXT, WRITE, into, out, write_descriptor},
    fault::Fault,
    served_queue::ServedQueue,
};

const MEMORY_LEN: u64 = 1 << 20;
const SIZE: u16 = 8;
const LIMIT: u64 = 1 << 16;
const TABLE_AT: u64 = 0x8000;

struct Bench {
    memory: GuestMemoryMmap,
    driver: DriverQueue,
    queue: ServedQueue,
}

impl Bench {
    fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    fn with_limit(limit: u64) -> Self {
        let memory = driver::memory(MEMORY_LEN as usize);
        let driver = DriverQueue::new(&memory, 0x1000, SIZE);
        let queue = ServedQueue::new(0, driver.active(false), limit);
        Self { memory, driver, queue }
    }

    fn pop(&mut self) -> Result<Chain, ChainFault> {
        match self.queue.pop(&self.memory) {
            Ok(chain) => Ok(chain.expect("one was offered")),
            Err(Fault::Chain { source, .. }) => Err(source),
            Err(other) => panic!("{other}"),
        }
    }

    fn offered(&mut self, buffers: &[Buffer]) -> Result<Chain, ChainFault> {
        self.driver.add(buffers);
        self.pop()
    }

    fn table(&mut self, descriptors: &[(u64, u32, u16, u16)]) -> Result<Chain, ChainFault> {
        for (index, (address, len, flags, next)) in (0u16..).zip(descriptors) {
            self.driver.describe(index, *address, *len, *flags, *next);
        }
        self.driver.offer(0);
        self.pop()
    }

    /// An indirect table with these descriptors, told to have `len` bytes.
    fn indirect(&mut self, descriptors: &[(u64, u32, u16, u16)], len: u32) -> Result<Chain, ChainFault> {
        for (index, (address, descriptor_len, flags, next)) in (0u64..).zip(descriptors) {
            write_descriptor(&self.memory, TABLE_AT + 16 * index, *address, *descriptor_len, *flags, *next);
        }
        self.table(&[(TABLE_AT, len, INDIRECT, 0)])
    }
}

#[test]
fn a_good_chain_reads_and_writes_across_its_buffers() {
    let mut bench = Bench::new();
    let chain = bench.offered(&[out(0x8000, 3), out(0x9000, 5), into(0xa000, 2), into(0xb000, 4)]).expect("good");
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 6));
    bench.memory.write_slice(b"abc", GuestAddress(0x8000)).expect("memory");
    bench.memory.write_slice(b"defgh", GuestAddress(0x9000)).expect("memory");
    let mut read = [0; 5];
    chain.read(&bench.memory, 2, &mut read).expect("inside");
    assert_eq!(&read, b"cdefg");
    chain.write(&bench.memory, 1, b"vwxyz").expect("inside");
    let mut written = [0; 4];
    bench.memory.read_slice(&mut written, GuestAddress(0xb000)).expect("memory");
    assert_eq!(&written, b"wxyz");
}

#[test]
fn reading_or_writing_beyond_the_buffers_is_an_error_and_moves_nothing() {
    let mut bench = Bench::new();
    let chain = bench.offered(&[out(0x8000, 4), into(0x9000, 4)]).expect("good");
    for offset in [1, 4, 5, usize::MAX, usize::MAX - 3] {
        assert!(matches!(chain.read(&bench.memory, offset, &mut [0; 4]), Err(ChainFault::TooShort { .. })));
        assert!(matches!(chain.write(&bench.memory, offset, b"data"), Err(ChainFault::TooShort { .. })));
    }
    assert_eq!(bench.memory.read_obj::<u32>(GuestAddress(0x9000)).expect("memory"), 0);
}

#[test]
fn a_head_outside_the_table_is_refused() {
    for head in [SIZE, SIZE + 1, u16::MAX] {
        let mut bench = Bench::new();
        bench.driver.offer(head);
        assert!(matches!(bench.pop(), Err(ChainFault::Head { .. })), "{head}");
    }
}

#[test]
fn loops_and_ends_outside_the_table_are_refused() {
    let tables: [&[(u64, u32, u16, u16)]; 4] = [
        &[(0x8000, 16, NEXT, 0)],
        &[(0x8000, 16, NEXT, 1), (0x8000, 16, NEXT, 0)],
        &[(0x8000, 16, NEXT, SIZE)],
        &[(0x8000, 16, NEXT, 1), (0x8000, 16, NEXT, u16::MAX)],
    ];
    for table in tables {
        let fault = Bench::new().table(table).expect_err("not a chain");
        assert!(matches!(fault, ChainFault::NoEnd | ChainFault::TooMany { .. }), "{table:?}: {fault}");
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let fault = Bench::new().offered(&[into(0x8000, 16), out(0x9000, 16)]).expect_err("out of order");
    assert!(matches!(fault, ChainFault::Order));
}

#[test]
fn an_empty_buffer_holds_nothing_wherever_it_is() {
    let mut bench = Bench::new();
    let chain = bench.offered(&[out(u64::MAX, 0), out(0x8000, 1), into(MEMORY_LEN + 1, 0)]).expect("nothing to reach");
    assert_eq!((chain.readable_len(), chain.writable_len()), (1, 0));
    let fault = bench.offered(&[into(0x8000, 0), out(0x9000, 1)]).expect_err("out of order all the same");
    assert!(matches!(fault, ChainFault::Order));
}

#[test]
fn buffers_that_leave_guest_memory_are_refused_to_the_byte() {
    for (address, len) in [
        (MEMORY_LEN - 16, 17),
        (MEMORY_LEN, 1),
        (u64::MAX, 1),
        (u64::MAX - 15, 16),
        (u64::MAX - 15, u32::MAX),
        (0, u32::MAX),
        (MEMORY_LEN - 1, u32::MAX),
    ] {
        let fault = Bench::with_limit(u64::MAX).offered(&[into(address, len)]).expect_err("outside");
        assert!(matches!(fault, ChainFault::Range { .. }), "{len} bytes at {address:#x}: {fault}");
    }
    Bench::new().offered(&[into(MEMORY_LEN - 16, 16)]).expect("the last bytes are inside");
}

#[test]
fn a_buffer_may_span_two_regions_and_not_a_hole() {
    let ranges = [(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000), (GuestAddress(0x10000), 0x4000)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
    let mut driver = DriverQueue::new(&memory, 0x1000, SIZE);
    let mut queue = ServedQueue::new(0, driver.active(false), LIMIT);
    driver.add(&[into(0x3ff0, 0x20)]);
    let chain = queue.pop(&memory).expect("good").expect("offered");
    assert_eq!(chain.writable_slices(&memory, 0, 0x20).filter_map(Result::ok).count(), 2);
    chain.write(&memory, 8, &[7; 16]).expect("across");
    assert_eq!(memory.read_obj::<[u8; 16]>(GuestAddress(0x3ff8)).expect("memory"), [7; 16]);
    driver.add(&[into(0x7ff0, 0x20)]);
    assert!(matches!(queue.pop(&memory), Err(Fault::Chain { source: ChainFault::Range { .. }, .. })));
}

#[test]
fn sums_over_the_limit_are_refused_also_past_two_to_the_thirty_two() {
    let fault = Bench::new().offered(&[out(0x8000, LIMIT as u32), into(0x8000, 1)]).expect_err("over the limit");
    assert!(matches!(fault, ChainFault::TooLong { .. }));
    Bench::new().offered(&[out(0x8000, LIMIT as u32)]).expect("at the limit");
    let table = [(0, 1 << 31, NEXT, 1), (0, 1 << 31, NEXT, 2), (0, 1 << 31, 0, 0)];
    Bench::with_limit(u64::MAX).table(&table).expect_err("2^32 bytes and more");
}

#[test]
fn an_indirect_table_is_as_good_as_a_direct_chain() {
    let chain = Bench::new().indirect(&[(0x9000, 8, NEXT, 1), (0xa000, 8, WRITE, 0)], 32).expect("good");
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));
}

#[test]
fn bad_indirect_tables_are_refused() {
    let good = (0x9000, 8, 0, 0);
    for len in [0, 1, 15, 17, 31, u32::MAX, 1 << 20] {
        Bench::new().indirect(&[(0x9000, 8, NEXT, 1), good], len).expect_err("a strange length");
    }
    Bench::new().indirect(&[(TABLE_AT, 16, INDIRECT, 0)], 16).expect_err("indirect in indirect");
    Bench::new().indirect(&[(0x9000, 8, NEXT, 2), good], 32).expect_err("an end outside the table");
    Bench::new().table(&[(MEMORY_LEN, 32, INDIRECT, 0)]).expect_err("a table outside memory");
    let long: Vec<_> = (1..=SIZE + 1).map(|next| (0x9000, 1, NEXT, next)).collect();
    let fault = Bench::new().indirect(&long, 16 * long.len() as u32).expect_err("longer than the queue");
    assert!(matches!(fault, ChainFault::TooMany { .. } | ChainFault::NoEnd));
}

#[test]
fn a_chain_that_is_put_back_comes_again() {
    let mut bench = Bench::new();
    let chain = bench.offered(&[out(0x8000, 4)]).expect("good");
    bench.queue.put_back(chain);
    assert_eq!(bench.pop().expect("again").readable_len(), 4);
    assert!(bench.queue.pop(&bench.memory).expect("good").is_none());
}

#[test]
fn a_driver_that_polls_is_not_signalled() {
    let mut bench = Bench::new();
    let chain = bench.offered(&[out(0x8000, 4)]).expect("good");
    assert!(!bench.queue.signal_due(&bench.memory).expect("nothing completed"));
    bench.memory.write_obj(1u16, GuestAddress(bench.driver.available_ring())).expect("flags");
    bench.queue.complete(&bench.memory, chain, 0).expect("completed");
    assert!(!bench.queue.signal_due(&bench.memory).expect("suppressed"));
    bench.memory.write_obj(0u16, GuestAddress(bench.driver.available_ring())).expect("flags");
    let chain = bench.offered(&[out(0x8000, 4)]).expect("good");
    bench.queue.complete(&bench.memory, chain, 0).expect("completed");
    assert!(bench.queue.signal_due(&bench.memory).expect("wanted"));
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![0..MEMORY_LEN, MEMORY_LEN - 64..MEMORY_LEN + 64, any::<u64>(), Just(0x1000), Just(TABLE_AT)]
}

fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let len = prop_oneof![4 => 0u32..512, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    (any_address(), len, flags, prop_oneof![4 => 0..SIZE, 1 => any::<u16>()])
}

proptest! {
    // Whatever is in the table: no panic, and a chain that passes is short, ordered, inside memory and within the limit.
    #[test]
    fn what_passes_is_safe_to_use(table in prop::collection::vec(any_descriptor(), 1..=SIZE as usize),
                                  inner in prop::collection::vec(any_descriptor(), 0..4),
                                  head in prop_oneof![4 => 0..SIZE, 1 => any::<u16>()]) {
        let mut bench = Bench::new();
        for (index, (address, len, flags, next)) in (0u64..).zip(&inner) {
            write_descriptor(&bench.memory, TABLE_AT + 16 * index, *address, *len, *flags, *next);
        }
        for (index, (address, len, flags, next)) in (0u16..).zip(&table) {
            bench.driver.describe(index, *address, *len, *flags, *next);
        }
        bench.driver.offer(head);
        if let Ok(chain) = bench.pop() {
            prop_assert!(chain.readable.len() + chain.writable.len() <= usize::from(SIZE));
            prop_assert!((chain.readable_len() + chain.writable_len()) as u64 <= LIMIT);
            for segment in chain.readable.iter().chain(&chain.writable) {
                let end = segment.address.checked_add(segment.len as u64);
                prop_assert!(end.is_some_and(|end| end.0 <= MEMORY_LEN));
            }
            let mut all = vec![0; chain.readable_len()];
            chain.read(&bench.memory, 0, &mut all).expect("readable");
            let all = vec![1; chain.writable_len()];
            chain.write(&bench.memory, 0, &all).expect("writable");
            bench.queue.complete(&bench.memory, chain, 0).expect("completed");
        }
    }
}
