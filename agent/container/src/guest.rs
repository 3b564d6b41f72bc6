//! What the plan needs to know about the guest it will run in, read once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Facts about the running guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFacts {
    /// CPUs that exist.
    pub cpus: u32,
    /// Memory of the guest, bytes.
    pub memory_bytes: u64,
    /// Where the cgroup2 tree is mounted.
    pub cgroup_root: PathBuf,
    /// Controllers of that tree.
    pub controllers: BTreeSet<String>,
    /// The highest capability number of this kernel.
    pub last_capability: u8,
}

impl GuestFacts {
    /// Reads them from /proc and /sys/fs/cgroup, which must be mounted.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read() -> io::Result<Self> {
        Self::read_at(Path::new("/sys/fs/cgroup"))
    }

    /// As [`GuestFacts::read`], for a cgroup2 tree mounted elsewhere.
    ///
    /// # Errors
    /// As [`GuestFacts::read`].
    pub fn read_at(cgroup_root: &Path) -> io::Result<Self> {
        let controllers = fs::read_to_string(cgroup_root.join("cgroup.controllers"))?;
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
        let info = rustix::system::sysinfo();
        // Not the standard library's count, which also looks for a quota of this process, in files: the agent has none.
        let cpus = rustix::thread::sched_getaffinity(None)?.count();
        Ok(Self {
            cpus,
            memory_bytes: info.totalram.saturating_mul(u64::from(info.mem_unit)),
            cgroup_root: cgroup_root.to_owned(),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            last_capability: last.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?,
        })
    }
}
