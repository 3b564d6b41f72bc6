//! Stories of a pod's loopback, told in a namespace of their own, as root, with a guest inside the test.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
};

use super::*;
use crate::network::stage::Stage;

/// A port that nobody serves in the guest; every other one answers.
const CLOSED: u16 = 9;
/// Longest that an answer takes here.
const PATIENCE: Duration = Duration::from_secs(10);

/// Many times what an answer takes that comes at once.
const A_WHILE: Duration = Duration::from_millis(300);

struct Scene {
    stage: Stage,
    _root: tempfile::TempDir,
    forwarding: Option<Forwarding>,
}

impl Scene {
    /// With servers of the namespace's own, which are there before.
    fn new(test: &str, own: &[&str]) -> Option<(Self, Vec<TcpListener>)> {
        let stage = Stage::new(test)?;
        stage.pod.run("ip address add 10.1.0.2/24 dev eth0");
        let own = own.iter().map(|place| listen(&stage, place)).collect();
        let root = tempfile::tempdir().expect("a folder");
        let state = Arc::new(StateDir::make(&root.path().join("pod")).expect("made"));
        let guest = UnixListener::bind(state.short_path(VSOCK_SOCKET)).expect("bound");
        std::thread::spawn(move || {
            guest.incoming().flatten().for_each(|stream| drop(std::thread::spawn(|| answer(stream))))
        });
        match Door::open(stage.pod.path(), state) {
            Ok(door) => {
                let (end, ended) = oneshot::channel::<()>();
                let task = tokio::spawn(door.forward(async move { drop(ended.await) }));
                Some((Self { stage, _root: root, forwarding: Some(Forwarding { task, end }) }, own))
            }
            Err(error) if error.message.contains("Invalid argument") && std::env::var_os("CI").is_none() => {
                eprintln!("skipped: {test} needs a kernel with sk_lookup: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().expect("one");
        let namespace = Namespace::open(self.stage.pod.path()).expect("kept");
        let client = namespace.within(|| Ok(TcpStream::connect_timeout(&address, PATIENCE))).expect("entered")?;
        client.set_read_timeout(Some(PATIENCE))?;
        Ok(client)
    }

    /// What somebody who says "hello" and is done is answered.
    async fn ask(&self, address: &str) -> std::io::Result<String> {
        let mut client = self.connect(address)?;
        spawn_blocking(move || {
            client.write_all(b"hello")?;
            client.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        })
        .await
        .expect("no panic")
    }
}

fn listen(stage: &Stage, place: &str) -> TcpListener {
    let namespace = Namespace::open(stage.pod.path()).expect("kept");
    namespace.within(|| Ok(TcpListener::bind(place).expect("bound"))).expect("entered")
}

/// The guest: says which port it was, by which family, and what it heard.
fn answer(mut stream: UnixStream) {
    let mut line = [0; 13];
    stream.read_exact(&mut line).expect("a line");
    assert_eq!(&line, b"CONNECT 1025\n");
    stream.write_all(b"OK 5000\n").expect("answered");
    let mut number = [0; 8];
    stream.read_exact(&mut number).expect("a number");
    let forward = Forward::of(agent_protocol::stream_number(number)).expect("of a forward");
    if forward.port == CLOSED {
        return;
    }
    stream.write_all(&[JOINED]).expect("told");
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("text");
    write!(stream, "{} {} {heard}", forward.six, forward.port).expect("answered");
}

/// What a server of the namespace says to its next client.
fn say(listener: TcpListener, word: &'static str) -> std::thread::JoinHandle<TcpListener> {
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("somebody");
        peer.read_to_string(&mut String::new()).expect("text");
        peer.write_all(word.as_bytes()).expect("said");
        listener
    })
}

#[tokio::test]
async fn needs_root_every_port_of_the_loopback_leads_to_the_guest() {
    let test = "needs_root_every_port_of_the_loopback_leads_to_the_guest";
    let Some((scene, _)) = Scene::new(test, &[]) else { return };
    for (address, answer) in [
        ("127.0.0.1:8080", "false 8080 hello"),
        ("127.1.2.3:1", "false 1 hello"),
        ("[::1]:65535", "true 65535 hello"),
        ("[::ffff:127.0.0.1]:80", "false 80 hello"),
    ] {
        assert_eq!(scene.ask(address).await.expect(address), answer, "{address}");
    }
}

#[tokio::test]
async fn needs_root_a_port_that_nobody_serves_is_reset() {
    let test = "needs_root_a_port_that_nobody_serves_is_reset";
    let Some((scene, _)) = Scene::new(test, &[]) else { return };
    for address in ["127.0.0.1:9", "[::1]:9"] {
        let mut client = scene.connect(address).expect("the handshake is the kernel's");
        let read = spawn_blocking(move || client.read(&mut [0])).await.expect("no panic");
        assert_eq!(read.expect_err(address).kind(), std::io::ErrorKind::ConnectionReset, "{address}");
    }
}

#[tokio::test]
async fn needs_root_other_addresses_are_not_taken() {
    let test = "needs_root_other_addresses_are_not_taken";
    let Some((scene, _)) = Scene::new(test, &[]) else { return };
    let error = scene.connect("10.1.0.2:8080").expect_err("nobody listens there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn needs_root_a_server_of_the_namespace_keeps_its_port() {
    let test = "needs_root_a_server_of_the_namespace_keeps_its_port";
    let Some((scene, own)) = Scene::new(test, &["127.0.0.1:80", "[::]:81"]) else { return };
    for (listener, addresses) in own.into_iter().zip([&["127.0.0.1:80"][..], &["127.0.0.1:81", "[::1]:81"]]) {
        let mut listener = listener;
        for address in addresses {
            let server = say(listener, "mine");
            assert_eq!(scene.ask(address).await.expect(address), "mine");
            listener = server.join().expect("no panic");
        }
    }
    let later = say(listen(&scene.stage, "127.0.0.1:9"), "later");
    assert_eq!(scene.ask("127.0.0.1:9").await.expect("joined"), "later");
    let later = say(later.join().expect("no panic"), "directly");
    assert_eq!(scene.ask("127.0.0.1:9").await.expect("its own"), "directly");
    drop(later.join());
    let error = scene.connect("127.0.0.1:9").expect_err("its port stays left to others");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn needs_root_at_most_so_many_connections_are_there_at_once() {
    let test = "needs_root_at_most_so_many_connections_are_there_at_once";
    let Some((scene, _)) = Scene::new(test, &[]) else { return };
    // On a thread of its own: the kernel's queue is shorter, so somebody has to accept meanwhile.
    let story = move || {
        let mut all: Vec<TcpStream> =
            (0..=FORWARDS_MAX).map(|_| scene.connect("127.0.0.1:8080").expect("connected")).collect();
        let mut last = all.pop().expect("one");
        last.write_all(b"hello").expect("queued");
        last.shutdown(Shutdown::Write).expect("done");
        last.set_read_timeout(Some(A_WHILE)).expect("set");
        let early = last.read(&mut [0; 64]).expect_err("it waits");
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        drop(all);
        last.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut answer = String::new();
        last.read_to_string(&mut answer).expect("its turn");
        assert_eq!(answer, "false 8080 hello");
    };
    spawn_blocking(story).await.expect("no panic");
}

#[tokio::test]
async fn needs_root_nothing_is_left_of_it() {
    let test = "needs_root_nothing_is_left_of_it";
    let Some((mut scene, _)) = Scene::new(test, &[]) else { return };
    let kept = scene.connect("127.0.0.1:8080").expect("taken");
    scene.forwarding.take().expect("once").end().await;
    let error = scene.connect("127.0.0.1:8080").expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!scene.stage.pod.run("ss -Hltn").contains("127.0.0.1"));
    drop(kept);
}
