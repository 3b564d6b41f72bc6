//! Messages between whoever starts a machine (the launcher) and the VMM process.
//!
//! # How a VMM is started
//! The launcher spawns `kata-rs-vmm` with inherited file descriptors: the control socket at [`CONTROL_FD`], and every
//! object of the machine at the number that the [`MachineSpec`] names. The VMM opens nothing by path after its start, so what
//! the launcher did not give it, it cannot reach.
//!
//! # The conversation
//! Each message is one [frame](frame): a 4-byte big-endian length and that many bytes of JSON.
//! The launcher sends [`ToMachine::Boot`] first. The VMM answers [`FromMachine::Booting`] once the vCPUs run, or
//! [`FromMachine::Failed`] and exits. [`ToMachine::Report`] may be asked at any time. At the machine's end the VMM sends
//! [`FromMachine::Ended`] and exits. When the launcher's end of the socket closes, the VMM exits at once: a machine never outlives its launcher.
//!
//! This crate enforces one rule: the launcher never links the VMM, and the VMM never knows what a container is.
#![forbid(unsafe_code)]

pub mod descriptors;
pub mod frame;
mod network;
mod report;
mod spec;

pub use network::{
    BURST_BYTES_MIN, Bucket, InterfaceSpec, MTU_MIN, NETWORKS_MAX, NetLimit, NetRate, NetSpec, NetworkError, RATE_MAX,
    TAPS_IN_ALL_MAX, TAPS_MAX,
};
pub use report::{BootFailure, Ending, KvmKind, Mark, NetReport, Probe, Report};
pub use spec::{
    ConsoleSpec, DiskSpec, FdNumber, Flavour, GuestCall, KernelSpec, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineSpec,
    ShareSpec, SpecError, VCPUS_MAX, VsockSpec,
};

use serde::{Deserialize, Serialize};

/// Number of the inherited control socket.
pub const CONTROL_FD: FdNumber = 3;

/// Environment variable of the VMM: the CLOCK_MONOTONIC nanoseconds at which the launcher began to spawn it. May be left out;
/// it becomes the mark `spawned`, the first of a report.
pub const SPAWNED_ENV: &str = "KATA_RS_SPAWNED_NANOS";

/// Launcher to VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMachine {
    /// Build this machine and run it. Sent once, first.
    Boot(Box<MachineSpec>),
    /// Answer with [`FromMachine::Report`].
    Report,
    /// Put a network device into an empty place. Its descriptors come behind this message, see [`descriptors`]; the answer is
    /// [`FromMachine::NetworkChanged`]. The guest finds the device when it looks there again, and not before.
    AttachNetwork {
        /// The place: those of the spec's devices first, then the empty ones.
        place: usize,
        /// Number of taps that come, one a queue pair.
        taps: usize,
        /// Number of instances of vhost-net that come behind them: as many, or none.
        vhosts: usize,
        /// The interface behind them.
        interface: InterfaceSpec,
    },
    /// Take a network device out of its place, whether the guest has done with it or not. The answer is [`FromMachine::NetworkChanged`].
    DetachNetwork {
        /// The place.
        place: usize,
    },
    /// Stop the vCPUs and exit.
    Stop,
}

/// VMM to launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMachine {
    /// The vCPUs run, on this kind of KVM, with the kernel of this flavour.
    Booting {
        /// What the VMM found the host to be.
        kvm: KvmKind,
        /// Flavour of the kernel it took.
        kernel: Flavour,
    },
    /// The machine could not be built; the VMM exits.
    Failed(BootFailure),
    /// Answer to [`ToMachine::Report`].
    Report(Report),
    /// Answer to [`ToMachine::AttachNetwork`] and [`ToMachine::DetachNetwork`].
    NetworkChanged {
        /// Which place.
        place: usize,
        /// Why it stays as it was; `None` when it was changed.
        failure: Option<String>,
    },
    /// The machine has ended; the VMM exits.
    Ended(Ending),
}
