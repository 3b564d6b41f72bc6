//! What the process gives up before it reads its first message.
//!
//! Namespaces, an empty root, another user and the system call filters are the jail's work; these cost a handful of
//! system calls and hold without it.

use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior, setsid},
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
}

/// No new privileges by exec, no core dump or ptrace by the same user, no terminal.
///
/// Without a terminal a Ctrl-C is the launcher's alone: it goes to the container, or ends the machine in order.
///
/// There is no PR_SET_PDEATHSIG: the kernel ties it to the *thread* that made us, and a launcher may well make us on one that
/// ends before the machine does. The hang-up of the control socket tells of the launcher's end, whatever its threads do.
pub fn process() -> Result<(), HardenError> {
    let failed = |operation| move |source| HardenError::Prctl { operation, source };
    set_no_new_privs(true).map_err(failed("PR_SET_NO_NEW_PRIVS"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("PR_SET_DUMPABLE"))?;
    // Fails when we lead a group already, and then no terminal's group has us either.
    let _ = setsid();
    Ok(())
}
