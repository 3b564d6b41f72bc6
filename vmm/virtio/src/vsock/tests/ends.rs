//! Half-closes and ends: no byte is lost on the way.

use super::*;

#[test]
fn the_hosts_half_close_comes_after_every_byte_and_leaves_the_other_way_open() {
    const LEN: usize = 3 << 20;
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    let mut writer = program.try_clone().expect("clone");
    let sender = std::thread::spawn(move || {
        writer.write_all(&pattern(LEN, 0)).expect("write");
        writer.shutdown(Shutdown::Write).expect("shutdown");
    });
    let mut received = Vec::new();
    let last = loop {
        let (header, payload) = guest.next();
        match header.op {
            Op::Data => received.extend(payload),
            Op::CreditRequest => (),
            _ => break header,
        }
        guest.control(host, 1025, Op::CreditUpdate);
    };
    sender.join().expect("sender");
    assert_eq!((last.op, last.flags), (Op::Shutdown, NO_MORE_SEND));
    assert!(received == pattern(LEN, 0), "bytes were lost or mixed up");
    guest.data(host, 1025, b"still open");
    let mut seen = [0; 10];
    program.read_exact(&mut seen).expect("read");
    assert_eq!(&seen, b"still open");
}

#[test]
fn a_program_that_leaves_right_after_writing_loses_nothing() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    program.write_all(&pattern(100_000, 1)).expect("write");
    drop(program);
    let mut received = Vec::new();
    while received.len() < 100_000 {
        received.extend(guest.next().1);
    }
    assert!(received == pattern(100_000, 1));
    let mut flags = 0;
    while flags != NO_MORE_SEND | NO_MORE_RECEIVE {
        flags |= guest.expect(Op::Shutdown).flags;
    }
    // What the guest sends now is taken and forgotten, and its reset ends the connection.
    guest.data(host, 1025, b"late");
    guest.control(host, 1025, Op::Reset);
    guest.quiet();
}

#[test]
fn a_guest_that_closes_right_after_writing_to_a_slow_program_loses_nothing() {
    const LEN: usize = 250_000;
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    for part in pattern(LEN, 2).chunks(PAYLOAD_MAX as usize) {
        guest.data(host, 1025, part);
    }
    guest.shutdown(host, 1025, NO_MORE_SEND | NO_MORE_RECEIVE);
    // The guest is rid of the connection before the program has read a byte.
    loop {
        let (header, _) = guest.next();
        if header.op == Op::Reset {
            break;
        }
        assert_eq!(header.op, Op::CreditUpdate);
    }
    guest.control(host, 1025, Op::Data);
    guest.expect(Op::Reset);
    let mut received = Vec::new();
    program.read_to_end(&mut received).expect("end of file");
    assert!(received == pattern(LEN, 2), "{} of {LEN} bytes came", received.len());
}

#[test]
fn the_guests_half_close_comes_after_every_byte() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    guest.data(host, 1025, b"last words");
    guest.shutdown(host, 1025, NO_MORE_SEND);
    let mut received = Vec::new();
    program.read_to_end(&mut received).expect("end of file");
    assert_eq!(received, b"last words");
    program.write_all(b"answer").expect("the other way is open");
    assert_eq!(guest.next().1, b"answer");
    guest.shutdown(host, 1025, NO_MORE_RECEIVE);
    guest.expect(Op::Reset);
}

#[test]
fn a_guest_that_takes_no_more_makes_the_programs_writes_fail() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    guest.shutdown(host, 1025, NO_MORE_RECEIVE);
    eventually("a failing write", || program.write_all(b"more").is_err());
    guest.data(host, 1025, b"still heard");
    let mut seen = [0; 11];
    program.read_exact(&mut seen).expect("read");
    assert_eq!(&seen, b"still heard");
}
