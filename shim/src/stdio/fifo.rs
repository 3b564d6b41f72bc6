//! Opening what containerd names for stdio. Nothing here waits for whoever is at the other end.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use pod::ErrorKind;
use rustix::fs::{FileType, Mode, OFlags};

use super::arrival::Arrival;
use crate::refusal::Refusal;

/// A process's input, known to be a fifo; opened when the process starts.
pub struct Input(PathBuf);

impl Input {
    /// Checks that `path` is a fifo, without opening it.
    pub fn check(path: PathBuf) -> Result<Self, Refusal> {
        match kind("stdin", &path)? {
            FileType::Fifo => Ok(Self(path)),
            _ => Err(refusal("stdin", &path, "it is not a fifo")),
        }
    }

    /// Opens the end to read, and a write end, so that the input does not end before `CloseIO`. Waits for no writer.
    pub fn open(&self) -> Result<(OwnedFd, OwnedFd), Refusal> {
        Ok((open("stdin", &self.0, OFlags::RDONLY)?, open("stdin", &self.0, OFlags::WRONLY)?))
    }
}

/// Where a process's output goes.
pub enum Sink {
    /// A pipe with or without a name.
    Pipe {
        /// The end that is written.
        write: OwnedFd,
        /// A read end of a fifo, so that writing is no error while no reader is there.
        read_hold: Option<OwnedFd>,
    },
    /// A fifo whose reader has not come yet.
    Awaited(Arc<Arrival>),
    /// A file to append to.
    File(File),
}

impl Sink {
    /// Opens the fifo at `path`, without waiting for a reader.
    pub fn fifo(field: &str, path: &Path) -> Result<Self, Refusal> {
        if kind(field, path)? != FileType::Fifo {
            return Err(refusal(field, path, "it is not a fifo"));
        }
        match open_end(path, OFlags::WRONLY) {
            Ok(write) => Ok(Self::Pipe { write, read_hold: Some(open(field, path, OFlags::RDONLY)?) }),
            // Nobody reads (fifo(7)).
            Err(rustix::io::Errno::NXIO) => {
                Ok(Self::Awaited(Arrival::of(path).map_err(|error| refusal(field, path, error))?))
            }
            Err(error) => Err(refusal(field, path, io::Error::from(error))),
        }
    }

    /// Opens the file at `path` to append to it, making it and its folder. A fifo of that name is written like any fifo; anything
    /// else is refused, because writing to it could wait for somebody.
    pub fn file(field: &str, path: &Path) -> Result<Self, Refusal> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).map_err(|error| refusal(field, path, error))?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        match rustix::fs::open(path, flags | OFlags::CLOEXEC, mode) {
            Ok(file) => match rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::RegularFile) => Ok(Self::File(file.into())),
                Ok(FileType::Fifo) => Self::fifo(field, path),
                _ => Err(refusal(field, path, "it is neither a file nor a fifo")),
            },
            // What a fifo without a reader says to a writer that does not wait (open(2)).
            Err(rustix::io::Errno::NXIO) => Self::fifo(field, path),
            Err(error) => Err(refusal(field, path, io::Error::from(error))),
        }
    }
}

fn kind(field: &str, path: &Path) -> Result<FileType, Refusal> {
    let stat = rustix::fs::stat(path).map_err(|error| refusal(field, path, io::Error::from(error)))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn open(field: &str, path: &Path, direction: OFlags) -> Result<OwnedFd, Refusal> {
    open_end(path, direction).map_err(|error| refusal(field, path, io::Error::from(error)))
}

fn open_end(path: &Path, direction: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, direction | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn refusal(field: &str, path: &Path, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        ErrorKind::InvalidArgument,
        format!("cannot open {field} {}: {error}; does the client that made it still run?", path.display()),
    )
}
