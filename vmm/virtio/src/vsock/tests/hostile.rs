//! Packets of a guest that keeps to no rule.

use super::*;

#[test]
fn a_packet_under_a_false_name_is_dropped_and_to_a_false_address_reset() {
    let mut guest = Guest::new();
    let request = guest.header(AGENT_PORT, 5000, Op::Request);
    guest.send(Header { source_cid: 4, ..request }, &[]);
    guest.quiet();
    for strange in [Header { target_cid: 1, ..request }, Header { socket_type: 2, ..request }] {
        guest.send(strange, &[]);
        guest.expect(Op::Reset);
    }
    assert!(guest.calls.try_recv().is_err());
}

#[test]
fn resets_and_unknown_operations_for_nobody_cause_at_most_a_reset() {
    let mut guest = Guest::new();
    guest.control(1, 1, Op::Reset);
    guest.quiet();
    for op in [0, 8, u16::MAX] {
        guest.control(1, 1, Op::Unknown(op));
        guest.expect(Op::Reset);
    }
}

#[test]
fn an_operation_out_of_order_ends_the_connection() {
    for op in [Op::Request, Op::Response, Op::Unknown(8), Op::Unknown(0)] {
        let mut guest = Guest::new();
        let mut program = guest.program(1025);
        let host = guest.accept(&mut program);
        guest.control(host, 1025, op);
        guest.expect(Op::Reset);
        assert_eq!(program.read(&mut [0]).expect("end of file"), 0, "{op:?}");
    }
}

// the length that the header tells against the bytes that there are.
#[test]
fn a_length_that_is_not_the_payloads_ends_the_connection() {
    for (told, real) in
        [(1u32, 0usize), (0, 1), (43, 44), (45, 44), (PAYLOAD_MAX, 1), (u32::MAX, 64), (PAYLOAD_MAX + 1, 16)]
    {
        let mut guest = Guest::new();
        let mut program = guest.program(1025);
        let host = guest.accept(&mut program);
        guest.send(Header { len: told, ..guest.header(host, 1025, Op::Data) }, &vec![b'x'; real]);
        guest.expect(Op::Reset);
        let mut received = Vec::new();
        program.read_to_end(&mut received).expect("end of file");
        assert!(received.is_empty(), "told {told}, sent {real}");
    }
}

// another vCPU changes the header while the packet is handled. One copy decides, so the program gets the whole payload or none of it.
#[test]
fn a_header_that_changes_while_it_is_handled_is_read_once() {
    let mut guest = Guest::new();
    let memory = guest.memory.clone();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = over.clone();
    let villain = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            for len in [64u32, 63, u32::MAX] {
                memory.write_obj(len, GuestAddress(TRANSMIT_BUFFER_AT + 24)).expect("header");
            }
        }
    });
    for _ in 0..100 {
        let mut program = guest.program(1025);
        let request = loop {
            let (header, _) = guest.next();
            if header.op == Op::Request {
                break header;
            }
        };
        // The villain flips this one too, so the call may be reset at once.
        guest.control(request.source_port, 1025, Op::Response);
        guest.data(request.source_port, 1025, &[b'x'; 64]);
        guest.control(request.source_port, 1025, Op::Reset);
        let mut received = Vec::new();
        program.shutdown(Shutdown::Write).expect("shutdown");
        while program.read_to_end(&mut received).is_err() {
            guest.control(request.source_port, 1025, Op::Reset);
        }
        let payload = received.iter().filter(|byte| **byte == b'x').count();
        assert!(payload == 0 || payload == 64, "{payload} of 64 bytes");
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    villain.join().expect("villain");
}

#[test]
fn a_packet_shorter_than_a_header_or_longer_than_the_limit_asks_for_a_reset_of_the_device() {
    for len in [0, 1, HEADER_LEN as u32 - 1, HEADER_LEN as u32 + PAYLOAD_MAX + 1] {
        let mut guest = Guest::new();
        guest.transmit.add(&[out(TRANSMIT_BUFFER_AT, len)]);
        guest.transmit.kick();
        assert!(guest.interrupt.wait_for_reset(), "{len} bytes");
    }
}
