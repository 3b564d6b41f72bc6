//! Frames for the guest.

use super::*;
use crate::driver::WRITE;

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
