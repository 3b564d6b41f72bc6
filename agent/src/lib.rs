//! The guest's PID 1: mounts, containers, stdio.
//!
//! ```text
//!  host --ttrpc on the one call--> service --messages--> ledger (owns the table) --> launch --> runtime (stages -> container)
//!  host --stdio connections-----> streams --claimed by--------------------------------^  |
//!                                                                   stdio (pumps) <------+
//!  kernel --SIGCHLD--> reaper (the only one) --status--> ledger --> waiters
//! ```
//!
//! # Invariants
//! - The agent calls the host, once ([`call`]); when the call ends, the machine ends.
//! - One task owns the table of containers ([`ledger`]) and never waits; blocking work is sent to blocking threads. So a kill is never
//!   behind anything else.
//! - One reaper ([`reaper`]); nobody else waits for children.
//! - What can happen to a process is decided by a pure function ([`process`]).
//! - Bytes of stdio never pass through the call, and a slow reader holds up its own process only ([`stdio`]).
//! - Few threads, small stacks: the agent's memory is paid for in every pod.
//!
//! Everything but [`boot`], the vsock half of [`call`] and what [`network`] asks of the kernel runs on any machine: tests serve the real
//! service over a socketpair, with ordinary processes ([`plain`]) in place of containers.

pub mod birth;
pub mod boot;
pub mod call;
pub mod configure;
pub mod containers;
mod counters;
pub mod describe;
pub mod forward;
pub mod home;
pub mod idle;
pub mod journal;
pub mod launch;
pub mod ledger;
pub mod network;
pub mod oom;
pub mod plain;
pub mod process;
pub mod reaper;
pub mod refusal;
pub mod runtime;
pub mod service;
pub mod shared_memory;
pub mod socket;
pub mod stages;
pub mod stdio;
pub mod streams;
mod sys;
