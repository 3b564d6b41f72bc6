//! Who calls whom, and how many at once.

use super::*;

#[test]
fn a_host_program_calls_the_guest_and_bytes_go_both_ways() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    program.write_all(b"to the guest").expect("write");
    let (header, payload) = guest.next();
    assert_eq!((header.op, payload.as_slice()), (Op::Data, &b"to the guest"[..]));
    guest.data(host, 1025, b"to the host");
    let mut seen = [0; 11];
    program.read_exact(&mut seen).expect("read");
    assert_eq!(&seen, b"to the host");
}

#[test]
fn what_a_program_sends_with_its_greeting_goes_to_the_guest() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    program.write_all(b"early").expect("write");
    guest.accept(&mut program);
    assert_eq!(guest.next().1, b"early");
}

#[test]
fn a_guest_that_refuses_closes_the_programs_stream() {
    let mut guest = Guest::new();
    let mut program = guest.program(7);
    let request = guest.expect(Op::Request);
    guest.control(request.source_port, 7, Op::Reset);
    assert_eq!(program.read(&mut [0]).expect("end of file"), 0);
}

#[test]
fn the_guest_may_make_each_of_its_calls_once_and_no_other() {
    let mut guest = Guest::new();
    guest.control(AGENT_PORT, 5000, Op::Request);
    guest.expect(Op::Response);
    assert_eq!(guest.calls.recv_timeout(Duration::from_secs(10)), Ok(AGENT_PORT));
    guest.data(AGENT_PORT, 5000, b"kata-rs-agent 1 0.1.0\n");
    assert_eq!(read_line(&mut guest.agent), "kata-rs-agent 1 0.1.0\n");
    guest.agent.write_all(b"ttrpc").expect("write");
    assert_eq!(guest.next().1, b"ttrpc");
    for port in [AGENT_PORT, AGENT_PORT + 1, 22, u32::MAX] {
        guest.control(port, 5001, Op::Request);
        let reset = guest.expect(Op::Reset);
        assert_eq!((reset.source_port, reset.target_port), (port, 5001));
    }
    assert!(guest.calls.try_recv().is_err());
}

#[test]
fn programs_that_say_nothing_make_room_for_others() {
    let mut guest = Guest::new();
    let path = guest.folder.path().join("vsock");
    let mut silent: Vec<_> = (0..80).map(|_| UnixStream::connect(&path).expect("connect")).collect();
    let mut program = guest.program(1025);
    guest.accept(&mut program);
    assert_eq!(silent[0].read(&mut [0]).expect("pushed out"), 0);
}

#[test]
fn calls_over_the_limit_of_connections_are_closed() {
    let mut guest = Guest::new();
    let programs: Vec<_> = (0..muxer::CONNECTIONS_MAX)
        .map(|_| {
            let mut program = guest.program(1025);
            guest.accept(&mut program);
            program
        })
        .collect();
    let mut one_more = guest.program(1025);
    assert_eq!(one_more.read(&mut [0]).expect("closed"), 0);
    drop(programs);
}

#[test]
fn a_reset_device_closes_its_streams_and_serves_the_next_guest() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    guest.accept(&mut program);
    assert_eq!(guest.vsock.stop().len(), 3);
    assert!(guest.vsock.stop().is_empty());
    assert_eq!(program.read(&mut [0]).expect("closed"), 0);
    guest.receive.start_over();
    guest.transmit.start_over();
    guest.offer_all();
    guest.activate();
    let mut program = guest.program(1026);
    guest.accept(&mut program);
    guest.control(AGENT_PORT, 5000, Op::Request);
    guest.expect(Op::Response);
}
