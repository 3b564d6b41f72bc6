//! Frames from the guest.

use super::*;

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
