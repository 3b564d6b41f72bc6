//! Buffers, kicks and interrupts.

use super::*;

#[test]
fn a_receive_buffer_without_room_asks_for_a_reset_of_the_device() {
    for len in [0, HEADER_LEN as u32] {
        let mut guest = Guest::new();
        guest.vsock.stop();
        guest.receive.start_over();
        guest.receive.add(&[into(RECEIVE_BUFFERS_AT, len)]);
        guest.activate();
        let _program = guest.program(1025);
        assert!(guest.interrupt.wait_for_reset(), "{len} bytes");
    }
}

#[test]
fn calls_wait_for_receive_buffers_and_go_out_when_they_come() {
    let mut guest = Guest::new();
    guest.vsock.stop();
    guest.receive.start_over();
    guest.activate();
    let mut program = guest.program(1025);
    program.write_all(b"x").expect("write");
    guest.quiet_queue();
    guest.offer_all();
    guest.receive.kick();
    guest.accept(&mut program);
    assert_eq!(guest.next().1, b"x");
}

/// A muxer without a thread, to be turned by hand, and its receive queue.
fn muxer_by_hand(guest: &Guest) -> (Muxer, DriverQueue) {
    let memory = driver::memory(1 << 20);
    let receive = DriverQueue::new(&memory, 0x1000, QUEUE_SIZE);
    let transmit = DriverQueue::new(&memory, 0x4000, QUEUE_SIZE);
    let event = DriverQueue::new(&memory, 0x8000, EVENT_QUEUE_SIZE);
    let host = HostSide {
        listener: UnixListener::bind(guest.folder.path().join("other")).expect("listener"),
        calls: Vec::new(),
        on_guest_call: None,
    };
    let features = 1 << VIRTIO_F_VERSION_1;
    let with = driver::activation(&memory, features, &[&receive, &transmit, &event], &guest.interrupt);
    (Muxer::new(GUEST_CID, host, with).expect("a muxer"), receive)
}

// A busy thread costs a whole core of the host, so "nothing to do" must be seen as such, also after a wait for buffers was in vain.
#[test]
fn a_turn_with_nothing_to_do_says_so() {
    let guest = Guest::new();
    let (mut muxer, mut receive) = muxer_by_hand(&guest);
    assert!(!muxer.turn().expect("idle"));
    // A reset waits for a buffer, and its cause goes away before one comes.
    muxer.push_reset(guest.header(1, 1, Op::Reset));
    assert!(!muxer.turn().expect("starved"));
    muxer.resets.clear();
    receive.add(&[into(0x1_0000, RECEIVE_BUFFER_LEN)]);
    assert!(!muxer.turn().expect("idle again"));
}

#[test]
fn packets_that_go_out_together_cost_one_interrupt() {
    let guest = Guest::new();
    let (mut muxer, mut receive) = muxer_by_hand(&guest);
    (0..50).for_each(|port| muxer.push_reset(guest.header(port, 1, Op::Reset)));
    for _ in 0..60 {
        receive.add(&[into(0x1_0000, RECEIVE_BUFFER_LEN)]);
    }
    muxer.turn().expect("a batch");
    assert_eq!((receive.used().len(), guest.interrupt.signals()), (50, 1));
}

#[test]
fn the_news_that_a_packet_is_out_comes_with_what_the_guest_gets_next() {
    let mut guest = Guest::new();
    guest.control(1, 1, Op::Reset);
    let _program = guest.program(1025);
    eventually("both queues are told of", || guest.interrupt.signals() == 2);
    assert_eq!(guest.interrupt.rings(), 1, "the driver has asked, but nothing waits for it");
}

impl Guest {
    /// Proves with a dropped packet that the device has taken a turn without putting anything into a buffer.
    fn quiet_queue(&mut self) {
        self.control(1, 1, Op::Reset);
        assert!(self.receive.used().is_empty());
    }
}
