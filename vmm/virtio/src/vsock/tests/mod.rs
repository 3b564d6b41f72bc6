//! The socket device between a driver double and real unix sockets.

mod calls;
mod credit;
mod ends;
mod hostile;
mod queues;

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
