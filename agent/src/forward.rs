//! Connections of the host that are joined to servers on the loopback, which is that of the pod's containers.
//!
//! The host names a port, and by which family it was asked. A server that listens on the other one only is found, too: who forwards a port
//! means the server, and the host's side has taken the connection before it can know which family that listens on.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use agent_protocol::forward::{FORWARDS_MAX, Forward, JOINED};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error},
};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional_with_sizes},
    sync::Semaphore,
    time::timeout,
};

use crate::socket::Socket;

/// Longest time until a server has taken the connection. One whose queue is full does not refuse.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Buffer of each direction.
const BUFFER_BYTES: usize = 16 << 10;

/// Counts them; clones share the count.
#[derive(Clone)]
pub struct Forwards(Arc<Semaphore>);

impl Default for Forwards {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FORWARDS_MAX)))
    }
}

impl Forwards {
    /// Joins a stream to a server until both directions have ended. Where there is none, or no room, the stream is closed.
    pub async fn serve(&self, forward: Forward, mut stream: Socket) {
        let Ok(_place) = self.0.try_acquire() else {
            return log::debug!("a connection to port {} is closed: {FORWARDS_MAX} are there", forward.port);
        };
        let joined = async {
            let mut server = timeout(CONNECT_DEADLINE, connect_either(forward)).await??;
            stream.write_all(&[JOINED]).await?;
            copy_bidirectional_with_sizes(&mut stream, &mut server, BUFFER_BYTES, BUFFER_BYTES).await
        };
        if let Err(error) = joined.await {
            log::debug!("a connection to port {} of the loopback ended: {error}", forward.port);
        }
    }
}

async fn connect_either(Forward { six, port }: Forward) -> io::Result<Socket> {
    let (four, six_is) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    let (first, second) = if six { (six_is, four) } else { (four, six_is) };
    match connect_to(first).await {
        Ok(server) => Ok(server),
        // Of two refusals that of the family that was asked for is told.
        Err(error) => connect_to(second).await.map_err(|_| error),
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<Socket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let socket = Socket::new(socket)?;
    drop(socket.ready().writable().await?);
    socket_error(&socket)??;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener},
        os::unix::net::UnixStream,
    };

    use agent_protocol::stream_header;

    use super::*;
    use crate::streams::Streams;

    /// Long enough for every test.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// The host's end of a stream that asks for a port.
    fn ask(streams: &Streams, forward: Forward) -> UnixStream {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        host.write_all(&stream_header(forward.number())).unwrap();
        tokio::spawn(streams.clone().introduce(guest.into()));
        host
    }

    /// Reads all, then answers with it, reversed.
    fn serve_one(listener: TcpListener) {
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all.reverse();
            peer.write_all(&all).unwrap();
        });
    }

    async fn conversation(mut host: UnixStream) -> Vec<u8> {
        let talk = move || {
            let mut joined = [0];
            host.read_exact(&mut joined).unwrap();
            assert_eq!(joined, [JOINED]);
            host.write_all(b"abc").unwrap();
            host.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            host.read_to_end(&mut answer).unwrap();
            answer
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    #[tokio::test]
    async fn a_server_is_reached_by_either_family_whichever_it_listens_on() {
        let streams = Streams::default();
        for place in ["127.0.0.1:0", "[::1]:0"] {
            for six in [false, true] {
                let Ok(listener) = TcpListener::bind(place) else { return eprintln!("skipped: no {place} here") };
                let port = listener.local_addr().unwrap().port();
                serve_one(listener);
                assert_eq!(conversation(ask(&streams, Forward { six, port })).await, b"cba", "{place} by IPv6: {six}");
            }
        }
    }

    #[tokio::test]
    async fn a_port_without_a_server_is_closed_without_a_word() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut host = ask(&Streams::default(), Forward { six: false, port });
        let read = tokio::task::spawn_blocking(move || host.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap(), 0);
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_the_others_stay() {
        let streams = Streams::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = Forward { six: false, port: listener.local_addr().unwrap().port() };
        let mut hosts = Vec::new();
        for _ in 0..FORWARDS_MAX {
            let (host, read) = first_byte(ask(&streams, forward)).await;
            assert_eq!(read, Some(JOINED));
            hosts.push((host, listener.accept().unwrap()));
        }
        assert_eq!(first_byte(ask(&streams, forward)).await.1, None);
        drop(hosts.pop());
        // The place is free when the agent has seen the end of both, which nothing tells.
        while first_byte(ask(&streams, forward)).await.1.is_none() {}
    }

    async fn first_byte(mut host: UnixStream) -> (UnixStream, Option<u8>) {
        let read = move || {
            let mut byte = [0];
            let len = host.read(&mut byte).unwrap();
            (host, (len == 1).then_some(byte[0]))
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}
