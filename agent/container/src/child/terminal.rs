//! Stdio: three files from the agent, or a terminal of the container's own devpts.

use super::rootfs::{attach, clone_tree, open_path};
use super::{Newborn, StepError};
use crate::in_root::{self, Root};
use crate::sys;
use crate::terminal::{self as size, TerminalSize};
use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// DEVPTS_SUPER_MAGIC of linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Both ends of a terminal.
pub(super) struct Pair {
    agents_end: OwnedFd,
    programs_end: OwnedFd,
}

impl Pair {
    pub(super) fn into_agents_end(self) -> OwnedFd {
        self.agents_end
    }
}

impl Newborn {
    /// Opens a terminal. Nothing on the way may be a link, and its other end is asked of the kernel, not looked up by name
    /// (CVE-2025-52565).
    pub(super) fn open_terminal(
        &mut self,
        size: Option<TerminalSize>,
        owner: u32,
        console: bool,
    ) -> Result<(), StepError> {
        let slash = open_path("/")?;
        let root = Root::new(self.root.as_ref().unwrap_or(&slash).as_fd());
        let agents_end = root
            .open_without_links(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
            .map_err(|errno| StepError::from(errno).noting("a terminal needs a devpts mounted on /dev/pts"))?;
        if rustix::fs::fstatfs(&agents_end)?.f_type != DEVPTS_SUPER_MAGIC {
            return Err(StepError::because("it is not on a devpts"));
        }
        unlockpt(&agents_end)?;
        let programs_end =
            ioctl_tiocgptpeer(&agents_end, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        if let Some(wanted) = size {
            size::resize(agents_end.as_fd(), wanted)?;
        }
        rustix::fs::fchown(&programs_end, Some(Uid::from_raw(owner)), None)?;
        if console {
            bind_console(root, &programs_end)?;
        }
        self.terminal = Some(Pair { agents_end, programs_end });
        Ok(())
    }

    pub(super) fn set_up_stdio(&mut self, owner: u32) -> Result<(), StepError> {
        rustix::process::setsid()?;
        if let Some(pair) = &self.terminal {
            let tty = &pair.programs_end;
            sys::set_controlling_terminal(tty.as_fd())?;
            return put(tty, tty, tty);
        }
        let [stdin, stdout, stderr] = &mut self.stdio;
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin.take(), stdout.take(), stderr.take()) else {
            return Err(StepError::because("a descriptor is missing"));
        };
        for file in [&stdin, &stdout, &stderr] {
            give(file, owner)?;
        }
        put(&stdin, &stdout, &stderr)
    }
}

fn put(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), StepError> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Pipes belong to the user, so that /dev/stdout can be opened again. Devices, and files that cannot change hands, stay.
fn give(file: &OwnedFd, owner: u32) -> Result<(), StepError> {
    if in_root::file_type(file)? != FileType::Fifo {
        return Ok(());
    }
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(owner)), None)?)
}

/// Shows the terminal as /dev/console. The name is made here or is a plain file; a link would choose what is covered
/// (CVE-2026-88264).
fn bind_console(root: Root<'_>, tty: &OwnedFd) -> Result<(), StepError> {
    let (directory, name) = root.parent_of(Path::new("/dev/console"))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let place = rustix::fs::openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match in_root::file_type(&place)? {
        FileType::RegularFile | FileType::CharacterDevice => {}
        _ => return Err(StepError::because("/dev/console is neither a file nor a device")),
    }
    Ok(attach(&clone_tree(tty, false)?, &place)?)
}
