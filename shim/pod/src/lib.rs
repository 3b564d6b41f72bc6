//! A pod on the host: one machine, one file server, one share tree, one record, and the containers inside.
//!
//! This crate enforces one rule: it knows nothing of containerd. The shim and the `kata-rs` command are both thin fronts of it.
//!
//! - [`Installation`] says where our own files are.
//! - [`PodSpec`] says what pod to make; [`Pod::launch`] makes it, writing each acquisition into the record before it happens.
//! - [`Pod`] is a cheap handle to the one task that owns the pod's state; every method sends it a message.
//! - [`ProcessStreams`] are the host's ends of a process's stdio.
//! - [`host_cgroup`] puts the pod where its cost is counted.
//! - [`Configuration`] is what the operator says, [`annotations`] what a pod's author may ask for; [`sizing`] makes a machine's size of both.
//! - [`clean_up`] undoes what a dead owner left behind.
//!
//! # Who owns what
//! ```text
//!  Pod (handle, any number) --orders--> task: the ledger of processes, waiters, the teardown
//!      |                                   ^
//!      | acts (RPC, streams, shares)       | how it went
//!      v                                   |
//!  Agent (ttrpc)   Machine (control socket, process)   ShareTree (a thread in its own mount namespace)
//! ```
//! The task decides (a pure state machine per process, [`container`](self)), and never waits for the guest, so that a kill always gets its turn.
//! Every wait on the guest is raced against the machine's end, and has a deadline unless it waits for a process to end; what a start
//! waits for is given up when nothing moves in the machine any more.
//!
//! # Network
//! Whatever a plugin put into the pod's network namespace is what the guest has; [`network`](self) joins each interface to the machine.
//!
//! # Mounts
//! All mounts of a pod live in a mount namespace of its own, held by one thread and the file server. The host never sees them, and
//! when owner and file server die, however they die, the kernel undoes them. What is left for [`clean_up`] is processes and one folder.
#![deny(unsafe_code)]

mod agent;
pub mod annotations;
mod boot_files;
mod clean_up;
pub mod configuration;
mod console;
mod container;
mod error;
mod host;
pub mod host_cgroup;
mod host_pids;
mod ids;
mod installation;
mod launch;
mod launcher;
mod ledger;
mod machine;
mod membership;
mod moment;
mod mount_options;
mod namespaces;
mod network;
mod pod;
mod process;
mod progress;
mod record;
mod refusals;
pub mod setting;
mod share;
mod share_server;
mod shared_memory;
pub mod sizing;
mod spec;
mod state_dir;
mod storage;
mod streams;
mod sys;
mod task;
mod teardown;
mod translate;

#[cfg(test)]
mod double;

pub use clean_up::clean_up;
pub use configuration::Configuration;
pub use error::{ErrorKind, PodError};
pub use installation::Installation;
pub use namespaces::check_namespaces;
pub use pod::Pod;
pub use spec::{
    ContainerSpec, ExecSpec, Exit, HostMount, InterfaceRules, PodNetwork, PodSpec, ProcessId, ProcessStreams, RootFs,
    StdioWanted,
};
pub use sys::{inherit_nothing_else, make_tap};
pub use vmm_control::{NetReport, Report};
