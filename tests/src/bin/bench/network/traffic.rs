//! Traffic between a pod and the node that iperf3 does not measure: a server, which is this very program inside the pod (a static one runs in any
//! image), and what the node asks of it. Directions are the pod's: it sends, it receives.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

/// The word by which this program is that server.
pub const WORD: &str = "traffic";
/// What its file is called where it runs, and so its process.
pub const PROGRAM: &str = "net-traffic";
/// Where it listens, beside iperf3.
const PORT: u16 = 5200;
/// Bytes of one write.
const BLOCK: usize = 128 * 1024;
/// Longest that the server may take to come, and that an answer may.
const PATIENCE: Duration = Duration::from_secs(20);

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
}

/// The pod's end; does not return.
pub fn serve() -> anyhow::Result<()> {
    for peer in TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?.incoming() {
        let peer = peer?;
        // Its error is that the peer went, which is how most of it ends.
        thread::spawn(move || answer(peer));
    }
    Ok(())
}

fn answer(mut peer: TcpStream) -> io::Result<()> {
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
        _ => peer.write_all(b"o"),
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

    /// Bytes that came from the pod by one stream.
    pub fn pod_sends(self, period: Duration) -> anyhow::Result<u64> {
        let mut peer = self.ask(Ask::Give)?;
        let (mut block, mut bytes) = (vec![0; BLOCK], 0);
        let clock = Instant::now();
        while clock.elapsed() < period {
            bytes += peer.read(&mut block)? as u64;
        }
        Ok(bytes)
    }

    /// Bytes that came to the pod by one stream.
    pub fn pod_receives(self, period: Duration) -> anyhow::Result<u64> {
        let mut peer = self.ask(Ask::Take)?;
        let block = vec![0x5a; BLOCK];
        let clock = Instant::now();
        while clock.elapsed() < period {
            peer.write_all(&block)?;
        }
        peer.shutdown(std::net::Shutdown::Write)?;
        let mut taken = [0; 8];
        peer.read_exact(&mut taken).context("no count")?;
        Ok(u64::from_be_bytes(taken))
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
