//! The conformance suite: what containerd and the kubelet may expect of any runtime, as cases that run against ours and against runc in the
//! same run.
//!
//! runc is the measure. A case that runc does not pass is a wrong case, unless it says by [`Case::unlike_in_runc`] what this host's runc does
//! instead. Where a container in a virtual machine must behave otherwise, the case says so by [`Case::unlike_in_a_vm`], with the reason
//! and with what is asserted in its place: a difference is checked, too. The outcome is a table, `docs/conformance.md`, which holds no
//! dates and no times, so that the same behaviour makes the same text.
//!
//! [`task`] drives a shim as containerd's task layer does: the start protocol, the Task service, and a listener for events.
//! [`pods`] drives containerd's CRI socket as the kubelet does.

mod bundle;
mod case;
mod container;
mod events;
mod fifo;
pub mod pods;
mod shim;
mod stdio;
mod subject;
mod suite;
mod table;
pub mod task;

pub use bundle::{Bundle, process};
pub use case::{Case, Check, Difference, Outcome, Verdict};
pub use container::{SIGKILL, SIGTERM, Task};
pub use events::{EventLog, Told};
pub use fifo::Reader;
pub use shim::{Answer, Deleted, Shim, code_of, refused};
pub use stdio::Stdio;
pub use subject::Subject;
pub use suite::{Options, Report, run};

/// Every case, in the order of the table; the lists can be run side by side.
pub fn cases() -> Vec<Vec<Case>> {
    vec![task::cases(), pods::cases(), pods::network_cases()]
}
