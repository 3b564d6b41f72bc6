//! What an ended process has written and its reader has not taken.
//!
//! containerd's CRI plugin closes its end of a container's fifos soon after it hears of the exit, whatever is still in them (seen on 1.6:
//! the last lines of `seq 1 10000` were missing from the container's log, because a line takes the plugin longer to write down than to
//! print). A process of runc is saved by how long runc takes to be asked. So the news of an exit waits a moment for the
//! reader: as long as it reads, and never so long that a kill looks slow.
//!
//! The kernel has no event for "a pipe became empty": poll(2) tells when there is room, which is nearly always. So a timer asks, and only
//! where something is left to be read.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::io::ioctl_fionread;
use tokio::time::{Instant, sleep};

use super::{arrival::Arrival, transfer::Progress};

/// How often to look.
const STEP: Duration = Duration::from_millis(5);
/// A reader that took nothing for so long is not reading, or a descendant of the process keeps the stream open.
const STILL_MAX: Duration = Duration::from_millis(200);
/// A kill is to be seen in less than a second, however slowly somebody reads.
const WAIT_MAX: Duration = Duration::from_millis(800);

/// One output of a process.
#[derive(Debug)]
pub struct Unread {
    /// Its fifo.
    pub(super) fifo: Fifo,
    /// How far the bytes have come that are on their way into the fifo.
    pub(super) progress: Arc<Progress>,
}

/// What is asked for bytes that nobody has taken.
#[derive(Debug)]
pub enum Fifo {
    /// A read end, from which nothing is read.
    End(OwnedFd),
    /// A fifo whose reader may not have come yet.
    Awaited(Arc<Arrival>),
}

impl Fifo {
    fn left(&self) -> u64 {
        match self {
            Self::End(end) => ioctl_fionread(end).unwrap_or(0),
            Self::Awaited(fifo) => fifo.left(),
        }
    }
}

impl Unread {
    /// Bytes that came through until now and bytes in the fifo; `None` once all has been taken.
    fn left(&self) -> Option<(u64, u64)> {
        let in_fifo = self.fifo.left();
        (in_fifo > 0 || !self.progress.has_ended()).then(|| (self.progress.moved(), in_fifo))
    }
}

/// Waits until the readers have taken everything, or do not read.
pub async fn taken(outputs: Vec<Unread>) {
    let look = || outputs.iter().filter_map(Unread::left).collect::<Vec<_>>();
    let (begun, mut seen) = (Instant::now(), look());
    let mut moved_at = begun;
    while !seen.is_empty() && moved_at.elapsed() < STILL_MAX && begun.elapsed() < WAIT_MAX {
        sleep(STEP).await;
        let now = look();
        if now != seen {
            (seen, moved_at) = (now, Instant::now());
        }
    }
}
