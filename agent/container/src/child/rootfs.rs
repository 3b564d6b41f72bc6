//! The root of a container: isolated from the guest's mounts, made a mount, and in the end made `/`.

use super::{Newborn, StepError};
use crate::in_root::{Leaf, Root};
use crate::plan::{Propagation, PropagationKind, RootfsPlan};
use crate::procfs::is_procfs;
use crate::sys;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// MOUNT_ATTR_RDONLY of linux/mount.h.
const RDONLY: u64 = 1;

/// MS_* propagation of linux/mount.h, as mount_setattr takes it.
pub(super) fn propagation_flag(kind: PropagationKind) -> u64 {
    match kind {
        PropagationKind::Unbindable => 1 << 17,
        PropagationKind::Private => 1 << 18,
        PropagationKind::Slave => 1 << 19,
        PropagationKind::Shared => 1 << 20,
    }
}

const PRIVATE: Propagation = Propagation { kind: PropagationKind::Private, recursive: true };

impl Newborn {
    pub(super) fn isolate_mounts(&mut self, follow: bool) -> Result<(), StepError> {
        let kind = if follow { PropagationKind::Slave } else { PropagationKind::Private };
        let slash = open_path("/")?;
        sys::set_mount_attributes(slash.as_fd(), 0, 0, propagation_flag(kind), true)?;
        self.null = Some(real_null()?);
        Ok(())
    }

    pub(super) fn mount_rootfs(&mut self, rootfs: &RootfsPlan) -> Result<(), StepError> {
        let place = open_path(&rootfs.path)?;
        let tree = clone_tree(&place, true)?;
        sys::set_mount_attributes(tree.as_fd(), 0, 0, propagation_flag(PropagationKind::Private), false)?;
        attach(&tree, &place)?;
        if !is_procfs(&tree)? {
            self.root_device = Some(rustix::fs::fstat(&tree)?.st_dev);
        }
        self.root = Some(tree);
        Ok(())
    }

    pub(super) fn make_directory(&self, path: &Path) -> Result<(), StepError> {
        match Root::new(self.root_fd()?).open_or_make(path, Leaf::Directory) {
            // Entering it later gives the better message.
            Err(Errno::ROFS | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    /// The root directory becomes `/` by the way pivot_root(2) describes for a put_old of ".": no name inside it is needed.
    pub(super) fn pivot(&mut self, rootfs: &RootfsPlan) -> Result<(), StepError> {
        let guest = open_path("/")?;
        rustix::process::fchdir(self.root_fd()?)?;
        rustix::process::pivot_root(".", ".")?;
        // The guest's tree is now on top of ours; out of it, without telling anybody else to unmount.
        rustix::process::fchdir(&guest)?;
        sys::set_mount_attributes(guest.as_fd(), 0, 0, propagation_flag(PropagationKind::Private), true)?;
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        self.null = None;
        self.root = None;
        let root = open_path("/")?;
        let propagation = rootfs.propagation.unwrap_or(Propagation { recursive: false, ..PRIVATE });
        let flag = propagation_flag(propagation.kind);
        sys::set_mount_attributes(root.as_fd(), 0, 0, flag, propagation.recursive)?;
        if rootfs.readonly {
            sys::set_mount_attributes(root.as_fd(), RDONLY, 0, 0, false)?;
        }
        Ok(())
    }
}

/// The guest's /dev/null, and nothing that only has its name: masks made of something writable would hide nothing
/// (CVE-2025-31133).
fn real_null() -> Result<OwnedFd, StepError> {
    let null = open_path("/dev/null")?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
    if is_null { Ok(null) } else { Err(StepError::because("the guest's /dev/null is not the null device")) }
}

pub(super) fn open_path(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// A detached copy of the mount (and of those below it) at a descriptor.
pub(super) fn clone_tree(at: &OwnedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(at, "", flags)
}

/// Attaches a detached mount at a descriptor.
pub(super) fn attach(mount: &OwnedFd, at: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", at, "", flags)
}
