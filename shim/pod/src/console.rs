//! The last words of a machine: the tail of its console, or of what the VMM wrote to standard error.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::unix::pipe, sync::watch};

use crate::error::guest_text;

/// How much of a console is kept; a kernel panic with its trace is about 4 KiB.
const TAIL_LEN_MAX: usize = 16 * 1024;
/// Longest line of the log; what is longer is more lines, and what a guest writes without an end takes no more memory than this.
const LINE_LEN_MAX: usize = 1024;
/// How much of it an error shows.
const SHOWN_CHARS_MAX: usize = 2048;
/// How long the end of a dead machine's console is waited for.
const SETTLE_DEADLINE: Duration = Duration::from_millis(200);

/// A pipe that is read all the time, of which the tail is kept.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    ended: watch::Receiver<bool>,
}

impl Tail {
    /// Begins to read the pipe; what comes is also logged, line by line.
    pub(crate) fn follow(name: &'static str, level: log::Level, pipe: OwnedFd) -> io::Result<Self> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let bytes = Arc::new(Mutex::new(VecDeque::new()));
        let (end, ended) = watch::channel(false);
        let kept = Arc::clone(&bytes);
        tokio::spawn(async move {
            let mut chunk = [0u8; 4096];
            let mut line = Line::default();
            let log = |words: String| log::log!(level, "{name}: {words}");
            while let Ok(len @ 1..) = pipe.read(&mut chunk).await {
                keep(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &chunk[..len]);
                line.take(&chunk[..len]).into_iter().for_each(log);
            }
            line.end().into_iter().for_each(log);
            end.send_replace(true);
        });
        Ok(Self { bytes, ended })
    }

    /// The last lines, fit to be shown, once the writer is gone or has had its time.
    pub(crate) async fn text(&self) -> String {
        let mut ended = self.ended.clone();
        let settled = ended.wait_for(|ended| *ended);
        let _ = tokio::time::timeout(SETTLE_DEADLINE, settled).await;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        guest_text(bytes.make_contiguous(), SHOWN_CHARS_MAX)
    }
}

/// A line that comes in pieces: the guest's early console is written 16 bytes at a time.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    /// The lines that this piece completes, fit to be shown; empty ones are left out.
    fn take(&mut self, piece: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in piece {
            if *byte != b'\n' {
                self.0.push(*byte);
            }
            if *byte == b'\n' || self.0.len() >= LINE_LEN_MAX {
                lines.extend(self.end());
            }
        }
        lines
    }

    /// What is left at the end.
    fn end(&mut self) -> Option<String> {
        Some(guest_text(&std::mem::take(&mut self.0), LINE_LEN_MAX)).filter(|text| !text.is_empty())
    }
}

fn keep(tail: &mut VecDeque<u8>, chunk: &[u8]) {
    tail.extend(chunk);
    let excess = tail.len().saturating_sub(TAIL_LEN_MAX);
    tail.drain(..excess);
}

/// A pipe whose reading end does not block: (reading, writing).
pub(crate) fn pipe_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut line = Line::default();
        assert!(line.take(b"[    0.1] Linux ver").is_empty());
        assert_eq!(line.take(b"sion 6.12\r\n\n[ 0.2] "), ["[    0.1] Linux version 6.12"]);
        assert_eq!(line.take(b"two\nthree"), ["[ 0.2] two"]);
        assert_eq!(line.end().as_deref(), Some("three"));
        assert_eq!(line.end(), None);
    }

    #[test]
    fn a_line_without_an_end_has_one() {
        let mut line = Line::default();
        let lines: Vec<_> = (0..64).flat_map(|_| line.take(&[b'x'; 100])).collect();
        assert_eq!(lines.len(), 6400 / LINE_LEN_MAX);
        assert!(lines.iter().all(|text| text.len() == LINE_LEN_MAX) && line.0.len() < LINE_LEN_MAX);
    }

    #[tokio::test]
    async fn the_tail_is_the_end_and_bounded() {
        let (read, write) = pipe_pair().expect("a pipe");
        let tail = Tail::follow("console", log::Level::Debug, read).expect("followed");
        let writer = std::thread::spawn(move || {
            let mut write = File::from(write);
            for _ in 0..1000 {
                write.write_all(&[b'x'; 100]).expect("read");
            }
            write.write_all(b"\nKernel panic").expect("read");
        });
        let text = tail.text().await;
        writer.join().expect("written");
        assert!(text.ends_with("Kernel panic"), "{text}");
        assert!(text.len() <= SHOWN_CHARS_MAX);
        assert!(tail.bytes.lock().expect("whole").len() <= TAIL_LEN_MAX);
    }
}
