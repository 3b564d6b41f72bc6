//! The socket device between a driver double and real unix sockets.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read, Write},
    net::Shutdown,
    sync::{Arc, mpsc},
    time::Duration,
};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    packet::{HEADER_LEN, Header, NO_MORE_RECEIVE, NO_MORE_SEND, Op, PAYLOAD_MAX, TYPE_STREAM},
    *,
};
use crate::driver::{self, DriverQueue, RecordedInterrupt, eventually, into, out};

const GUEST_CID: u32 = 3;
const AGENT_PORT: u32 = 1024;
const RECEIVE_BUFFERS_AT: u64 = 0x10_0000;
const RECEIVE_BUFFER_LEN: u32 = 4096;
const TRANSMIT_BUFFER_AT: u64 = 0x20_0000;
const GUEST_WINDOW: u32 = 256 * 1024;

/// A guest kernel's socket driver, small and obedient unless a test makes it otherwise.
struct Guest {
    vsock: Vsock,
    memory: GuestMemoryMmap,
    receive: DriverQueue,
    transmit: DriverQueue,
    event: DriverQueue,
    interrupt: Arc<RecordedInterrupt>,
    arrived: VecDeque<(Header, Vec<u8>)>,
    taken: BTreeMap<(u32, u32), u32>,
    folder: TempDir,
    agent: UnixStream,
    calls: mpsc::Receiver<u32>,
}

impl Guest {
    fn new() -> Self {
        let memory = driver::memory(4 << 20);
        let folder = TempDir::new().expect("folder");
        let listener = UnixListener::bind(folder.path().join("vsock")).expect("listener");
        let (agent, ours) = UnixStream::pair().expect("sockets");
        let mut vsock = Vsock::new(GUEST_CID, listener, vec![(AGENT_PORT, ours)]);
        let (called, calls) = mpsc::channel();
        vsock.on_guest_call(Box::new(move |port| called.send(port).expect("the test listens")));
        let mut guest = Self {
            vsock,
            receive: DriverQueue::new(&memory, 0x1000, QUEUE_SIZE),
            transmit: DriverQueue::new(&memory, 0x4000, QUEUE_SIZE),
            event: DriverQueue::new(&memory, 0x8000, EVENT_QUEUE_SIZE),
            interrupt: RecordedInterrupt::new(),
            arrived: VecDeque::new(),
            taken: BTreeMap::new(),
            folder,
            agent,
            calls,
            memory,
        };
        guest.offer_all();
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        let features = self.vsock.traits().features;
        let queues = [&self.receive, &self.transmit, &self.event];
        let with = driver::activation(&self.memory, features, &queues, &self.interrupt);
        self.vsock.activate(with).expect("starts");
    }

    fn offer_all(&mut self) {
        for index in 0..u64::from(QUEUE_SIZE) {
            let address = RECEIVE_BUFFERS_AT + index * u64::from(RECEIVE_BUFFER_LEN);
            self.receive.add(&[into(address, RECEIVE_BUFFER_LEN)]);
        }
    }

    /// A host program that has said which port it wants.
    fn program(&self, port: u32) -> UnixStream {
        let mut program = UnixStream::connect(self.folder.path().join("vsock")).expect("connect");
        program.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        program.write_all(format!("CONNECT {port}\n").as_bytes()).expect("greeting");
        program
    }

    fn header(&self, host: u32, guest: u32, op: Op) -> Header {
        Header {
            source_cid: u64::from(GUEST_CID),
            target_cid: 2,
            source_port: guest,
            target_port: host,
            len: 0,
            socket_type: TYPE_STREAM,
            op,
            flags: 0,
            window: GUEST_WINDOW,
            taken: self.taken.get(&(host, guest)).copied().unwrap_or(0),
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.memory.write_slice(&header.to_bytes(), GuestAddress(TRANSMIT_BUFFER_AT)).expect("buffer");
        self.memory.write_slice(payload, GuestAddress(TRANSMIT_BUFFER_AT + 64)).expect("buffer");
        let mut buffers = vec![out(TRANSMIT_BUFFER_AT, HEADER_LEN as u32)];
        if !payload.is_empty() {
            buffers.push(out(TRANSMIT_BUFFER_AT + 64, payload.len() as u32));
        }
        self.transmit.call(&buffers);
    }

    fn control(&mut self, host: u32, guest: u32, op: Op) {
        self.send(self.header(host, guest, op), &[]);
    }

    fn shutdown(&mut self, host: u32, guest: u32, flags: u32) {
        self.send(Header { flags, ..self.header(host, guest, Op::Shutdown) }, &[]);
    }

    fn data(&mut self, host: u32, guest: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        self.send(Header { len, ..self.header(host, guest, Op::Data) }, payload);
    }

    /// Takes in what the device has put into receive buffers, and offers those again.
    fn collect(&mut self) {
        for (head, written) in self.receive.used() {
            let at = RECEIVE_BUFFERS_AT + u64::from(head) * u64::from(RECEIVE_BUFFER_LEN);
            let mut header = [0; HEADER_LEN];
            self.memory.read_slice(&mut header, GuestAddress(at)).expect("buffer");
            let header = Header::parse(header);
            assert_eq!(written, header.len + HEADER_LEN as u32);
            let mut payload = vec![0; header.len as usize];
            self.memory.read_slice(&mut payload, GuestAddress(at + HEADER_LEN as u64)).expect("buffer");
            *self.taken.entry((header.source_port, header.target_port)).or_default() += header.len;
            self.arrived.push_back((header, payload));
            self.receive.offer(head);
        }
        self.receive.kick();
    }

    fn next(&mut self) -> (Header, Vec<u8>) {
        eventually("a packet", || {
            self.collect();
            !self.arrived.is_empty()
        });
        self.arrived.pop_front().expect("waited for")
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.next();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    /// Accepts the call of a host program; returns its host port.
    fn accept(&mut self, program: &mut UnixStream) -> u32 {
        let request = self.expect(Op::Request);
        let (host, guest) = (request.source_port, request.target_port);
        self.control(host, guest, Op::Response);
        assert_eq!(read_line(program), format!("OK {host}\n"));
        host
    }

    fn quiet(&mut self) {
        // A packet that is answered proves that everything before it was handled.
        self.control(9, 9, Op::CreditRequest);
        let (header, _) = self.next();
        assert_eq!((header.op, header.source_port, header.target_port), (Op::Reset, 9, 9), "a packet too many");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.vsock.stop();
    }
}

fn read_line(from: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        from.read_exact(&mut byte).expect("a line");
        line.extend(byte);
    }
    String::from_utf8(line).expect("text")
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|position| ((position + seed) / 13) as u8).collect()
}

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
    assert_eq!(guest.interrupt.signals(), 0, "the driver has asked, but nothing waits for it");
    let _program = guest.program(1025);
    eventually("both queues are told of", || guest.interrupt.signals() == 2);
}

impl Guest {
    /// Proves with a dropped packet that the device has taken a turn without putting anything into a buffer.
    fn quiet_queue(&mut self) {
        self.control(1, 1, Op::Reset);
        assert!(self.receive.used().is_empty());
    }
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
