//! Who the process is: directory, user, groups, capabilities.

use super::{Newborn, StepError};
use crate::plan::{CapabilitySets, UserPlan, is_inside_root};
use crate::steps::{FailureKind, Identity};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file mode creation mask of a process that asks for none.
const DEFAULT_UMASK: u32 = 0o022;

impl Newborn {
    /// As root first, since a directory may be closed to the user and yet be where the process is to start; on a share where
    /// root is nobody, as the user later.
    pub(super) fn enter_directory(&mut self, path: &Path) -> Result<(), StepError> {
        match rustix::process::chdir(path) {
            Err(Errno::ACCESS | Errno::PERM) => self.still_to_enter = Some(path.to_owned()),
            outcome => outcome.map_err(|errno| no_directory(path, errno))?,
        }
        Ok(())
    }

    pub(super) fn become_user(&mut self, identity: &Identity) -> Result<(), StepError> {
        drop_bounding(identity.capabilities.bounding)?;
        set_keep_capabilities(true)?;
        change_user(&identity.user)?;
        set_held(&identity.capabilities, identity.until_filtered)?;
        set_ambient(identity.capabilities.ambient)?;
        set_keep_capabilities(false)?;
        if let Some(path) = self.still_to_enter.take() {
            rustix::process::chdir(&path).map_err(|errno| no_directory(&path, errno))?;
        }
        check_directory()?;
        rustix::process::umask(Mode::from_raw_mode(identity.user.umask.unwrap_or(DEFAULT_UMASK)));
        if identity.no_new_privileges {
            set_no_new_privs(true)?;
        }
        Ok(())
    }
}

fn no_directory(path: &Path, errno: Errno) -> StepError {
    let note = Some(path.display().to_string());
    StepError { errno: errno.raw_os_error(), note, kind: FailureKind::NoDirectory }
}

fn drop_bounding(keep: u64) -> Result<(), StepError> {
    for number in (0..64).filter(|number| keep & (1 << number) == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // The first number the kernel does not know is the end of the list.
            Err(Errno::INVAL) => break,
            outcome => outcome?,
        }
    }
    Ok(())
}

fn change_user(user: &UserPlan) -> Result<(), StepError> {
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(Some(gid), Some(gid), Some(gid))?;
    Ok(set_thread_res_uid(Some(uid), Some(uid), Some(uid))?)
}

/// Sets what a process has and may have; `extra` is held besides, until this is called again without it.
pub(super) fn set_held(sets: &CapabilitySets, extra: u64) -> Result<(), StepError> {
    Ok(set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: CapabilitySet::from_bits_retain(sets.effective | extra),
            permitted: CapabilitySet::from_bits_retain(sets.permitted | extra),
            inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
        },
    )?)
}

fn set_ambient(mask: u64) -> Result<(), StepError> {
    clear_ambient_capability_set()?;
    for number in (0..64).filter(|number| mask & (1 << number) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)?;
    }
    Ok(())
}

/// A working directory outside the root would be a way out (CVE-2024-21626).
fn check_directory() -> Result<(), StepError> {
    let directory = rustix::process::getcwd(Vec::new())?;
    if is_inside_root(Path::new(OsStr::from_bytes(directory.as_bytes()))) {
        return Ok(());
    }
    Err(StepError::because("the working directory is not inside the container"))
}
