//! Waiting for a server to listen at a path again: by inotify on the folder, where a socket appears when a server binds it.
//!
//! Between bind(2) and listen(2) a socket refuses, and the second makes no event, though containerd sets the socket's owner and mode after
//! it, which does. So an event is followed by a few attempts that come ever later. Where nothing can be watched (no folder yet, no inotify
//! left), and against all that inotify does not see, there is a look now and then.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::stdio::watched;

/// First and last pause of the attempts that follow an event.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LAST: Duration = Duration::from_millis(128);
/// Between two looks without any event.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for the folder itself.
const FOLDER_EVERY: Duration = Duration::from_secs(1);
/// Bytes of events that are read at once; one is 16 bytes and a name.
const EVENTS_LEN: usize = 4096;

/// One wait for one socket.
pub struct Comeback {
    folder: PathBuf,
    name: OsString,
    events: Option<AsyncFd<OwnedFd>>,
    pause: Duration,
}

impl Comeback {
    /// Begins to watch. A server that comes after this is noticed.
    pub fn watch(socket: &Path) -> Self {
        let folder = socket.parent().unwrap_or(Path::new("/")).to_owned();
        let name = socket.file_name().unwrap_or_default().to_owned();
        let events = watch(&folder).inspect_err(|error| log::debug!("cannot watch {}: {error}", folder.display())).ok();
        Self { folder, name, events, pause: PAUSE_FIRST }
    }

    /// Waits until it is worth trying again.
    pub async fn next(&mut self) {
        if self.events.is_none() {
            self.events = watch(&self.folder).ok();
        }
        let pause = if self.pause <= PAUSE_LAST { self.pause } else { LOOK_EVERY };
        let name = self.name.clone();
        let Some(events) = &self.events else { return tokio::time::sleep(FOLDER_EVERY).await };
        match timeout(pause, seen(events, &name)).await {
            Ok(Ok(())) => self.pause = PAUSE_FIRST,
            // The folder is another one now, or gone.
            Ok(Err(_)) => self.events = None,
            Err(_) => self.pause = (self.pause * 2).min(LOOK_EVERY),
        }
    }
}

fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    inotify::add_watch(&inotify, folder, what | WatchFlags::ONLYDIR)?;
    watched(inotify, Interest::READABLE)
}

// Resolves when something happened to the name; fails when nothing will be seen any more.
async fn seen(events: &AsyncFd<OwnedFd>, name: &OsString) -> io::Result<()> {
    let mut bytes = [MaybeUninit::uninit(); EVENTS_LEN];
    loop {
        let mut ready = events.readable().await?;
        let mut reader = Reader::new(events.get_ref(), &mut bytes);
        let mut concerned = false;
        loop {
            match reader.next() {
                Ok(event)
                    if event
                        .events()
                        .intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) =>
                {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(event) => concerned |= event.file_name().is_some_and(|file| file.to_bytes() == name.as_bytes()),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        if concerned {
            return Ok(());
        }
    }
}
