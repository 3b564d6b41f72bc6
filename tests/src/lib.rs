//! The harness of the end-to-end tests, the demo and the benchmark: a private containerd, commands with deadlines, a terminal, and the
//! count of what a run left behind.
//!
//! Nothing here is a stand-in: containerd is Debian's, the kernel and KVM are real, the image is made from Debian's packages.
//! A test that lacks something says so by name ([`requirement`]) and is skipped; where `CI` is set a skip is a failure.

pub mod command;
pub mod conformance;
pub mod containerd;
mod network_namespace;
pub mod node;
pub mod prefix;
mod processes;
pub mod pty;
pub mod requirement;
pub mod residue;
pub mod rootfs;

pub use command::{Finished, run, run_for};
pub use containerd::Containerd;
pub use network_namespace::NetworkNamespace;
pub use processes::pids_of;
pub use residue::Residue;
