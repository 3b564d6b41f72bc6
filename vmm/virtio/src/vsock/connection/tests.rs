//! The state machine against chosen and random sequences.

use proptest::prelude::*;

use super::*;

fn header(op: Op) -> Header {
    Header {
        source_cid: 3,
        target_cid: 2,
        source_port: 1,
        target_port: 2,
        len: 0,
        socket_type: 1,
        op,
        flags: 0,
        window: 1000,
        taken: 0,
    }
}

fn packet(op: Op) -> Event {
    Event::Packet(header(op))
}

fn data(len: u32) -> Event {
    Event::Packet(Header { len, ..header(Op::Data) })
}

fn shutdown(flags: u32) -> Event {
    Event::Packet(Header { flags, ..header(Op::Shutdown) })
}

fn open(window: u32) -> Connection {
    let mut connection = Connection::accepting(window, &header(Op::Request));
    connection.sent(Op::Response, 0, 0);
    connection
}

#[test]
fn a_call_is_asked_once_and_open_after_the_answer() {
    let mut connection = Connection::calling(100);
    assert_eq!(connection.next(true), Some(Next::Control { op: Op::Request, flags: 0 }));
    connection.sent(Op::Request, 0, 0);
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.on(packet(Op::Response)), Action::Established);
    assert_eq!(connection.next(true), Some(Next::Data { max: 1000 }));
}

#[test]
fn an_answer_before_the_question_breaks_the_rules() {
    assert_eq!(Connection::calling(100).on(packet(Op::Response)), Action::Leave { reset: true });
}

#[test]
fn a_call_without_an_answer_ends_at_its_deadline_and_an_open_connection_has_none() {
    let mut connection = Connection::calling(100);
    assert_eq!(connection.on(Event::Deadline), Action::Leave { reset: false });
    connection.sent(Op::Request, 0, 0);
    assert_eq!(connection.on(Event::Deadline), Action::Leave { reset: true });
    assert_eq!(open(100).on(Event::Deadline), Action::Nothing);
}

#[test]
fn the_window_is_enforced_to_the_byte() {
    let mut connection = open(100);
    assert_eq!(connection.on(data(60)), Action::Deliver);
    assert_eq!(connection.on(data(40)), Action::Deliver);
    assert_eq!(connection.clone().on(data(1)), Action::Leave { reset: true });
    connection.on(Event::HostTook(1));
    assert_eq!(connection.on(data(1)), Action::Deliver);
}

#[test]
fn an_update_is_due_at_half_the_window_and_not_before() {
    let mut connection = open(100);
    connection.on(data(100));
    connection.on(Event::HostTook(49));
    assert_eq!(connection.next(false), None);
    connection.on(Event::HostTook(1));
    assert_eq!(connection.next(false), Some(Next::Control { op: Op::CreditUpdate, flags: 0 }));
    assert_eq!(connection.sent(Op::CreditUpdate, 0, 0), (100, 50));
    assert_eq!(connection.next(false), None);
}

#[test]
fn the_guest_is_told_of_the_hosts_end_once_and_with_all_flags() {
    let mut connection = open(100);
    connection.on(Event::HostEnd);
    let end = Next::Control { op: Op::Shutdown, flags: NO_MORE_SEND };
    assert_eq!(connection.next(true), Some(end));
    connection.sent(Op::Shutdown, NO_MORE_SEND, 0);
    assert_eq!(connection.next(true), None);
    connection.on(Event::HostGone);
    assert_eq!(connection.next(true), Some(Next::Control { op: Op::Shutdown, flags: NO_MORE }));
}

#[test]
fn both_shutdowns_end_the_connection_however_they_come() {
    assert_eq!(open(100).on(shutdown(NO_MORE)), Action::Leave { reset: true });
    let mut connection = open(100);
    assert_eq!(connection.on(shutdown(NO_MORE_RECEIVE)), Action::Refuse);
    assert_eq!(connection.on(shutdown(NO_MORE_RECEIVE)), Action::Nothing);
    assert_eq!(connection.next(true), None);
    assert_eq!(connection.on(shutdown(NO_MORE_SEND)), Action::Leave { reset: true });
}

#[test]
fn data_after_the_guests_own_end_breaks_the_rules() {
    let mut connection = open(100);
    assert_eq!(connection.on(shutdown(NO_MORE_SEND)), Action::Finish);
    assert_eq!(connection.on(data(1)), Action::Leave { reset: true });
}

#[test]
fn data_for_a_host_that_is_gone_frees_the_window_at_once() {
    let mut connection = open(100);
    connection.on(Event::HostGone);
    for _ in 0..10 {
        assert_eq!(connection.on(data(100)), Action::Nothing);
    }
}

#[test]
fn counters_go_round_at_two_to_the_thirty_two() {
    let mut connection = open(1 << 20);
    for round in 0..10_000u32 {
        assert_eq!(connection.on(data(1 << 20)), Action::Deliver, "round {round}");
        connection.on(Event::HostTook(1 << 20));
        connection.sent(Op::CreditUpdate, 0, 0);
    }
}

#[derive(Debug, Clone)]
enum Move {
    Happens(Event),
    Sends { readable: bool, len: u32 },
}

fn any_move() -> impl Strategy<Value = Move> {
    let op = prop_oneof![
        Just(Op::Request),
        Just(Op::Response),
        Just(Op::Reset),
        Just(Op::Shutdown),
        Just(Op::Data),
        Just(Op::CreditUpdate),
        Just(Op::CreditRequest),
        any::<u16>().prop_map(|number| Op::Unknown(number.max(8))),
    ];
    let number = || prop_oneof![0u32..300, any::<u32>()];
    let packet = (op, number(), 0u32..4, number(), number())
        .prop_map(|(op, len, flags, window, taken)| Event::Packet(Header { len, flags, window, taken, ..header(op) }));
    prop_oneof![
        6 => packet.prop_map(Move::Happens),
        1 => Just(Move::Happens(Event::HostEnd)),
        1 => Just(Move::Happens(Event::HostGone)),
        3 => (0u32..200).prop_map(|bytes| Move::Happens(Event::HostTook(bytes))),
        1 => Just(Move::Happens(Event::Deadline)),
        8 => (any::<bool>(), 1u32..400).prop_map(|(readable, len)| Move::Sends { readable, len }),
    ]
}

proptest! {
    // Whatever the guest says and whatever happens on the host: no more is kept than was granted, no more is sent than the
    // guest allowed by its own figures, and nothing follows the end.
    #[test]
    fn no_sequence_breaks_the_promises(calls: bool, moves in prop::collection::vec(any_move(), 0..200)) {
        const WINDOW: u32 = 256;
        let mut connection =
            if calls { Connection::calling(WINDOW) } else { Connection::accepting(WINDOW, &header(Op::Request)) };
        let (mut kept, mut ended, mut requests, mut allowed) = (0u32, false, 0, (1000u32, 0u32, 0u32));
        for step in moves {
            match step {
                // The host takes no more than there is.
                Move::Happens(Event::HostTook(bytes)) => {
                    let bytes = bytes.min(kept);
                    kept -= bytes;
                    prop_assert_eq!(connection.on(Event::HostTook(bytes)), Action::Nothing);
                }
                Move::Happens(event) => {
                    if let Event::Packet(header) = event {
                        (allowed.0, allowed.1) = (header.window, header.taken);
                    }
                    if event == Event::HostEnd && connection.waits_for_answer() {
                        continue;
                    }
                    ended |= event == Event::HostEnd;
                    match (connection.on(event), event) {
                        (Action::Deliver, Event::Packet(header)) => {
                            kept += header.len;
                            prop_assert!(kept <= WINDOW, "{} bytes kept", kept);
                        }
                        (Action::Leave { .. }, _) => return Ok(()),
                        _ => (),
                    }
                }
                Move::Sends { readable, len } => match connection.next(readable) {
                    Some(Next::Data { max }) => {
                        prop_assert!(readable && !ended);
                        let len = len.min(max);
                        allowed.2 = allowed.2.wrapping_add(len);
                        prop_assert!(allowed.2.wrapping_sub(allowed.1) <= allowed.0);
                        connection.sent(Op::Data, 0, len);
                    }
                    Some(Next::Control { op, flags }) => {
                        requests += u32::from(op == Op::Request);
                        prop_assert!(requests <= u32::from(calls));
                        connection.sent(op, flags, 0);
                        prop_assert_ne!(connection.next(readable), Some(Next::Control { op, flags }));
                    }
                    None => (),
                },
            }
        }
    }
}
