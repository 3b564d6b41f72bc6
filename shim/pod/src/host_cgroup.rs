//! The pod's cgroup on the host: the pod's cost is the pod's, from the first instruction of the first process.
//!
//! ```text
//!  shim start ── writes the record ── makes the folders ── moves itself in ── spawns the daemon ── ends
//!                                                                               │ born inside, as are VMM and file server
//!  shim daemon, at its end ── moves itself out ── ends what is left inside ── removes the folders ── removes the record
//!  shim delete, after a crash ── kills what is left inside ── removes the folders ── removes the record
//! ```
//! The socket goes before all of that: as long as a pod ends, a new one of its name must not find it. A daemon that is killed in between leaves what
//! one that is killed at any other time leaves, and containerd, which runs `delete` whenever the connection to a shim is over, takes it away.
//!
//! Nobody is moved after it has done anything: a process moves itself while it is alone, and everything else is born inside. That needs no gate
//! between fork and exec and works on version 1 and 2 alike. On version 1 a single thread that moves itself through `tasks` also takes no
//! lock of the whole host, which moving somebody else through `cgroup.procs` does (kernel/cgroup/cgroup.c, cgroup_procs_write_start).
//!
//! # Which cgroup
//! Exactly the one that `cgroupsPath` of the pod's first container names, where runc would have put that container: `<pod>/<sandbox id>` below what
//! the kubelet made and limited, or the operator's own (containerd's ShimCgroup). There are no limits of ours: the RuntimeClass's overhead
//! is in the pod's. It never has cgroups below it, so version 2's rule that processes live in leaves holds. systemd is not asked over D-Bus even where the path
//! names its slices: the kubelet has had them made, a scope of our own would end with systemd's idea of it, and a shim started by containerd has no bus of its own to depend on.
//!
//! # Who removes what
//! Only what we made: each folder made here carries the extended attribute [`MARK`], in whichever order pods come and go, and the last to leave a
//! marked folder takes it along. Where the kernel has no such attributes the pod's own folder goes and those above it stay.
//!
//! # When it cannot be
//! A read-only tree or a missing right is no reason to fail a pod: it runs where it was started, and the record says why, for the log.

mod hierarchy;
mod path;
mod place;
mod usage;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use self::{hierarchy::Hierarchies, place::Place};
use crate::process::{open_pidfd, wait_for_end};

pub use self::path::{CgroupPathError, below_root};

/// Extended attribute of a folder that we made.
pub const MARK: &str = "trusted.kata-rs";
/// Longest record that is read back: a line for each hierarchy.
const RECORD_LEN_MAX: u64 = 256 << 10;
/// How long processes that are left inside may take to die of SIGKILL, all together.
const DEATH_DEADLINE: Duration = Duration::from_millis(2500);
/// Looks into `cgroup.procs`: a process may have forked while the others were killed.
const LOOKS_MAX: usize = 8;

/// A pod's cgroup, in each hierarchy of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    /// Below each hierarchy's root.
    path: PathBuf,
    /// Whether it is this pod's alone; an operator's ShimCgroup may hold many shims.
    own: bool,
    places: Vec<Place>,
    problems: Vec<String>,
    /// Tells this record from one of an earlier or later pod of the same name.
    serial: u64,
}

impl HostCgroup {
    /// The cgroup at `path` (of [`below_root`]) on this host; nothing is made yet.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn at(path: &Path, own: bool) -> io::Result<Self> {
        let Hierarchies(all) = Hierarchies::read()?;
        let places = all.into_iter().map(|hierarchy| Place::new(hierarchy, path)).collect();
        let mut serial = [0; 8];
        rustix::rand::getrandom(&mut serial, rustix::rand::GetRandomFlags::empty())?;
        let serial = u64::from_ne_bytes(serial);
        Ok(Self { path: path.to_owned(), own, places, problems: Vec::new(), serial })
    }

    /// Below each hierarchy's root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What did not work, as sentences for the log.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The folders, one in each hierarchy.
    pub fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.places.iter().map(Place::folder)
    }

    /// Makes the folders and moves this process in. Whatever does not work is among the [`problems`](Self::problems).
    pub fn enter(&mut self) {
        for place in &self.places {
            if let Err(error) = place.enter() {
                self.problems.push(format!(
                    "the pod's cost is not counted in {}: {error}; it runs in the cgroup that it was started in",
                    place.folder().display()
                ));
            }
        }
    }

    /// Moves this process back to where it came from, or to the root.
    pub fn leave(&self) {
        self.places.iter().for_each(Place::leave);
    }

    /// Removes the folders, and those above that are ours and empty. Tells what could not be removed.
    pub fn remove(&self) -> Vec<String> {
        let busy_is_fine = !self.own;
        self.places.iter().filter_map(|place| place.remove(busy_is_fine).err()).collect()
    }

    /// Kills what is left inside, waits for its end, then removes. The caller is outside.
    pub fn end(&self) -> Vec<String> {
        if self.own {
            self.kill_all();
        }
        self.remove()
    }

    fn kill_all(&self) {
        let deadline = Instant::now() + DEATH_DEADLINE;
        for _ in 0..LOOKS_MAX {
            let mut pids: Vec<_> = self.places.iter().flat_map(Place::processes).collect();
            pids.sort_unstable();
            pids.dedup();
            pids.retain(|pid| u32::try_from(*pid) != Ok(std::process::id()));
            let held: Vec<_> = pids.into_iter().filter_map(|pid| open_pidfd(pid).ok()).collect();
            if held.is_empty() {
                return;
            }
            for process in &held {
                // It may have ended by itself.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            for process in &held {
                wait_for_end(process, deadline.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// How many processes of the pod the host's OOM killer has ended. Zero where no hierarchy tells.
    pub fn oom_kills(&self) -> u64 {
        usage::oom_kills(&self.places)
    }

    /// What the pod costs the host, in the words of cgroup version 2 whatever the host has.
    ///
    /// # Errors
    /// It would not be the pod's: others are counted here too, or not all of the pod is. Or nothing can be read: the cgroup is gone, or was never made.
    pub fn cost(&self) -> io::Result<agent_protocol::messages::StatsResponse> {
        if !self.own || !self.problems.is_empty() {
            return Err(io::Error::other("the cgroup does not count the pod and nothing else"));
        }
        usage::usage(&self.places)
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// The folder is missing or full.
    pub fn write_record(&self, file: &Path) -> io::Result<()> {
        let draft = file.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(&draft, file)
    }

    /// Reads a record back; nothing when there is none, or none that is understood.
    pub fn read_record(file: &Path) -> Option<Self> {
        let mut text = Vec::new();
        fs::File::open(file).ok()?.take(RECORD_LEN_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Whether containerd on this host counts in cgroup version 2, by its own rule: /sys/fs/cgroup is that file system.
pub fn unified() -> bool {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests;
