//! Named pipes, with somebody at the other end.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags};

/// Longest wait for output.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes a named pipe.
///
/// # Errors
/// It is there already, or the folder is not.
pub fn make(path: &Path) -> anyhow::Result<()> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .with_context(|| format!("cannot make the pipe {}", path.display()))
}

/// Opens a pipe for reading without waiting for a writer; nothing is read yet. The pipe must be there.
///
/// # Errors
/// It is not.
pub fn open_reader(path: &Path) -> anyhow::Result<File> {
    Ok(OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?)
}

/// Reads one line, as soon as it is there.
///
/// # Errors
/// It does not come.
pub fn read_line(mut pipe: &File) -> anyhow::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        match pipe.read(&mut byte) {
            Ok(1) => line.push(byte[0]),
            // Empty, or nobody writes yet.
            Ok(_) => wait_readable(pipe)?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => wait_readable(pipe)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn wait_readable(pipe: &File) -> anyhow::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    anyhow::ensure!(
        poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&timeout))? > 0,
        "no output within {DEADLINE:?}"
    );
    Ok(())
}

/// Waits until a pipe that nobody reads is full: its writers are blocked then.
///
/// # Errors
/// It does not fill.
pub fn wait_until_full(pipe: &File) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    let capacity = rustix::pipe::fcntl_getpipe_size(pipe)?;
    while usize::try_from(rustix::io::ioctl_fionread(pipe)?)? < capacity {
        anyhow::ensure!(Instant::now() < end, "the pipe does not fill within {DEADLINE:?}");
        // Readiness says that there is something, not that there is no more room.
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until all that was written to a pipe has been taken.
///
/// # Errors
/// It is not taken.
pub fn wait_until_empty(pipe: &File) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    while rustix::io::ioctl_fionread(pipe)? > 0 {
        anyhow::ensure!(Instant::now() < end, "the input is not taken within {DEADLINE:?}");
        // A pipe tells nobody that it is empty.
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until a file is there.
///
/// # Errors
/// It does not come.
pub fn wait_for_file(path: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    while !path.exists() {
        anyhow::ensure!(Instant::now() < end, "{} does not come within {DEADLINE:?}", path.display());
        // Whoever makes it is not our child.
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Gathered {
    read: Mutex<Content>,
    news: Condvar,
}

impl Gathered {
    fn read(&self) -> MutexGuard<'_, Content> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one pipe to its end, on a thread of its own.
pub struct Reader {
    path: PathBuf,
    gathered: Arc<Gathered>,
}

impl Reader {
    /// Makes the pipe and reads it.
    ///
    /// # Errors
    /// The pipe cannot be made.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        make(path)?;
        // Open before anybody can write, as containerd's is: a writer that comes and goes before its reader takes its words along.
        let source = open_reader(path)?;
        let gathered = Arc::new(Gathered::default());
        let shared = Arc::clone(&gathered);
        thread::spawn(move || gather(&source, &shared));
        Ok(Self { path: path.to_owned(), gathered })
    }

    /// All of it, when it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn whole(&self) -> anyhow::Result<String> {
        self.wait_until("its end", |read| read.ended)
    }

    /// What came so far, as soon as that contains a text.
    ///
    /// # Errors
    /// It does not come.
    pub fn until(&self, text: &str) -> anyhow::Result<String> {
        self.wait_until(text, |read| String::from_utf8_lossy(&read.bytes).contains(text))
    }

    /// What came so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.gathered.read().bytes).into_owned()
    }

    /// Bytes of it so far.
    pub fn len(&self) -> usize {
        self.gathered.read().bytes.len()
    }

    /// Nothing came so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wait_until(&self, what: &str, enough: impl Fn(&Content) -> bool) -> anyhow::Result<String> {
        let end = Instant::now() + DEADLINE;
        let mut read = self.gathered.read();
        while !enough(&read) {
            let left = end.checked_duration_since(Instant::now()).filter(|_| !read.ended);
            let Some(left) = left else {
                bail!("the output has no {what:?}: {:?}", String::from_utf8_lossy(&read.bytes));
            };
            read = self.gathered.news.wait_timeout(read, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(String::from_utf8_lossy(&read.bytes).into_owned())
    }
}

impl Drop for Reader {
    // The thread may still wait for a writer that never came.
    fn drop(&mut self) {
        drop(OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&self.path));
    }
}

fn gather(mut source: &File, gathered: &Gathered) {
    let mut block = vec![0; 65536];
    // Readable when there is something, or when whoever wrote has gone; not while nobody has written yet.
    while wait_for_news(source).is_ok() {
        match source.read(&mut block) {
            Ok(0) => break,
            Ok(count) => gathered.read().bytes.extend_from_slice(&block[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        gathered.news.notify_all();
    }
    gathered.read().ended = true;
    gathered.news.notify_all();
}

fn wait_for_news(pipe: &File) -> rustix::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return polled.map(drop),
        }
    }
}
