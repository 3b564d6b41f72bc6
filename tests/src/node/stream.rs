//! The stream of `kubectl exec` and `kubectl attach`: a websocket with numbered channels.
//!
//! CRI's Exec and Attach answer with a URL of the runtime's streaming server. kubectl speaks SPDY to it or, newer, websocket; this is a
//! client of the second, as far as these calls need it. Source: RFC 6455; Kubernetes' `v4.channel.k8s.io` (a message's first byte is its
//! channel: 0 stdin, 1 stdout, 2 stderr, 3 the end's status as JSON, 4 the terminal's size as JSON).

use anyhow::{Context, ensure};
use serde_json::Value;

use super::websocket::Websocket;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const END: u8 = 3;
const RESIZE: u8 = 4;

/// An open stream, and what has come out of it.
pub struct Stream {
    socket: Websocket,
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
        let socket = Websocket::open(url)?;
        Ok(Self { socket, stdout: Vec::new(), stderr: Vec::new(), end: None })
    }

    /// Types or pipes in.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.socket.write(STDIN, text.as_bytes())
    }

    /// Tells the terminal's size.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn resize(&mut self, columns: u16, rows: u16) -> anyhow::Result<()> {
        self.socket.write(RESIZE, serde_json::json!({ "Width": columns, "Height": rows }).to_string().as_bytes())
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

    // False at the end.
    fn read_message(&mut self) -> anyhow::Result<bool> {
        match self.socket.read()? {
            None => return Ok(false),
            Some((STDOUT, bytes)) => self.stdout.extend(bytes),
            Some((STDERR, bytes)) => self.stderr.extend(bytes),
            Some((END, bytes)) => self.end = Some(serde_json::from_slice(&bytes).context("a status is JSON")?),
            Some(_) => {}
        }
        Ok(true)
    }
}
