//! Real containers on this machine: namespaces, mounts, terminals and exits, as root, from a root file system of busybox.
//!
//! Every test here needs root and a cgroup2 tree; without them it says so by name and passes, except in CI, where it fails.

mod execs;
mod filesystem;
mod process;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
