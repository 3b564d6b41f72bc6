//! What a VMM tells of its machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which kind of KVM the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmKind {
    /// VT-x or SVM.
    Hardware,
    /// Software KVM: the guest kernel must opt in to run natively.
    Pvm,
}

/// What `kata-rs-vmm probe` prints: is this a host that can run machines?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Kind of KVM.
    pub kvm: KvmKind,
    /// KVM_GET_API_VERSION.
    pub api_version: i32,
    /// Names of required KVM capabilities that the host lacks; empty on a good host.
    pub missing_capabilities: Vec<String>,
    /// Most vCPUs of one machine here: what KVM recommends, and one on software KVM.
    pub vcpus_max: u32,
}

/// A named moment of the boot, on the host's CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// For instance `vmm start`, `kernel loaded`, `vcpus run`, `root image ready`, `agent call`.
    pub name: String,
    /// Nanoseconds.
    pub monotonic_nanos: u64,
}

/// Figures of a running machine; none depends on the speed of the host but the marks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// vCPUs that the machine has. Software KVM gives one, whatever the spec asked for.
    #[serde(default)]
    pub vcpus: u8,
    /// Moments of the boot, in order.
    pub marks: Vec<Mark>,
    /// VM exits by reason (`io_in 0x64`-like detail is not kept: `io_in`, `io_out`, `mmio_write`, `halt`, ...) from the start until now. `acknowledged` are
    /// interrupts that the guest's drivers have acknowledged: exits that KVM answers by itself.
    pub exits: BTreeMap<String, u64>,
    /// The same at the moment of the agent's call; empty before it.
    pub exits_at_call: BTreeMap<String, u64>,
    /// Bytes of the kernel copied into the guest.
    pub kernel_bytes: u64,
    /// Bytes read from each disk until now, in the order of the spec.
    pub disk_bytes_read: Vec<u64>,
    /// Bytes of guest memory that the host has backed until now.
    pub memory_touched_bytes: u64,
    /// Figures of each network device, in the order of the spec.
    #[serde(default)]
    pub networks: Vec<NetReport>,
}

/// Figures of a network device from the machine's start until now. Bytes are those of Ethernet frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// Frames from the guest that the host took.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames for the guest that it got.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// From the guest, dropped for a source that is not the device's.
    pub dropped_source: u64,
    /// From the guest, dropped for a header or a length that makes no sense.
    pub dropped_malformed: u64,
    /// From the guest, dropped while the host's interface was full or down.
    pub dropped_full: u64,
    /// From the guest, dropped while the link was down.
    pub dropped_link: u64,
    /// For the guest, dropped as no buffers of its could hold them.
    pub dropped_unfit: u64,
    /// Times that the guest had no buffers while frames waited.
    pub starved: u64,
    /// Times that a limit held frames back.
    pub held_by_rate: u64,
    /// Times that the device's thread slept and was woken.
    #[serde(default)]
    pub wakeups: u64,
    /// Kicks of the driver: exits that KVM answers by itself, not counted among the machine's.
    pub kicks: u64,
    /// Interrupts to the driver; it acknowledges each, which is an exit that KVM answers by itself.
    pub interrupts: u64,
}

/// The machine could not be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// Which step: `kvm`, `memory`, `kernel`, `devices`, `vcpus`, ...
    pub step: String,
    /// The whole story, with the next thing to try.
    pub message: String,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The launcher said stop.
    Stopped,
    /// The guest switched itself off or asked for a reset (a panic ends so, too: the console tells).
    GuestReset,
    /// A triple fault.
    TripleFault,
    /// KVM could not go on with a vCPU.
    VcpuFault {
        /// Index of the vCPU.
        vcpu: u8,
        /// The exit and its detail.
        message: String,
    },
    /// A device or its server failed for good.
    DeviceFault {
        /// Which device.
        device: String,
        /// Why.
        message: String,
    },
}
