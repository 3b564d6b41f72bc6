//! Opening what containerd names for stdio.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use pod::ErrorKind;
use rustix::fs::{FileType, Mode, OFlags};

use crate::refusal::Refusal;

/// A process's input, known to be a fifo; opened when the process starts.
pub struct Input(String);

impl Input {
    /// Checks that `path` is a fifo, without opening it.
    pub fn check(path: &str) -> Result<Self, Refusal> {
        check_fifo(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Opens the end to read, and a write end, so that the input does not end before `CloseIO`. Waits for no writer.
    pub fn open(&self) -> Result<(OwnedFd, OwnedFd), Refusal> {
        Ok((open(&self.0, OFlags::RDONLY)?, open(&self.0, OFlags::WRONLY)?))
    }
}

/// Where a process's output goes.
pub enum Sink {
    /// A fifo.
    Fifo {
        /// The end that is written.
        write: OwnedFd,
        /// A read end, so that writing is no error while no reader is there.
        read_hold: OwnedFd,
    },
    /// A file to append to.
    File(File),
}

impl Sink {
    /// Opens the fifo or `file://` at `path`, without waiting for a reader.
    pub fn open(path: &str) -> Result<Self, Refusal> {
        match path.split_once("://") {
            None => {}
            Some(("file", file)) => return append(file).map(Self::File),
            Some(("fifo", fifo)) => return Self::open(fifo),
            Some((scheme, _)) => {
                return Err(Refusal::new(
                    ErrorKind::Unimplemented,
                    format!("cannot log to {path:?}: the scheme {scheme}:// is not supported; use a fifo or file://"),
                ));
            }
        }
        check_fifo(path)?;
        // In this order: opening the write end alone fails while nobody reads (fifo(7)).
        let read_hold = open(path, OFlags::RDONLY)?;
        Ok(Self::Fifo { write: open(path, OFlags::WRONLY)?, read_hold })
    }
}

fn check_fifo(path: &str) -> Result<(), Refusal> {
    let kind =
        rustix::fs::stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(|e| refusal(path, e))?;
    if kind == FileType::Fifo {
        return Ok(());
    }
    Err(Refusal::new(ErrorKind::InvalidArgument, format!("cannot use {path} for stdio: it is not a fifo")))
}

fn open(path: &str, direction: OFlags) -> Result<OwnedFd, Refusal> {
    rustix::fs::open(path, direction | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(|e| refusal(path, e))
}

fn append(path: &str) -> Result<File, Refusal> {
    let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)
        .and_then(|()| File::options().append(true).create(true).open(path))
        .map_err(|error| refusal(path, error))
}

fn refusal(path: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        ErrorKind::InvalidArgument,
        format!("cannot open {path} for stdio: {error}; does the client that made it still run?"),
    )
}
