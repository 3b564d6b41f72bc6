//! What the process gives up before it reads its first message.
//!
//! Namespaces, an empty root, another user and the system call filters are the jail's work; these cost a handful of
//! system calls and hold without it.

use rustix::{
    process::{DumpableBehavior, Signal, getppid, set_dumpable_behavior, set_parent_process_death_signal, setsid},
    thread::set_no_new_privs,
};

/// Why the process could not give something up.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// A prctl failed.
    #[error("the process could not be hardened: {operation} failed: is a foreign system call filter in force?")]
    Prctl {
        /// Which one.
        operation: &'static str,
        /// From the kernel.
        #[source]
        source: rustix::io::Errno,
    },
    /// The parent died before it could be tied to us.
    #[error("the launcher is gone already")]
    Orphan,
}

/// No new privileges by exec, no core dump or ptrace by the same user, no terminal, and death with the parent.
///
/// Without a terminal a Ctrl-C is the launcher's alone: it goes to the container, or ends the machine in order.
///
/// The kernel watches the parent's *thread*: a launcher spawns us from one that lives as long as the machine. The control socket
/// tells of its end as well, so this is the second line.
pub fn process() -> Result<(), HardenError> {
    let failed = |operation| move |source| HardenError::Prctl { operation, source };
    set_no_new_privs(true).map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    // Fails when we lead a group already, and then no terminal's group has us either.
    let _ = setsid();
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("PR_SET_PDEATHSIG"))?;
    if getppid() == parent { Ok(()) } else { Err(HardenError::Orphan) }
}
