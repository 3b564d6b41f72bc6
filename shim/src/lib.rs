//! The containerd shim of kata-rs: what containerd says on one side, a [`pod::Pod`] on the other.
//!
//! This crate enforces two rules: nothing of containerd's vocabulary leaves it, and it holds no unsafe code.
//!
//! # One binary, three lives
//! ```text
//! containerd ── shim start ──> [start]   finds or binds the pod's socket, spawns the daemon, prints the address, ends
//!                                 └────> [daemon]  one per pod: serves Task and Sandbox, publishes events, copies stdio, owns the machine
//! containerd ── shim delete ─> [delete]  after the daemon is gone: undoes what is left, from the pod's record
//! ```
//! # A request's way through the daemon
//! ```text
//! listener ─┬─> task ────────────┬─> containers (table, lifecycle) ─> machine ─> PodFront ─> pod
//!           └─> sandbox_service ─┘      ├─> publisher ─> containerd's events service
//!                                       └─> stdio (fifo, file, logging program <-> stream)
//! ```
//! What a container's configuration wants run on the host around its life (OCI hooks), [`hooks`] runs, each sequence on a thread of its own.
//!
//! Both services ask for the pod by a `pod_request`, and for its end by `ending`.
//!
//! A request that changes something runs in a task of its own: containerd may hang up in the middle (it restarts), and a
//! half-made container would be nobody's.
//!
//! # Invariants
//! - Sockets have paths below a folder of mode 0700; none is abstract (CVE-2020-15257).
//! - Of a process, `TaskStart` is published before `TaskExit`, and `TaskExit` exactly once: [`lifecycle`].
//! - An event leaves the queue when containerd has it, not before: [`publisher`].
//! - A byte of stdio is never held in this process: [`stdio::transfer`].
#![forbid(unsafe_code)]

pub mod arguments;
pub mod bootstrap;
pub mod bundle;
pub mod containers;
pub mod daemon;
pub mod delete;
pub mod doom;
pub mod ending;
pub mod events;
pub mod giving_up;
pub mod group;
pub mod hooks;
pub mod info;
pub mod lifecycle;
pub mod listener;
mod lock;
pub mod logfile;
pub mod machine;
pub mod malformed;
pub mod metrics;
pub mod oci_json;
pub mod pod_cgroup;
pub mod pod_files;
pub mod pod_request;
pub mod publisher;
pub mod refusal;
pub mod sandbox;
/// Messages of `proto/sandbox_config.proto`.
#[allow(missing_docs, warnings, clippy::all, clippy::unwrap_used, reason = "generated code")]
#[rustfmt::skip]
pub mod sandbox_config {
    include!(concat!(env!("OUT_DIR"), "/sandbox_config.rs"));
}
pub mod sandbox_service;
pub mod start;
pub mod stdio;
pub mod sweep;
pub mod task;
pub mod timestamp;
