//! Windows: who may send how much.

use super::*;

#[test]
fn a_stalled_program_keeps_its_window_and_does_not_hold_up_another() {
    let mut guest = Guest::new();
    let mut stalled = guest.program(1025);
    let stalled_port = guest.accept(&mut stalled);
    let mut lively = guest.program(1025);
    let lively_port = guest.accept(&mut lively);
    let chunk = pattern(PAYLOAD_MAX as usize, 3);
    let mut sent = 0;
    let refused = loop {
        guest.data(stalled_port, 1025, &chunk);
        sent += chunk.len();
        guest.data(lively_port, 1025, b"x");
        let mut seen = [0];
        lively.read_exact(&mut seen).expect("the lively one is served");
        guest.collect();
        if let Some((header, _)) = guest.arrived.iter().find(|(header, _)| header.op == Op::Reset) {
            break *header;
        }
        assert!(sent < 4 << 20, "a stalled program's bytes are kept without bound");
    };
    assert_eq!(refused.source_port, stalled_port);
    // All but the packet that broke the rule is delivered.
    let mut received = Vec::new();
    stalled.read_to_end(&mut received).expect("end of file");
    assert_eq!(received.len(), sent - chunk.len());
}

#[test]
fn credit_comes_back_only_for_bytes_that_the_program_took() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let host = guest.accept(&mut program);
    let chunk = pattern(PAYLOAD_MAX as usize, 3);
    let mut sent = 0;
    // Fill the socket and then some of the window; the device says what was taken when asked.
    let taken = loop {
        guest.data(host, 1025, &chunk);
        sent += chunk.len() as u32;
        guest.control(host, 1025, Op::CreditRequest);
        guest.collect();
        let told = guest.expect(Op::CreditUpdate);
        if told.taken < sent {
            break told.taken;
        }
    };
    let mut seen = vec![0; sent as usize];
    program.read_exact(&mut seen).expect("read");
    eventually("the rest of the credit", || {
        guest.control(host, 1025, Op::CreditRequest);
        guest.expect(Op::CreditUpdate).taken == sent
    });
    assert!(taken < sent);
}

#[test]
fn without_credit_the_guest_gets_one_request_for_it_and_no_data() {
    let mut guest = Guest::new();
    let mut program = guest.program(1025);
    let request = guest.expect(Op::Request);
    let host = request.source_port;
    guest.send(Header { window: 0, ..guest.header(host, 1025, Op::Response) }, &[]);
    assert_eq!(read_line(&mut program), format!("OK {host}\n"));
    program.write_all(b"patience").expect("write");
    guest.expect(Op::CreditRequest);
    guest.send(Header { window: 0, ..guest.header(host, 1025, Op::CreditUpdate) }, &[]);
    guest.quiet();
    guest.send(Header { window: 3, ..guest.header(host, 1025, Op::CreditUpdate) }, &[]);
    assert_eq!(guest.next().1, b"pat");
    guest.expect(Op::CreditRequest);
    guest.control(host, 1025, Op::CreditUpdate);
    assert_eq!(guest.next().1, b"ience");
}
