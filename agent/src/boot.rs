//! What PID 1 does before and after its call.
//!
//! Every system call counts here (30 us each on a software KVM), so the order is: what the call itself needs (nothing but a socket),
//! the call, and while the host reads the hello the mounts. The kernel has mounted /dev (CONFIG_DEVTMPFS_MOUNT) and opened the console.
//! Containers bring mounts of their own, so the guest itself has only what the agent and they need.
//!
//! What is deliberately absent: cgroup controllers, which are enabled on the way to each container's cgroup, and `oom_score_adj`. The
//! kernel never picks PID 1 (`oom_unkillable_task`, mm/oom_kill.c), and a value of ours
//! would be inherited by every container.

use std::{fs, io, path::Path};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    process::{Resource, Rlimit, setrlimit},
};

use crate::shared_memory;

/// Why the guest could not be set up; it ends the machine, and the console tells it.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system is missing.
    #[error("cannot mount {fs} at {at}: is it in the guest kernel, and {at} in the guest image?")]
    Mount {
        /// Type of the file system.
        fs: &'static str,
        /// Mount point.
        at: &'static str,
        /// Of mount(2).
        #[source]
        source: io::Error,
    },
    /// A folder could not be made.
    #[error("cannot make {path}: does the guest kernel have devtmpfs and tmpfs?")]
    Write {
        /// What.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Open files for each process unless its container says otherwise; fs.nr_open's default, so never refused.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Mount points in the order of need: (type, place, flags, options).
const MOUNTS: [(&str, &str, MountFlags, Option<&std::ffi::CStr>); 5] = [
    ("proc", "/proc", SAFE, None),
    ("sysfs", "/sys", SAFE, None),
    ("cgroup2", CGROUP_ROOT, SAFE, Some(c"nsdelegate,memory_recursiveprot")),
    ("tmpfs", "/run", RUN, Some(c"mode=0755")),
    ("tmpfs", "/tmp", RUN, Some(c"mode=1777")),
];
const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// Root file systems of containers are mounted below /run: programs and devices there must work.
const RUN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounts and limits; call as PID 1.
pub fn set_up() -> Result<(), BootError> {
    mount_dev_unless_there()?;
    for (fs, at, flags, options) in MOUNTS {
        mount_one(fs, at, flags, options)?;
    }
    fs::create_dir("/run/kata-rs").map_err(|source| BootError::Write { path: "/run/kata-rs", source })?;
    let files = Rlimit { current: Some(OPEN_FILES_MAX), maximum: Some(OPEN_FILES_MAX) };
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        log::warn!("containers keep the kernel's limit of open files: {error}");
    }
    if let Err(error) = crate::sys::raise_loopback() {
        log::warn!("the pod has no loopback interface: {error}");
    }
    Ok(())
}

/// The pod's devices that not every container needs at once: shared memory that containers of a pod bind, and terminals.
pub fn set_up_rest() -> Result<(), BootError> {
    for (fs, at, flags, options) in [
        ("devpts", "/dev/pts", RUN.union(MountFlags::NOEXEC), Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5")),
        ("tmpfs", shared_memory::PLACE, shared_memory::FLAGS, Some(c"mode=1777")),
    ] {
        match fs::create_dir(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BootError::Write { path: at, source: error });
            }
            Ok(()) | Err(_) => mount_one(fs, at, flags, options)?,
        }
    }
    Ok(())
}

fn mount_dev_unless_there() -> Result<(), BootError> {
    if Path::new("/dev/null").exists() {
        return Ok(());
    }
    mount_one("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755"))
}

fn mount_one(
    fs: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: Option<&std::ffi::CStr>,
) -> Result<(), BootError> {
    match mount(fs, at, fs, flags, options) {
        // Somebody (the kernel, an initramfs) was first.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(errno) => Err(BootError::Mount { fs, at, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_can_have_programs_below_run_but_nobody_can_in_proc_or_sys() {
        for (_, at, flags, _) in MOUNTS {
            assert_eq!(flags.contains(MountFlags::NOEXEC), !["/run", "/tmp"].contains(&at), "{at}");
        }
    }
}
