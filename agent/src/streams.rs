//! Stdio connections that the host has made, each parked under its number until a process claims it.
//!
//! ```text
//!   accept -> read 8 bytes (deadline) -> parked[number] --claim--> stdio pump
//!                                          ^                |
//!                                          |   claim came first: it waits, with a deadline
//! ```
//! The host connects a stream before it names it, but the two travel on different connections, so a claim may come first.
//! Parked streams are bounded: past [`PARKED_MAX`] a new one is refused (closed), never an old one.
//! A number that asks for a port of the loopback is nobody's to claim: it goes to [`crate::forward`].

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use agent_protocol::{Forward, NO_STREAM, stream_number};
use rustix::net::SocketFlags;
use tokio::{io::Interest, sync::oneshot, time::timeout};

use crate::{forward::Forwards, socket::Socket, sys};

/// Most streams that wait for their process: the stdio of some eighty processes being created at one time.
pub const PARKED_MAX: usize = 256;
/// Longest time that a new connection may take to say its number.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time that a process waits for a stream which its request named.
pub const CLAIM_DEADLINE: Duration = Duration::from_secs(10);

/// Why a stream could not be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClaimError {
    /// Nobody connected it.
    #[error("stdio stream {0} was not connected within {seconds} s: connect a stream before naming it", seconds = CLAIM_DEADLINE.as_secs())]
    NotConnected(u64),
    /// Two processes name one stream.
    #[error("stdio stream {0} is already awaited by another process: give each process streams of its own")]
    Awaited(u64),
}

enum Place {
    /// The connection is here, nobody asked yet.
    Parked(Socket),
    /// Somebody asked, the connection is not here yet.
    Awaited(oneshot::Sender<Socket>),
}

/// The table of streams; clones share it.
#[derive(Clone, Default)]
pub struct Streams {
    places: Arc<Mutex<HashMap<u64, Place>>>,
    forwards: Forwards,
}

impl Streams {
    /// Takes the stream `number`, waiting for it up to [`CLAIM_DEADLINE`]. `NO_STREAM` is none.
    pub async fn claim(&self, number: u64) -> Result<Option<Socket>, ClaimError> {
        if number == NO_STREAM {
            return Ok(None);
        }
        let waiting = {
            let mut places = self.places();
            match places.remove(&number) {
                Some(Place::Parked(socket)) => return Ok(Some(socket)),
                Some(Place::Awaited(sender)) if !sender.is_closed() => {
                    places.insert(number, Place::Awaited(sender));
                    return Err(ClaimError::Awaited(number));
                }
                Some(Place::Awaited(_)) | None => {}
            }
            let (sender, waiting) = oneshot::channel();
            places.insert(number, Place::Awaited(sender));
            waiting
        };
        match timeout(CLAIM_DEADLINE, waiting).await {
            Ok(Ok(socket)) => Ok(Some(socket)),
            Ok(Err(_)) | Err(_) => {
                self.forget_if_awaited(number);
                Err(ClaimError::NotConnected(number))
            }
        }
    }

    /// Drops a parked stream that its process will not claim any more (an exec deleted before it started).
    pub fn forget(&self, number: u64) {
        if number != NO_STREAM {
            self.places().remove(&number);
        }
    }

    /// Gives a connection to who awaits it, or parks it. A second connection with one number, or one too many, is closed.
    pub fn arrived(&self, number: u64, socket: Socket) {
        let mut places = self.places();
        let socket = match places.remove(&number) {
            Some(Place::Awaited(sender)) => match sender.send(socket) {
                Ok(()) => return,
                Err(unclaimed) => unclaimed,
            },
            Some(Place::Parked(first)) => {
                log::warn!("stdio stream {number} was connected twice; the second connection is closed");
                first
            }
            None if places.len() >= PARKED_MAX => {
                log::warn!("stdio stream {number} is closed: {PARKED_MAX} streams wait for their processes already");
                return;
            }
            None => socket,
        };
        places.insert(number, Place::Parked(socket));
    }

    /// Accepts stream connections for as long as the listener lives.
    pub async fn accept_from(self, listener: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let listener = sys::with_readiness(listener, Interest::READABLE)?;
        loop {
            let mut guard = listener.readable().await?;
            let accepted =
                guard.try_io(|fd| Ok(rustix::net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?));
            match accepted {
                Ok(Ok(connection)) => {
                    tokio::spawn(self.clone().introduce(connection));
                }
                Ok(Err(error)) if is_of_one_connection(&error) => log::debug!("a stream connection went away: {error}"),
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
    }

    /// Reads the number with which every stream begins.
    pub async fn introduce(self, connection: OwnedFd) {
        let introduced = async {
            let socket = Socket::new(connection)?;
            let mut header = [0; 8];
            timeout(HEADER_DEADLINE, socket.read_full(&mut header)).await??;
            io::Result::Ok((stream_number(header), socket))
        };
        match introduced.await {
            Ok((NO_STREAM, _)) => log::warn!("a stream connection named itself {NO_STREAM}, which means none; closed"),
            Ok((number, socket)) => match Forward::of(number) {
                Some(forward) => self.forwards.serve(forward, socket).await,
                None => self.arrived(number, socket),
            },
            Err(error) => log::warn!("a stream connection did not say its number: {error}"),
        }
    }

    fn forget_if_awaited(&self, number: u64) {
        let mut places = self.places();
        if matches!(places.get(&number), Some(Place::Awaited(_))) {
            places.remove(&number);
        }
    }

    /// The lock is held for table operations only, never across a wait.
    fn places(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        self.places.lock().expect("no code panics while it holds this lock")
    }
}

/// accept(2): errors of the connection rather than of the listener, and lack of descriptors, which passes.
fn is_of_one_connection(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::INTR
                | Errno::PROTO
                | Errno::CONNRESET
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
        )
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agent_protocol::stream_header;

    use super::*;

    fn pair() -> (UnixStream, OwnedFd) {
        let (host, guest) = UnixStream::pair().unwrap();
        (host, guest.into())
    }

    async fn connect(streams: &Streams, number: u64) -> UnixStream {
        let (host, guest) = pair();
        rustix::io::write(&host, &stream_header(number)).unwrap();
        streams.clone().introduce(guest).await;
        host
    }

    async fn byte_through(host: &UnixStream, socket: &Socket) -> u8 {
        rustix::io::write(host, b"!").unwrap();
        let mut byte = [0];
        socket.read_full(&mut byte).await.unwrap();
        byte[0]
    }

    #[tokio::test]
    async fn a_parked_stream_goes_to_its_claimer() {
        let streams = Streams::default();
        let host = connect(&streams, 7).await;
        let _other = connect(&streams, 8).await;
        let socket = streams.claim(7).await.unwrap().unwrap();
        assert_eq!(byte_through(&host, &socket).await, b'!');
    }

    #[tokio::test]
    async fn a_claim_may_come_before_its_stream() {
        let streams = Streams::default();
        let claim = tokio::spawn({
            let streams = streams.clone();
            async move { streams.claim(7).await }
        });
        tokio::task::yield_now().await;
        let host = connect(&streams, 7).await;
        let socket = claim.await.unwrap().unwrap().unwrap();
        assert_eq!(byte_through(&host, &socket).await, b'!');
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_comes_is_named_in_the_error() {
        let streams = Streams::default();
        assert_eq!(streams.claim(7).await.err(), Some(ClaimError::NotConnected(7)));
        assert!(streams.places().is_empty());
    }

    #[tokio::test]
    async fn zero_is_no_stream() {
        assert!(Streams::default().claim(NO_STREAM).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn the_first_of_two_equal_numbers_stays() {
        let streams = Streams::default();
        let first = connect(&streams, 7).await;
        let second = connect(&streams, 7).await;
        let socket = streams.claim(7).await.unwrap().unwrap();
        assert_eq!(byte_through(&first, &socket).await, b'!');
        second.set_nonblocking(true).unwrap();
        assert_eq!(rustix::io::read(&second, &mut [0; 1]), Ok(0), "closed");
    }

    #[tokio::test]
    async fn one_stream_too_many_is_closed_and_the_old_ones_stay() {
        let streams = Streams::default();
        let mut hosts = Vec::new();
        for number in 1..=PARKED_MAX as u64 + 1 {
            hosts.push(connect(&streams, number).await);
        }
        assert_eq!(streams.places().len(), PARKED_MAX);
        assert!(streams.claim(1).await.unwrap().is_some());
        let refused = hosts.last().unwrap();
        refused.set_nonblocking(true).unwrap();
        assert_eq!(rustix::io::read(refused, &mut [0; 1]), Ok(0), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed() {
        let streams = Streams::default();
        let (host, guest) = pair();
        streams.introduce(guest).await;
        assert_eq!(rustix::io::read(&host, &mut [0; 1]), Ok(0));
    }

    #[tokio::test]
    async fn two_claims_of_one_stream_are_an_error_for_the_second() {
        let streams = Streams::default();
        let first = tokio::spawn({
            let streams = streams.clone();
            async move { streams.claim(7).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(streams.claim(7).await.err(), Some(ClaimError::Awaited(7)));
        let _host = connect(&streams, 7).await;
        assert!(first.await.unwrap().unwrap().is_some());
    }
}
