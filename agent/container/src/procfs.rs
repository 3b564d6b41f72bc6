//! A procfs that only the child can see.
//!
//! What a container's own /proc shows may have been prepared by its image or volumes (CVE-2025-52881: a write meant for a
//! security attribute landed in another file). So the child mounts one that is attached nowhere, and writes through that.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::os::fd::OwnedFd;
use std::path::Path;

/// PROC_SUPER_MAGIC of linux/magic.h.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// A detached procfs of the current pid namespace.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    pub fn open() -> Result<Self, Errno> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let safe =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, safe)?))
    }

    /// Writes one value to a file below /proc.
    pub fn write(&self, path: &str, value: &str) -> Result<(), Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&self.0, Path::new(path), flags, Mode::empty(), resolve)?;
        if !is_procfs(&file)? {
            return Err(Errno::XDEV);
        }
        match rustix::io::write(&file, value.as_bytes())? {
            written if written == value.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }
}

/// Whether a descriptor refers to a file of some procfs.
pub fn is_procfs(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == PROC_SUPER_MAGIC)
}
