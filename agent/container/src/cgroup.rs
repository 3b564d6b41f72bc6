//! One container's cgroup, version 2.
//!
//! The kernel's document (Documentation/admin-guide/cgroup-v2.rst) is the source of every file name and format. Waiting for
//! a state (frozen, thawed, empty) is waiting for cgroup.events to change, which poll(2) reports; nothing here sleeps.

mod devices;
mod limits;
mod stats;

pub use devices::{Access, DeviceProgram, DeviceRule};
pub use limits::{IfAbsent, Limits};
pub use stats::{DeviceIo, HugePages, Stats};

use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a freeze or the death of a killed container may take. Processes in uninterruptible sleep are what takes long.
pub const EVENT_DEADLINE: Duration = Duration::from_secs(10);
/// Most levels of cgroups that a container may make below its own. A nested orchestrator needs ten; a tree without a bound would
/// outgrow path names, the stack of who walks it, and with that PID 1.
pub const DEPTH_MAX: u32 = 32;
/// Most cgroups that a container may make below its own: each costs the guest's kernel memory and whoever walks the tree time.
pub const DESCENDANTS_MAX: u32 = 4096;

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A directory could not be made, opened or removed.
    #[error("could not {action} the cgroup {}", path.display())]
    Directory {
        /// What was attempted.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("could not {action} {} (value {value:?}); the guest's kernel may lack the controller or the device", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What was to be written, empty for reading.
        value: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The rules for devices could not be put in force.
    #[error("could not attach the device rules to {}; the guest's kernel must have CONFIG_CGROUP_BPF", path.display())]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A state was not reached in time.
    #[error("the cgroup {} was not {wanted} within {} s; a process may hang in the kernel", path.display(), EVENT_DEADLINE.as_secs())]
    Late {
        /// The cgroup.
        path: PathBuf,
        /// The state waited for.
        wanted: &'static str,
    },
}

/// A cgroup that exists.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    root: PathBuf,
    directory: OwnedFd,
}

/// Device rules of a cgroup, to be replaced by others. They stay in force without this.
#[derive(Debug)]
pub struct RulesInForce(OwnedFd);

impl Cgroup {
    /// Makes `path` below `root` (where the cgroup2 tree is mounted), with every controller that `root` has handed down to it, and
    /// room for [`DEPTH_MAX`] levels and [`DESCENDANTS_MAX`] cgroups of the container's own.
    ///
    /// # Errors
    /// The directory cannot be made, or a controller not be enabled.
    pub fn create(root: &Path, path: &Path) -> Result<Self, CgroupError> {
        let mut at = root.to_owned();
        for component in path.components() {
            enable_controllers(&at)?;
            at.push(component);
            match fs::create_dir(&at) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Directory { action: "make", path: at, source });
                }
                _ => {}
            }
        }
        let directory = open_directory(&at)?;
        let cgroup = Self { path: at, root: root.to_owned(), directory };
        // Files of the top of a container's view are not the container's to write (nsdelegate), so these hold.
        cgroup.write("cgroup.max.depth", &DEPTH_MAX.to_string())?;
        cgroup.write("cgroup.max.descendants", &DESCENDANTS_MAX.to_string())?;
        Ok(cgroup)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The cgroup for a further process: this one, unless the container has made cgroups of its own below and so may have no
    /// processes here; then the one its first process is in.
    pub(crate) fn for_exec(&self, init_pid: u32) -> io::Result<OwnedFd> {
        let handed_down = self.read("cgroup.subtree_control").unwrap_or_default();
        if handed_down.trim().is_empty() {
            return self.directory.try_clone();
        }
        let text = fs::read_to_string(format!("/proc/{init_pid}/cgroup"))?;
        let inside = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::fs::open(self.root.join(inside), DIRECTORY, Mode::empty())?)
    }

    /// Writes limits, one after the other.
    ///
    /// # Errors
    /// The first that the kernel does not take.
    pub fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        for write in limits.writes() {
            match self.write(&write.file, &write.value) {
                Err(CgroupError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && write.if_absent == IfAbsent::Skip =>
                {
                    log::debug!("{} has no {}, limit {} not needed", self.path.display(), write.file, write.value);
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Puts device rules in force, in the place of rules that were put in force before, or besides any already there.
    ///
    /// # Errors
    /// The kernel has no BPF for cgroups, or refuses the program.
    pub fn attach_devices(
        &self,
        program: &DeviceProgram,
        replaced: Option<&RulesInForce>,
    ) -> Result<RulesInForce, CgroupError> {
        let replaced = replaced.map(|rules| rules.0.as_fd());
        sys::attach_device_program(self.directory.as_fd(), program.instructions(), replaced)
            .map(RulesInForce)
            .map_err(|source| CgroupError::Devices { path: self.path.clone(), source })
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// It has ended, or this cgroup may have no processes.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Stops every process, and returns once all have stopped.
    ///
    /// # Errors
    /// They did not within [`EVENT_DEADLINE`]; then they go on.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        self.wait_for("frozen", "1", "frozen").inspect_err(|_| {
            // Who is told that it is not frozen must not find it frozen a moment later. The first error says more than one of this.
            let _ = self.write("cgroup.freeze", "0");
        })
    }

    /// Lets every process run again.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for("frozen", "0", "thawed")
    }

    /// Kills every process, also those of cgroups below, also frozen ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// What the container uses.
    ///
    /// # Errors
    /// A file of the kernel's core cannot be read. Those of absent controllers count as zero.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let read = |file: &str| match self.read(file) {
            Err(CgroupError::File { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) =>
            {
                Ok(String::new())
            }
            outcome => outcome,
        };
        Stats::collect(&self.page_sizes(), read)
    }

    /// Sizes of huge pages that are counted here.
    fn page_sizes(&self) -> Vec<String> {
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let size = |name: std::ffi::OsString| {
            let size = name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(".current")?.to_owned();
            (!size.ends_with(".rsvd")).then_some(size)
        };
        names.filter_map(size).collect()
    }

    /// Pids of every process, also of cgroups below.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn procs(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        self.walk(&self.path, &mut |directory| {
            let text = read_file(&directory.join("cgroup.procs"))?;
            // Zero stands for a process of a pid namespace that cannot be seen from here.
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
            Ok(())
        })?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// The file whose changes tell of shortages of memory, to be watched with POLLPRI.
    ///
    /// # Errors
    /// The kernel has no memory controller, or the cgroup is gone.
    pub fn memory_events(&self) -> Result<File, CgroupError> {
        let path = self.path.join("memory.events");
        File::open(&path).map_err(|source| CgroupError::File { action: "open", path, value: String::new(), source })
    }

    /// How many processes the OOM killer has ended here or below.
    ///
    /// # Errors
    /// memory.events is there and cannot be read.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        Ok(self.stats_of_events()?.get("oom_kill").copied().unwrap_or(0))
    }

    fn stats_of_events(&self) -> Result<std::collections::BTreeMap<String, u64>, CgroupError> {
        match self.read("memory.events") {
            Err(CgroupError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
            outcome => outcome.map(|text| stats::flat_keyed(&text)),
        }
    }

    /// Waits until no process is left, then removes the cgroup and those below it. One that is gone already is no error.
    ///
    /// # Errors
    /// A process is left after [`EVENT_DEADLINE`], or a directory cannot be removed.
    pub fn remove(&self) -> Result<(), CgroupError> {
        match self.wait_for("populated", "0", "empty") {
            Err(CgroupError::File { source, .. }) if is_gone(&source) => return Ok(()),
            outcome => outcome?,
        }
        remove_tree(&self.path)
    }

    fn wait_for(&self, key: &'static str, value: &str, wanted: &'static str) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let fail = |source| CgroupError::File { action: "read", path: path.clone(), value: String::new(), source };
        let mut events = File::open(&path).map_err(fail)?;
        let deadline = Instant::now() + EVENT_DEADLINE;
        loop {
            let mut text = String::new();
            events.rewind().and_then(|()| events.read_to_string(&mut text)).map_err(fail)?;
            if text.lines().any(|line| line.split_once(' ') == Some((key, value))) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Late { path: self.path.clone(), wanted });
            }
            changed(&events, left).map_err(fail)?;
        }
    }

    fn walk(
        &self,
        directory: &Path,
        visit: &mut dyn FnMut(&Path) -> Result<(), CgroupError>,
    ) -> Result<(), CgroupError> {
        visit(directory)?;
        for below in subdirectories(directory)? {
            // A cgroup that its owner removes meanwhile has nothing to tell; the processes of a threaded one are listed above.
            match self.walk(&below, visit) {
                Err(CgroupError::File { source, .. } | CgroupError::Directory { source, .. }) if is_gone(&source) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        read_file(&self.path.join(file))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        write_file(&self.directory, &self.path, file, value)
    }
}

/// What the kernel answers about a cgroup that has been removed, by name and through a file still open.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|errno| CgroupError::Directory {
        action: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

/// Waits until the kernel says that the file has changed, or the time is over.
fn changed(events: &File, left: Duration) -> io::Result<()> {
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Hands every controller a cgroup has down to its children.
fn enable_controllers(at: &Path) -> Result<(), CgroupError> {
    let has = read_file(&at.join("cgroup.controllers"))?;
    let enabled = read_file(&at.join("cgroup.subtree_control"))?;
    let directory = open_directory(at)?;
    for controller in has.split_whitespace().filter(|name| !enabled.split_whitespace().any(|other| other == *name)) {
        write_file(&directory, at, "cgroup.subtree_control", &format!("+{controller}"))?;
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File {
        action: "read",
        path: path.to_owned(),
        value: String::new(),
        source,
    })
}

fn write_file(directory: &OwnedFd, path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(directory, file, flags, Mode::empty(), resolve)
        .and_then(|fd| rustix::io::write(&fd, value.as_bytes()))
        .map(drop)
        .map_err(|errno| CgroupError::File {
            action: "write",
            path: path.join(file),
            value: value.to_owned(),
            source: errno.into(),
        })
}

fn subdirectories(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let fail = |source| CgroupError::Directory { action: "list", path: path.to_owned(), source };
    let mut below = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            below.push(entry.path());
        }
    }
    Ok(below)
}

/// Children before parents; one that is gone already is no error.
fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    match subdirectories(path) {
        Err(CgroupError::Directory { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        below => below?.iter().try_for_each(|path| remove_tree(path))?,
    }
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Directory { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
