//! The stream of `kubectl exec` and `kubectl attach`: a websocket with numbered channels.
//!
//! CRI's Exec and Attach answer with a URL of the runtime's streaming server. kubectl speaks SPDY to it or, newer, websocket; this is a
//! client of the second, as far as these calls need it. Source: RFC 6455; Kubernetes' `v4.channel.k8s.io` (a message's first byte is its
//! channel: 0 stdin, 1 stdout, 2 stderr, 3 the end's status as JSON, 4 the terminal's size as JSON).

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Longest wait for the next message.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest message of the server; it cuts output into smaller ones.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;
const RESIZE: u8 = 4;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// An open stream, and what has come out of it.
pub struct Stream {
    socket: BufReader<TcpStream>,
    /// Standard output so far.
    pub stdout: Vec<u8>,
    /// Standard error so far.
    pub stderr: Vec<u8>,
    end: Option<Value>,
}

impl Stream {
    /// Opens the URL of an answer.
    ///
    /// # Errors
    /// Nobody serves it, or not as a websocket.
    pub fn open(url: &str) -> anyhow::Result<Self> {
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
        Ok(Self { socket, stdout: Vec::new(), stderr: Vec::new(), end: None })
    }

    /// Types or pipes in.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.write(STDIN, text.as_bytes())
    }

    /// Tells the terminal's size.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn resize(&mut self, columns: u16, rows: u16) -> anyhow::Result<()> {
        self.write(RESIZE, serde_json::json!({ "Width": columns, "Height": rows }).to_string().as_bytes())
    }

    /// Reads until standard output holds a text, and returns all of it.
    ///
    /// # Errors
    /// The stream ends, or is silent, before.
    pub fn expect(&mut self, text: &str) -> anyhow::Result<String> {
        loop {
            let so_far = String::from_utf8_lossy(&self.stdout).into_owned();
            if so_far.contains(text) {
                return Ok(so_far);
            }
            ensure!(self.read_message()?, "{text:?} does not come, only {so_far:?}");
        }
    }

    /// Reads to the end; the command's exit code.
    ///
    /// # Errors
    /// It did not end, or the runtime tells of a failure of its own.
    pub fn finish(&mut self) -> anyhow::Result<i32> {
        while self.read_message()? {}
        let end = self.end.as_ref().context("the stream ended without a status")?;
        if end["status"] == "Success" {
            return Ok(0);
        }
        let causes = end["details"]["causes"].as_array().into_iter().flatten();
        let code = causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str());
        code.with_context(|| end["message"].to_string())?.parse().context("an exit code is a number")
    }

    fn write(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let length = u16::try_from(bytes.len() + 1).context("a message of the client is short")?;
        let mut frame = vec![0x80 | BINARY, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        // A client has to mask; a mask of zeros leaves the bytes as they are.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(bytes);
        Ok(self.socket.get_mut().write_all(&frame)?)
    }

    // False at the end.
    fn read_message(&mut self) -> anyhow::Result<bool> {
        let Some((code, payload)) = self.read_frame()? else { return Ok(false) };
        match (code, payload.split_first()) {
            (CLOSE, _) => return Ok(false),
            (BINARY | CONTINUATION, Some((&STDOUT, rest))) => self.stdout.extend(rest),
            (BINARY | CONTINUATION, Some((&STDERR, rest))) => self.stderr.extend(rest),
            (BINARY | CONTINUATION, Some((&END, rest))) if !rest.is_empty() => {
                self.end = Some(serde_json::from_slice(rest).context("a status is JSON")?);
            }
            // The server opens each channel with an empty message.
            (BINARY | CONTINUATION | PING, _) => {}
            (other, _) => bail!("a message of the unknown kind {other}"),
        }
        Ok(true)
    }

    fn read_frame(&mut self) -> anyhow::Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; 2];
        match self.socket.read_exact(&mut head) {
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
        self.socket.read_exact(&mut payload)?;
        Ok(Some((head[0] & 0xf, payload)))
    }

    fn bytes<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn line(socket: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    socket.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
