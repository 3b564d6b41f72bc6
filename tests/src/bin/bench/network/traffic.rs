//! Traffic between a pod and the node: a server, which is this very program inside the pod (a static one runs in any image), and what the node asks
//! of it. Directions are the pod's: it sends, it receives.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

/// The word by which this program is that server.
pub const WORD: &str = "traffic";
/// What its file is called where it runs, and so its process.
pub const PROGRAM: &str = "net-traffic";
/// Where it listens, by TCP and UDP.
const PORT: u16 = 5201;
/// Bytes of one write.
const BLOCK: usize = 128 * 1024;
/// Bytes of a datagram's payload.
const DATAGRAM: usize = 64;
/// Longest that the server may take to come, and that an answer may.
const PATIENCE: Duration = Duration::from_secs(20);
/// After so long without a datagram there is none on its way.
const SILENCE: Duration = Duration::from_millis(200);

/// First byte of a connection: what it is for.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Ask {
    /// Take all that comes, then say how much it was.
    Take = b't',
    /// Give as long as somebody takes.
    Give = b'g',
    /// Return each byte.
    Echo = b'e',
    /// One byte back, and the end.
    Once = b'o',
    /// Send datagrams to a port for so many milliseconds, then say how many.
    Flood = b'f',
    /// Say how many datagrams have come until now.
    Count = b'c',
}

/// The pod's end; does not return.
pub fn serve() -> anyhow::Result<()> {
    let datagrams = Arc::new(AtomicU64::new(0));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let counter = datagrams.clone();
    thread::spawn(move || count(&socket, &counter));
    for peer in TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?.incoming() {
        let (peer, datagrams) = (peer?, datagrams.clone());
        // Its error is that the peer went, which is how most of it ends.
        thread::spawn(move || answer(peer, &datagrams));
    }
    Ok(())
}

fn count(socket: &UdpSocket, datagrams: &AtomicU64) {
    let mut datagram = [0; DATAGRAM];
    while socket.recv(&mut datagram).is_ok() {
        datagrams.fetch_add(1, Ordering::Relaxed);
    }
}

fn answer(mut peer: TcpStream, datagrams: &AtomicU64) -> io::Result<()> {
    peer.set_nodelay(true)?;
    let mut ask = [0];
    peer.read_exact(&mut ask)?;
    match ask[0] {
        b't' => {
            let taken = take(&mut peer)?;
            peer.write_all(&taken.to_be_bytes())
        }
        b'g' => {
            let block = vec![0x5a; BLOCK];
            loop {
                peer.write_all(&block)?;
            }
        }
        b'e' => {
            let mut byte = [0];
            while peer.read(&mut byte)? > 0 {
                peer.write_all(&byte)?;
            }
            Ok(())
        }
        b'o' => peer.write_all(b"o"),
        b'f' => {
            let mut wanted = [0; 4];
            peer.read_exact(&mut wanted)?;
            let [a, b, c, d] = wanted;
            let to = SocketAddr::new(peer.peer_addr()?.ip(), u16::from_be_bytes([a, b]));
            let sent = flood(to, Duration::from_millis(u16::from_be_bytes([c, d]).into()))?;
            peer.write_all(&sent.to_be_bytes())
        }
        _ => peer.write_all(&datagrams.load(Ordering::Relaxed).to_be_bytes()),
    }
}

fn take(peer: &mut TcpStream) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut taken = 0;
    loop {
        match peer.read(&mut block)? {
            0 => return Ok(taken),
            some => taken += some as u64,
        }
    }
}

/// Sends datagrams as fast as they go, and returns their number.
fn flood(to: SocketAddr, period: Duration) -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let (clock, datagram, mut sent) = (Instant::now(), [0x5a; DATAGRAM], 0);
    while clock.elapsed() < period {
        // One that finds no room is one that was not sent.
        sent += u64::from(socket.send(&datagram).is_ok());
    }
    Ok(sent)
}

/// Bytes that arrived, and the time from the first to the last.
pub struct Moved {
    pub bytes: u64,
    pub seconds: f64,
}

impl Moved {
    pub fn mib(&self) -> f64 {
        self.bytes as f64 / 1_048_576.0
    }
}

/// How one stream moves bytes for a while.
pub type Stream = fn(Server, Duration) -> anyhow::Result<Moved>;

/// A pod's server, as the node asks it; to be used by a thread in the node's network.
#[derive(Clone, Copy)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// The one at this address, once it answers.
    pub fn at(address: Ipv4Addr) -> anyhow::Result<Self> {
        let server = Self { address: SocketAddr::new(address.into(), PORT) };
        let clock = Instant::now();
        loop {
            match server.once() {
                Ok(()) => return Ok(server),
                Err(error) if clock.elapsed() > PATIENCE => return Err(error.context("no traffic's other end")),
                // It starts; nothing tells when it listens but that it answers.
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn ask(self, what: Ask) -> anyhow::Result<TcpStream> {
        let mut peer = TcpStream::connect_timeout(&self.address, PATIENCE).context("cannot connect")?;
        peer.set_nodelay(true)?;
        peer.set_read_timeout(Some(PATIENCE))?;
        peer.write_all(&[what as u8])?;
        Ok(peer)
    }

    /// A connection, a byte each way, and its end.
    pub fn once(self) -> anyhow::Result<()> {
        self.ask(Ask::Once)?.read_exact(&mut [0]).context("no answer")
    }

    /// One stream from the pod.
    pub fn pod_sends(self, period: Duration) -> anyhow::Result<Moved> {
        let mut peer = self.ask(Ask::Give)?;
        let (mut block, mut bytes) = (vec![0; BLOCK], 0);
        let clock = Instant::now();
        while clock.elapsed() < period {
            bytes += peer.read(&mut block)? as u64;
        }
        Ok(Moved { bytes, seconds: clock.elapsed().as_secs_f64() })
    }

    /// One stream to the pod.
    pub fn pod_receives(self, period: Duration) -> anyhow::Result<Moved> {
        let mut peer = self.ask(Ask::Take)?;
        let block = vec![0x5a; BLOCK];
        let clock = Instant::now();
        while clock.elapsed() < period {
            peer.write_all(&block)?;
        }
        peer.shutdown(std::net::Shutdown::Write)?;
        let bytes = number(&mut peer)?;
        Ok(Moved { bytes, seconds: clock.elapsed().as_secs_f64() })
    }

    /// Several streams at once, together.
    pub fn together(self, streams: usize, period: Duration, stream: Stream) -> anyhow::Result<Moved> {
        thread::scope(|scope| {
            let all: Vec<_> = (0..streams).map(|_| scope.spawn(move || stream(self, period))).collect();
            let mut sum = Moved { bytes: 0, seconds: 0.0 };
            for moved in all {
                let moved = moved.join().expect("no panic")?;
                sum.bytes += moved.bytes;
                sum.seconds = sum.seconds.max(moved.seconds);
            }
            Ok(sum)
        })
    }

    /// Datagrams from the pod that arrived, a second.
    pub fn pod_floods(self, period: Duration) -> anyhow::Result<f64> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let mut peer = self.ask(Ask::Flood)?;
        let millis = u16::try_from(period.as_millis())?;
        peer.write_all(&[socket.local_addr()?.port().to_be_bytes(), millis.to_be_bytes()].concat())?;
        let arrived = Arc::new(AtomicU64::new(0));
        let (counter, counted) = (arrived.clone(), socket.try_clone()?);
        // A wait without datagrams ends the count.
        counted.set_read_timeout(Some(SILENCE))?;
        let counting = thread::spawn(move || count(&counted, &counter));
        number(&mut peer)?;
        counting.join().expect("no panic");
        Ok(arrived.load(Ordering::Relaxed) as f64 / period.as_secs_f64())
    }

    /// Datagrams that arrived in the pod, a second.
    pub fn pod_is_flooded(self, period: Duration) -> anyhow::Result<f64> {
        let before = number(&mut self.ask(Ask::Count)?)?;
        flood(self.address, period)?;
        let after = number(&mut self.ask(Ask::Count)?)?;
        Ok((after - before) as f64 / period.as_secs_f64())
    }

    /// Connections with a byte each way, a second.
    pub fn connections(self, period: Duration) -> anyhow::Result<f64> {
        let (clock, mut done) = (Instant::now(), 0);
        while clock.elapsed() < period {
            self.once()?;
            done += 1;
        }
        Ok(f64::from(done) / clock.elapsed().as_secs_f64())
    }

    /// Times of a byte there and back, in microseconds, sorted.
    pub fn round_trips(self, period: Duration) -> anyhow::Result<Vec<f64>> {
        let mut peer = self.ask(Ask::Echo)?;
        let (clock, mut times) = (Instant::now(), Vec::new());
        while clock.elapsed() < period {
            let sent = Instant::now();
            peer.write_all(b"x")?;
            peer.read_exact(&mut [0])?;
            times.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn number(peer: &mut TcpStream) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    peer.read_exact(&mut bytes).context("no count")?;
    Ok(u64::from_be_bytes(bytes))
}
