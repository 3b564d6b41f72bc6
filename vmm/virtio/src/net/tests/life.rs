//! Configuration space, link, limits, interrupts, start and stop.

use super::*;

#[test]
fn the_tap_gets_what_the_driver_understands_and_loses_it_at_the_end() {
    let mut bench = Bench::plain();
    bench.send(&with_header(NO_OFFLOAD, &ethernet(60, MAC)), &[72]);
    bench.net.stop();
    let agreed = Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: false };
    assert_eq!(*bench.seen.offloads.lock().expect("whole"), [agreed, Offloads::default()]);
}

pub(super) fn link_status(net: &Net) -> u16 {
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
fn the_news_that_a_small_frame_is_out_comes_with_the_answer() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    bench.offer(100, 1536);
    bench.send(&frame, &[72]);
    bench.host.send(&frame).expect("sent");
    eventually("both queues are told of", || bench.interrupt.signals() == 2);
    bench.net.stop();
    assert_eq!(bench.interrupt.rings(), 1, "the driver has asked, but nothing waits for it");
}

#[test]
fn without_an_answer_the_news_comes_after_a_while_and_at_the_latest_with_a_stop() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    bench.send(&frame, &[72]);
    eventually("the news", || bench.interrupt.signals() == 1);
    let event_at = GuestAddress(bench.transmit.available_ring() + 4 + 2 * u64::from(QUEUE_SIZE));
    bench.memory.write_obj(1u16, event_at).expect("ring");
    bench.send(&frame, &[72]);
    bench.net.stop();
    assert_eq!(bench.interrupt.signals(), 2);
}

#[test]
fn who_has_sent_much_hears_of_it_at_once() {
    let mut bench = Bench::plain();
    let frame = with_header(LARGE_TCP, &ethernet(30_000, MAC));
    let start = std::time::Instant::now();
    bench.send(&frame, &[frame.len() as u32]);
    eventually("the news", || bench.interrupt.signals() == 1);
    let waited = std::time::Duration::from_nanos(crate::finished::NEWS_WAITS_NANOS);
    assert!(start.elapsed() < waited, "{:?}", start.elapsed());
    bench.net.stop();
}

#[test]
fn news_that_wait_end_with_the_life_that_they_are_of() {
    let mut bench = Bench::plain();
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    bench.offer(100, 1536);
    bench.send(&frame, &[72]);
    bench.net.stop();
    assert_eq!(bench.interrupt.rings(), 1);
    bench.receive.start_over();
    bench.transmit.start_over();
    bench.memory.write_slice(&[0; 0x3000], GuestAddress(0x1000)).expect("memory");
    bench.memory.write_slice(&[0; 0x3000], GuestAddress(0x4000)).expect("memory");
    let features = bench.net.traits().features;
    let queues = [&bench.receive, &bench.transmit];
    bench.net.activate(driver::activation(&bench.memory, features, &queues, &bench.interrupt)).expect("starts");
    bench.offer(100, 1536);
    bench.send(&frame, &[72]);
    bench.host.send(&frame).expect("sent");
    eventually("both queues are told of", || bench.interrupt.signals() == 3);
    bench.net.stop();
    assert_eq!(bench.interrupt.rings(), 2);
}

#[test]
fn who_waits_for_the_last_of_many_hears_at_once_though_the_last_turn_was_short() {
    let mut bench = Bench::plain();
    // used_event of the transmit queue: tell at the hundredth completion.
    let event_at = GuestAddress(bench.transmit.available_ring() + 4 + 2 * u64::from(QUEUE_SIZE));
    bench.memory.write_obj(99u16, event_at).expect("ring");
    bench.put(OUT_AT, &with_header(NO_OFFLOAD, &ethernet(60, MAC)));
    let start = std::time::Instant::now();
    for _ in 0..100 {
        bench.transmit.add(&[out(OUT_AT, 72)]);
        bench.transmit.kick();
    }
    eventually("the news", || bench.interrupt.rings() == 1);
    let waits = std::time::Duration::from_nanos(crate::finished::NEWS_WAITS_NANOS);
    assert!(start.elapsed() < waits, "{:?}", start.elapsed());
    bench.net.stop();
}

#[test]
fn the_interrupt_comes_when_the_driver_asked_for_it_and_not_before() {
    let mut bench = Bench::plain();
    // used_event of the transmit queue, behind the available ring: tell at the third completion.
    let event_at = GuestAddress(bench.transmit.available_ring() + 4 + 2 * u64::from(QUEUE_SIZE));
    bench.memory.write_obj(2u16, event_at).expect("ring");
    // Large ones, of which no news waits.
    let frame = with_header(LARGE_TCP, &ethernet(30_000, MAC));
    for sent in 1..=4 {
        bench.send(&frame, &[frame.len() as u32]);
        let told = u32::from(sent >= 3);
        eventually("the third", || bench.interrupt.signals() == told);
        bench.arrived();
    }
    bench.net.stop();
    assert_eq!(bench.interrupt.signals(), 1);
}
