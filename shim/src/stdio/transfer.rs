//! Moving bytes between two descriptors of which one is a pipe, inside the kernel: splice(2).
//!
//! No byte is held here, so memory is bounded by the kernel's own limits on pipe and socket, order is the kernel's, and a slow
//! reader holds up its writer and nobody else.
//!
//! splice says `EAGAIN` without saying on which side. Clearing the wrong side's readiness would wait for an edge that never comes,
//! so poll(2) is asked, and only what it calls not ready is waited for.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{SpliceFlags, splice},
};
use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    net::UnixStream,
    task::{spawn_blocking, yield_now},
};

/// Most bytes moved in one step: what a pipe holds unless someone enlarged it (pipe(7)).
const STEP_LEN_MAX: usize = 64 << 10;

/// What can be told of a transfer from outside.
#[derive(Debug, Default)]
pub struct Progress {
    moved: AtomicU64,
    waits_for_reader: AtomicBool,
    ended: AtomicBool,
}

impl Progress {
    /// Bytes moved since the last question.
    pub fn take_moved(&self) -> u64 {
        self.moved.swap(0, Ordering::Relaxed)
    }

    /// Bytes moved so far, as far as nobody has asked for them with [`Self::take_moved`].
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Whether the source has ended, so that no more bytes come.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Notes that no more bytes come.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether there are bytes that the far side does not take.
    pub fn waits_for_reader(&self) -> bool {
        self.waits_for_reader.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn set_waiting(&self, waits: bool) {
        self.waits_for_reader.store(waits, Ordering::Relaxed);
    }
}

/// Moves everything from `source` to `sink` until the source ends. Both must not block, and one must be a pipe.
///
/// # Errors
/// Either side broke; `BrokenPipe` when nobody will read what comes.
pub async fn splice_all(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>, progress: &Progress) -> io::Result<()> {
    loop {
        let mut readable = source.readable().await?;
        progress.set_waiting(true);
        let mut writable = sink.writable().await?;
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        match splice(source.get_ref(), None, sink.get_ref(), None, STEP_LEN_MAX, flags) {
            Ok(0) => return Ok(()),
            Ok(bytes) => progress.add(bytes),
            Err(Errno::AGAIN) => {
                let (can_read, can_write) = readiness(source.get_ref(), sink.get_ref())?;
                if !can_read {
                    readable.clear_ready();
                }
                if !can_write {
                    writable.clear_ready();
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        progress.set_waiting(false);
        // Two ready descriptors never wait: others must get their turn all the same.
        yield_now().await;
    }
}

fn readiness(source: &OwnedFd, sink: &OwnedFd) -> rustix::io::Result<(bool, bool)> {
    let mut ends = [PollFd::new(source, PollFlags::IN), PollFd::new(sink, PollFlags::OUT)];
    poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok((!ends[0].revents().is_empty(), !ends[1].revents().is_empty()))
}

/// Appends everything from `stream` to `file`, where splice does not go.
///
/// # Errors
/// Either side broke; a full disk, most likely.
pub async fn append_all(mut stream: UnixStream, file: File, progress: &Progress) -> io::Result<()> {
    let mut step = Vec::with_capacity(STEP_LEN_MAX);
    let file = std::sync::Arc::new(file);
    while stream.read_buf(&mut step).await? > 0 {
        progress.add(step.len());
        let file = std::sync::Arc::clone(&file);
        let (mut written, outcome) = spawn_blocking(move || {
            let outcome = (&*file).write_all(&step);
            (step, outcome)
        })
        .await?;
        outcome?;
        written.clear();
        step = written;
    }
    Ok(())
}
