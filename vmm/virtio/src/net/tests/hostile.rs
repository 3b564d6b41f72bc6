//! Drivers that break rings and chains, or never pause.

use proptest::prelude::*;

use super::*;
use crate::driver::{NEXT, WRITE};

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
