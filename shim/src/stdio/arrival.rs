//! A fifo that its reader has not opened yet.
//!
//! containerd opens its ends on threads that it does not wait for, so that on a busy node a short exec can be over before its reader is
//! there. What was written to a fifo and closed by then is lost, and the reader, opening it at last, waits for a writer for ever (fifo(7)): an
//! ExecSync without end. So where no reader is there yet, the write end is opened in the way that waits for one, by a thread; the kernel
//! has no other event for it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::fs::{Mode, OFlags};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use crate::lock::held;

/// Stack of a thread that opens a file.
const STACK_LEN: usize = 64 * 1024;

/// The fifo, and what is known of its reader.
#[derive(Debug)]
pub struct Arrival {
    /// Names the fifo, also when its name is gone.
    node: OwnedFd,
    come: watch::Sender<bool>,
    hold: Mutex<Hold>,
}

#[derive(Debug)]
enum Hold {
    /// Nobody has read yet.
    None,
    /// A read end of ours, so that writing is no error while a reader that came has gone.
    Held(OwnedFd),
    /// Writing is for whoever reads, and for nobody else. Until the thread that waits has been let go, a read end lets it.
    GivenUp { _lets_go: Option<OwnedFd> },
}

impl Arrival {
    /// Of the fifo at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Arc<Self>> {
        let node = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Arc::new(Self { node, come: watch::Sender::new(false), hold: Mutex::new(Hold::None) }))
    }

    /// Begins to wait for the reader: the result is the write end, once somebody has opened the other, or nobody is waited for any more.
    /// The thread is none of the runtime's: those are few, and readers that never come would keep all of them.
    pub(super) fn writer(self: &Arc<Self>) -> io::Result<oneshot::Receiver<io::Result<OwnedFd>>> {
        let fifo = Arc::clone(self);
        let (told, hears) = oneshot::channel();
        // Nobody hears it when the output was given up meanwhile.
        let wait = move || drop(told.send(fifo.wait()));
        thread::Builder::new().name("reader awaited".to_owned()).stack_size(STACK_LEN).spawn(wait)?;
        Ok(hears)
    }

    fn wait(&self) -> io::Result<OwnedFd> {
        let write = self.open(OFlags::WRONLY)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        self.arrived()?;
        Ok(write)
    }

    fn arrived(&self) -> io::Result<()> {
        let mut hold = held(&self.hold);
        *hold = match *hold {
            Hold::None => Hold::Held(self.open(OFlags::RDONLY | OFlags::NONBLOCK)?),
            _ => Hold::GivenUp { _lets_go: None },
        };
        self.come.send_replace(true);
        Ok(())
    }

    /// Bytes in the fifo that nobody has taken.
    pub(super) fn left(&self) -> u64 {
        match &*held(&self.hold) {
            Hold::Held(end) => rustix::io::ioctl_fionread(end).unwrap_or(0),
            Hold::None | Hold::GivenUp { .. } => 0,
        }
    }

    /// Waits for the reader.
    pub(super) async fn within(&self, time: Duration) {
        let mut come = self.come.subscribe();
        if timeout(time, come.wait_for(|come| *come)).await.is_err() {
            log::warn!("nobody came to read the output of an ended process within {time:?}");
        }
    }

    /// Gives up our read end. A thread that still waits for a reader's finds one of ours.
    pub(super) fn give_up(&self) {
        let mut hold = held(&self.hold);
        let _lets_go = if *self.come.borrow() { None } else { self.open(OFlags::RDONLY | OFlags::NONBLOCK).ok() };
        *hold = Hold::GivenUp { _lets_go };
    }

    fn open(&self, how: OFlags) -> io::Result<OwnedFd> {
        let node = format!("/proc/self/fd/{}", self.node.as_raw_fd());
        Ok(rustix::fs::open(node, how | OFlags::CLOEXEC, Mode::empty())?)
    }
}
