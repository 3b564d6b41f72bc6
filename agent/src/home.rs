//! Where the service lives: alone in a machine as its PID 1, or as a guest in another process (tests).

use std::path::PathBuf;

use crate::reaper::Family;

/// What the service may take for granted.
#[derive(Debug, Clone)]
pub struct Home {
    /// Hostname, clock, sysctls and every process of this kernel are ours.
    pub owns_machine: bool,
    /// Whose children we reap.
    pub family: Family,
    /// Our folder for run-time files; shares are mounted below it.
    pub run: PathBuf,
}

impl Home {
    /// PID 1 of a pod's machine.
    pub fn machine() -> Self {
        Self { owns_machine: true, family: Family::Everybody, run: PathBuf::from("/run/kata-rs") }
    }

    /// A guest in another process, whose machine and children are not ours. `run` must exist.
    pub fn guest_of_process(run: PathBuf) -> Self {
        Self { owns_machine: false, family: Family::Claimed, run }
    }
}
