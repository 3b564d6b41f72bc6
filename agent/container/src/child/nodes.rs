//! What fills /dev: device nodes and links.

use super::{Newborn, StepError};
use crate::in_root::{Root, remove};
use crate::plan::{DeviceKind, DevicePlan};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;
use std::path::Path;

impl Newborn {
    /// The umask is zero in this process, so a node has its mode from birth.
    pub(super) fn make_device(&self, device: &DevicePlan) -> Result<(), StepError> {
        let (directory, name) = Root::new(self.root_fd()?).parent_of(&device.path)?;
        let kind = match device.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => FileType::Fifo,
        };
        let number = makedev(device.major, device.minor);
        match mknodat(&directory, name, kind, Mode::from_raw_mode(device.mode), number) {
            Err(Errno::EXIST) => {
                let there = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let same = FileType::from_raw_mode(there.st_mode) == kind && there.st_rdev == number;
                return if same { Ok(()) } else { Err(StepError::because("the image has something else there")) };
            }
            outcome => outcome?,
        }
        let (owner, group) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        Ok(chownat(&directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(super) fn make_link(&self, path: &Path, target: &Path) -> Result<(), StepError> {
        let (directory, name) = Root::new(self.root_fd()?).parent_of(path)?;
        remove(&directory, name)?;
        Ok(symlinkat(target, &directory, name)?)
    }
}
