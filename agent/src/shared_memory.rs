//! The memory that the containers of a pod share at /dev/shm: one tmpfs of the guest, which each of them binds.

use std::{ffi::CString, io};

use rustix::{
    fs::statfs,
    mount::{MountFlags, mount_remount},
};

/// Where it is mounted at boot.
pub const PLACE: &str = "/dev/shm";
/// Flags of that mount, which a change of size must repeat.
pub const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Makes it so large, unless it is already; blocking.
///
/// # Errors
/// The kernel refuses: there is more in it than that.
pub fn set_size(bytes: u64) -> io::Result<()> {
    let now = statfs(PLACE)?;
    let bytes_now = now.f_blocks.saturating_mul(u64::try_from(now.f_bsize).unwrap_or_default());
    if bytes_now == bytes {
        return Ok(());
    }
    let options = CString::new(format!("size={bytes}"))?;
    Ok(mount_remount(PLACE, FLAGS, options.as_c_str())?)
}
