//! Stdio: connections into the guest, one for each stream, through the hybrid vsock socket of the VMM.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use agent_protocol::{NO_STREAM, STREAM_PORT, messages::Stdio, stream_header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    ErrorKind, PodError, ProcessStreams, StdioWanted,
    machine::Machine,
    progress::{CALL_STILL_MAX, standstill},
    state_dir::{StateDir, VSOCK_SOCKET},
};

/// Longest `OK <port>` line.
const ANSWER_LEN_MAX: usize = 32;

/// Opens streams into one guest.
#[derive(Debug)]
pub(crate) struct StreamDoor {
    state: Arc<StateDir>,
    machine: Machine,
    next: AtomicU64,
}

impl StreamDoor {
    /// The door of the pod with this state folder.
    pub(crate) fn new(state: Arc<StateDir>, machine: Machine) -> Self {
        Self { state, machine, next: AtomicU64::new(NO_STREAM + 1) }
    }

    /// Connects the streams that a process wants, side by side: our ends, and their numbers for the agent.
    pub(crate) async fn open(&self, wanted: StdioWanted) -> Result<(ProcessStreams, Stdio), PodError> {
        let terminal = wanted.terminal.is_some();
        let (stdin, stdout, stderr) = tokio::try_join!(
            self.open_if(wanted.stdin),
            self.open_if(wanted.stdout || terminal),
            self.open_if(wanted.stderr && !terminal),
        )?;
        let numbers = Stdio { stdin: stdin.1, stdout: stdout.1, stderr: stderr.1, ..Default::default() };
        Ok((ProcessStreams { stdin: stdin.0, stdout: stdout.0, stderr: stderr.0 }, numbers))
    }

    async fn open_if(&self, wanted: bool) -> Result<(Option<std::os::unix::net::UnixStream>, u64), PodError> {
        if !wanted {
            return Ok((None, NO_STREAM));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = self.state.short_path(VSOCK_SOCKET);
        let connected = tokio::select! {
            biased;
            connected = connect(socket, number) => connected,
            sentence = self.machine.gone() => return Err(Machine::gone_error(&sentence)),
            why = standstill(&self.machine, CALL_STILL_MAX) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why)),
        };
        let stream = connected.and_then(UnixStream::into_std).map_err(|source| PodError {
            kind: ErrorKind::Unavailable,
            message: format!("cannot connect a stdio stream to the guest (vsock port {STREAM_PORT}): {source}"),
            source: Some(Box::new(source)),
        })?;
        Ok((Some(stream), number))
    }
}

/// Connects a stream and says its number.
pub(crate) async fn connect(socket: PathBuf, number: u64) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {STREAM_PORT}\n").as_bytes()).await?;
    let answer = read_line(&mut stream, ANSWER_LEN_MAX).await?;
    if !answer.starts_with("OK ") {
        return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the guest does not accept it"));
    }
    stream.write_all(&stream_header(number)).await?;
    Ok(stream)
}

/// Reads a line byte by byte, so that nothing behind it is taken; the newline is included.
pub(crate) async fn read_line(stream: &mut UnixStream, len_max: usize) -> std::io::Result<String> {
    let mut line = Vec::new();
    while line.len() < len_max {
        line.push(stream.read_u8().await?);
        if line.last() == Some(&b'\n') {
            return String::from_utf8(line).map_err(std::io::Error::other);
        }
    }
    Err(std::io::Error::other(format!("no end of line within {len_max} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_and_not_a_byte_more() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(b"OK 7\nnext").await.expect("sent");
        assert_eq!(read_line(&mut ours, 32).await.expect("a line"), "OK 7\n");
        let mut rest = [0; 4];
        ours.read_exact(&mut rest).await.expect("left");
        assert_eq!(&rest, b"next");
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&[b'x'; 64]).await.expect("sent");
        assert!(read_line(&mut ours, 32).await.is_err());
    }
}
