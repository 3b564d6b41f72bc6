//! The file system device against a scripted server, and against the real one when the environment names it.

use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::*;
use crate::driver::{self, DriverQueue, RecordedInterrupt, into, out};

/// Names the file server to test against.
const SERVER_VARIABLE: &str = "KATA_RS_TEST_VIRTIOFSD";

fn shared_memory(len: usize) -> GuestMemoryMmap {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd"));
    file.set_len(len as u64).expect("size");
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, Some(FileOffset::new(file, 0)))]).expect("memory")
}

/// A server that answers what its script says: for each request its number and, if it is to fail, a code.
struct Server {
    features: u64,
    queues: u64,
    refuses: Option<u32>,
    leaves_at: Option<u32>,
}

const OFFERED: u64 = FEATURES | message::FEATURE_PROTOCOL;

impl Server {
    fn good() -> Self {
        Self { features: OFFERED, queues: 2, refuses: None, leaves_at: None }
    }

    /// Serves until the other end closes; returns the numbers of the requests it saw.
    fn run(self, mut stream: UnixStream) -> JoinHandle<Vec<u32>> {
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut header = [0u8; 12];
            while stream.read_exact(&mut header).is_ok() {
                let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
                let (request, flags, len) = (word(0), word(4), word(8));
                let mut payload = vec![0; len as usize];
                stream.read_exact(&mut payload).expect("payload");
                seen.push(request);
                if self.leaves_at == Some(request) {
                    break;
                }
                if let Some(answer) = self.answer(request, flags, &payload) {
                    let mut reply = Vec::new();
                    for word in [request, 5, answer.len() as u32] {
                        reply.extend(word.to_ne_bytes());
                    }
                    reply.extend(answer);
                    if stream.write_all(&reply).is_err() {
                        break;
                    }
                }
            }
            seen
        })
    }

    fn answer(&self, request: u32, flags: u32, payload: &[u8]) -> Option<Vec<u8>> {
        let number = |value: u64| Some(value.to_ne_bytes().to_vec());
        match request {
            1 => number(self.features),
            15 => number(message::PROTOCOL_MQ | message::PROTOCOL_REPLY_ACK),
            17 => number(self.queues),
            11 => Some([&payload[..4], &7u32.to_ne_bytes()].concat()),
            _ if flags & 8 != 0 => number(u64::from(self.refuses == Some(request)) * 22),
            _ => None,
        }
    }
}

struct Bench {
    fs: VhostUserFs,
    urgent: DriverQueue,
    requests: DriverQueue,
    memory: GuestMemoryMmap,
    interrupt: Arc<RecordedInterrupt>,
}

impl Bench {
    fn over(stream: UnixStream, memory: GuestMemoryMmap) -> Self {
        Self {
            fs: VhostUserFs::connect("fs0", "kata-rs", stream).expect("a device"),
            urgent: DriverQueue::new(&memory, 0x1000, QUEUE_SIZE),
            requests: DriverQueue::new(&memory, 0x4000, QUEUE_SIZE),
            interrupt: RecordedInterrupt::new(),
            memory,
        }
    }

    fn with(server: Server) -> (Self, JoinHandle<Vec<u32>>) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        (Self::over(ours, shared_memory(1 << 20)), server.run(theirs))
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let queues = [&self.urgent, &self.requests];
        self.fs.activate(driver::activation(&self.memory, FEATURES, &queues, &self.interrupt))
    }
}

#[test]
fn the_server_is_told_of_memory_before_rings_and_its_positions_come_back() {
    let (mut bench, server) = Bench::with(Server::good());
    bench.activate().expect("starts");
    let states = bench.fs.stop();
    assert_eq!(states.iter().map(|state| state.next_avail).collect::<Vec<_>>(), [7, 7]);
    assert!(bench.fs.stop().is_empty());
    // A second life needs no second introduction.
    bench.activate().expect("starts again");
    bench.fs.stop();
    assert!(!bench.interrupt.reset_asked());
    drop(bench);
    let life = [17, 2, 5, 8, 9, 10, 13, 12, 18, 8, 9, 10, 13, 12, 18, 11, 11];
    assert_eq!(server.join().expect("server"), [&[1, 15, 16, 3][..], &life, &life].concat());
}

#[test]
fn a_server_that_lacks_refuses_or_leaves_fails_the_activation() {
    let servers = [
        (Server { features: 1 << 32, ..Server::good() }, "protocol features"),
        (Server { features: OFFERED & !(1 << 29), ..Server::good() }, "the features that the driver chose"),
        (Server { queues: 1, ..Server::good() }, "enough queues"),
        (Server { refuses: Some(5), ..Server::good() }, "it refused SetMemTable with code 22"),
        (Server { leaves_at: Some(1), ..Server::good() }, "still running"),
        (Server { leaves_at: Some(12), ..Server::good() }, "still running"),
    ];
    for (server, reason) in servers {
        let (mut bench, server) = Bench::with(server);
        let error = bench.activate().expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
        assert!(bench.fs.stop().is_empty());
        drop(bench);
        server.join().expect("server");
    }
}

#[test]
fn memory_that_cannot_be_shared_fails_the_activation() {
    let (mut bench, server) = Bench::with(Server::good());
    bench.memory = driver::memory(1 << 20);
    let error = bench.activate().expect_err("anonymous memory").to_string();
    assert!(error.contains("a region without a file"), "{error}");
    drop(bench);
    server.join().expect("server");
}

#[test]
fn a_server_that_dies_asks_for_a_reset_and_tells_the_machine_once() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let mut bench = Bench::over(ours, shared_memory(1 << 20));
    let killer = theirs.try_clone().expect("clone");
    let server = Server::good().run(theirs);
    bench.activate().expect("starts");
    killer.shutdown(std::net::Shutdown::Both).expect("kill");
    assert!(bench.interrupt.wait_for_reset());
    assert_eq!(bench.fs.stop().len(), 2);
    assert_eq!(bench.interrupt.losses().len(), 1);
    assert!(bench.interrupt.losses()[0].starts_with("the file server of share "), "{:?}", bench.interrupt.losses());
    server.join().expect("server");
}

#[test]
fn tags_that_do_not_fit_are_refused_and_others_are_shown_padded() {
    let stream = || UnixStream::pair().expect("sockets").0;
    assert!(VhostUserFs::connect("fs0", "", stream()).is_err());
    assert!(VhostUserFs::connect("fs0", &"x".repeat(TAG_LEN + 1), stream()).is_err());
    let fs = VhostUserFs::connect("fs0", "kata-rs", stream()).expect("a device");
    let mut config = [0; CONFIG_LEN];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..8], b"kata-rs\0");
    assert_eq!(config[TAG_LEN..], [1, 0, 0, 0]);
}

/// The real server, ended with its test.
struct RealServer(Child);

impl Drop for RealServer {
    fn drop(&mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

fn fuse(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    request.extend((40 + body.len() as u32).to_le_bytes());
    request.extend(opcode.to_le_bytes());
    request.extend(u64::from(opcode).to_le_bytes());
    request.extend(node.to_le_bytes());
    request.extend([0; 16]);
    request.extend(body);
    request
}

impl Bench {
    /// One FUSE request; returns the body of its answer.
    fn fuse(&mut self, request: &[u8]) -> Vec<u8> {
        const REQUEST_AT: u64 = 0x1_0000;
        const ANSWER_AT: u64 = 0x2_0000;
        self.memory.write_slice(request, GuestAddress(REQUEST_AT)).expect("memory");
        let len = self.requests.call(&[out(REQUEST_AT, request.len() as u32), into(ANSWER_AT, 0x2000)]);
        let mut answer = vec![0; len as usize];
        self.memory.read_slice(&mut answer, GuestAddress(ANSWER_AT)).expect("memory");
        assert_eq!(i32::from_le_bytes(answer[4..8].try_into().expect("4 bytes")), 0, "FUSE error");
        assert_eq!(answer[8..16], request[8..16]);
        answer.split_off(16)
    }
}

#[test]
fn the_real_file_server_serves_a_file() {
    let Some(server) = std::env::var_os(SERVER_VARIABLE) else {
        assert!(std::env::var_os("CI").is_none(), "{SERVER_VARIABLE} names no virtiofsd, and in CI nothing is skipped");
        eprintln!("skipped: the_real_file_server_serves_a_file: {SERVER_VARIABLE} does not name a virtiofsd");
        return;
    };
    let folder = tempfile::TempDir::new().expect("folder");
    std::fs::write(folder.path().join("greeting"), "hello from the host").expect("file");
    let socket = tempfile::TempDir::new().expect("folder");
    let listener = UnixListener::bind(socket.path().join("fs")).expect("listener");
    let child = Command::new(server)
        .args(["--fd", "0", "--sandbox", "none", "--seccomp", "none", "--shared-dir"])
        .arg(folder.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .expect("the server starts");
    let _server = RealServer(child);
    let stream = UnixStream::connect(socket.path().join("fs")).expect("connect");
    let mut bench = Bench::over(stream, shared_memory(4 << 20));
    for life in 0..2 {
        bench.activate().expect("starts");
        read_greeting(&mut bench);
        // The call eventfd is the interrupt line itself.
        assert!(bench.interrupt.line().read().is_ok(), "no interrupt in life {life}");
        let states = bench.fs.stop();
        assert_eq!((states[1].next_avail, states[1].next_used), (4, 4));
        bench.requests.start_over();
        bench.urgent.start_over();
    }
    assert!(!bench.interrupt.reset_asked());
}

fn read_greeting(bench: &mut Bench) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let init = bench.fuse(&fuse(26, 0, &words(&[7, 31, 0, 0])));
    assert_eq!(init[..4], 7u32.to_le_bytes());
    let entry = bench.fuse(&fuse(1, 1, b"greeting\0"));
    let node = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
    let opened = bench.fuse(&fuse(14, node, &words(&[0, 0])));
    let mut read = opened[..8].to_vec();
    read.extend(words(&[0, 0, 4096, 0, 0, 0, 0, 0]));
    assert_eq!(bench.fuse(&fuse(15, node, &read)), b"hello from the host");
}
