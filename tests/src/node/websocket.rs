//! A websocket with numbered channels, as containerd's streaming server speaks it: a message's first byte is its channel. Source: RFC 6455;
//! Kubernetes' `v4.channel.k8s.io`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail, ensure};

/// Longest wait for the next message.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest message of the server; it cuts output into smaller ones.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// An open one.
pub(super) struct Websocket(BufReader<TcpStream>);

impl Websocket {
    /// Opens the URL of an answer.
    pub(super) fn open(url: &str) -> anyhow::Result<Self> {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("an http URL")?;
        let mut socket = TcpStream::connect(host).with_context(|| format!("{host} does not answer"))?;
        socket.set_read_timeout(Some(SILENCE_MAX))?;
        // The key is a nonce that the server proves to have read; this client trusts its own loopback.
        write!(
            socket,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2F0YS1ycy1jb25mb3JtYQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )?;
        let mut socket = BufReader::new(socket);
        let status = line(&mut socket)?;
        ensure!(status.contains(" 101 "), "no websocket at {url}: {status}");
        while !line(&mut socket)?.is_empty() {}
        Ok(Self(socket))
    }

    /// Sends a message.
    pub(super) fn write(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let length = u16::try_from(bytes.len() + 1).context("a message of the client is short")?;
        let mut frame = vec![0x80 | BINARY, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        // A client has to mask; a mask of zeros leaves the bytes as they are.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(bytes);
        Ok(self.0.get_mut().write_all(&frame)?)
    }

    /// The next message that is not empty, with its channel; none at the end. The server opens each channel with an empty one.
    pub(super) fn read(&mut self) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        while let Some((code, payload)) = self.read_frame()? {
            match (code, payload.split_first()) {
                (CLOSE, _) => return Ok(None),
                (BINARY | CONTINUATION, Some((channel, rest))) if !rest.is_empty() => {
                    return Ok(Some((*channel, rest.to_vec())));
                }
                (BINARY | CONTINUATION | PING, _) => {}
                (other, _) => bail!("a message of the unknown kind {other}"),
            }
        }
        Ok(None)
    }

    fn read_frame(&mut self) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; 2];
        match self.0.read_exact(&mut head) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.context("the stream is silent")?,
        }
        let length = match head[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.bytes()?)),
            127 => u64::from_be_bytes(self.bytes()?),
            short => u64::from(short),
        };
        ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
        let mut payload = vec![0; usize::try_from(length)?];
        self.0.read_exact(&mut payload)?;
        Ok(Some((head[0] & 0xf, payload)))
    }

    fn bytes<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn line(socket: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    socket.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
