//! What makes processes: the seam between the table of containers and the kernel.
//!
//! The real one is [`crate::stages`]; [`crate::plain`] runs programs as ordinary processes, so that everything on this side of the seam,
//! and the host's libraries, can be tested without root. Every method blocks and is called on a blocking thread, except where it says otherwise.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use agent_protocol::messages::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process, Spec};

use crate::{birth::Birth, refusal::Refusal};

/// Size of a terminal at its birth or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Columns, 0 for unknown.
    pub columns: u16,
    /// Rows, 0 for unknown.
    pub rows: u16,
}

/// The stdio that a new process is to have.
#[derive(Debug)]
pub enum ProcessStdio {
    /// These descriptors; none is /dev/null.
    Descriptors {
        /// Descriptor 0.
        stdin: Option<OwnedFd>,
        /// Descriptor 1.
        stdout: Option<OwnedFd>,
        /// Descriptor 2.
        stderr: Option<OwnedFd>,
    },
    /// A new terminal of this size.
    Terminal(Size),
}

/// A process that exists.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid here; it is our child, to be reaped by the one reaper.
    pub pid: u32,
    /// The master of its terminal, if it has one.
    pub master: Option<OwnedFd>,
}

/// What a new container shares with others of its pod, beyond what all of them do.
#[derive(Default)]
pub struct Shared {
    /// The container whose pid namespace it joins.
    pub pids_of: Option<Arc<dyn Container>>,
    /// Whether it joins a pid namespace of the pod's that is no container's.
    pub pids_of_pod: bool,
}

/// Makes containers.
pub trait Runtime: Send + Sync + 'static {
    /// Makes a container whose first process waits at its gate. On failure nothing of it is left.
    fn create(
        &self,
        id: &str,
        spec: &Spec,
        shared: &Shared,
        stdio: ProcessStdio,
    ) -> Result<(Spawned, Arc<dyn Container>), Refusal>;

    /// Gets ready whatever makes the next create faster.
    fn warm_up(&self);
}

/// A container that exists.
pub trait Container: Send + Sync + 'static {
    /// Opens the gate: returns when the program has been executed.
    fn start(&self) -> Result<(), Refusal>;
    /// Runs a further process. Given up, it fails soon, or the process that it returns has been killed.
    fn exec(&self, process: &Process, stdio: ProcessStdio, birth: &Birth) -> Result<Spawned, Refusal>;
    /// Its pid namespace, certainly its own and not that of somebody who has its first process's pid now.
    fn pid_namespace(&self) -> Result<OwnedFd, Refusal>;
    /// Signals every process; called by the table's task itself, so it does not wait for anything.
    fn signal_all(&self, signal: rustix::process::Signal) -> Result<(), Refusal>;
    /// memory.events of its cgroup, to be watched; none where there is no such thing. Called by the table's task itself.
    fn memory_events(&self) -> Option<File>;
    /// How many processes the OOM killer has ended; called by the table's task itself.
    fn oom_kills(&self) -> u64;
    /// Whether the end of the first process ends all others by itself (it is the init of a pid namespace of their own).
    fn ends_with_its_first(&self) -> bool;
    /// Its processes.
    fn pids(&self) -> Result<Vec<u32>, Refusal>;
    /// Its counters.
    fn stats(&self) -> Result<StatsResponse, Refusal>;
    /// New limits.
    fn update(&self, resources: &LinuxResources) -> Result<(), Refusal>;
    /// Stops every process where it is, or lets all go on; returns when it is so.
    fn freeze(&self, frozen: bool) -> Result<(), Refusal>;
    /// Kills what is left and gives everything back. May be tried again.
    fn destroy(&self) -> Result<(), Refusal>;
}
