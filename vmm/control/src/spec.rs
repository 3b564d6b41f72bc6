//! What a machine is made of, as plain data.

use serde::{Deserialize, Serialize};

use crate::network::{NETWORKS_MAX, NetSpec, NetworkError, TAPS_IN_ALL_MAX, check_networks};

/// Number of an inherited file descriptor.
pub type FdNumber = i32;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 32;
/// Least memory with which the guest kernel and the agent come up.
pub const MEMORY_MIB_MIN: u32 = 48;
/// Most memory of a machine: 1 TiB.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;

/// Which guest kernel: stock for hardware KVM, or patched for software KVM ("PVM").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// Stock kernel, for KVM with VT-x or SVM.
    Hw,
    /// Patched kernel, for KVM without them.
    Pvm,
}

/// A whole machine. Every object is an inherited file descriptor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// /dev/kvm, open for reading and writing.
    pub kvm: FdNumber,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// One kernel a flavour; the VMM takes the one that fits the host.
    pub kernels: Vec<KernelSpec>,
    /// Words added to the VMM's own kernel command line, for instance a log level. Never from a pod's author.
    pub extra_cmdline: String,
    /// Block devices in order; the first is the guest image (/dev/vda).
    pub disks: Vec<DiskSpec>,
    /// The vsock device.
    pub vsock: VsockSpec,
    /// Folders shared through vhost-user file servers.
    pub shares: Vec<ShareSpec>,
    /// Network devices in order.
    pub networks: Vec<NetSpec>,
    /// Empty places for network devices that come later. With the devices at most [`NETWORKS_MAX`].
    pub network_places: u8,
    /// Where the guest's console goes.
    pub console: ConsoleSpec,
}

/// A kernel image, ELF or bzImage, open for reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// Which hosts it is for.
    pub flavour: Flavour,
    /// The file.
    pub file: FdNumber,
}

/// A raw image. No format is ever detected from its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The file or block device; opened O_RDONLY by the launcher when `read_only`.
    pub file: FdNumber,
    /// Refuse writes, whatever the guest negotiates.
    pub read_only: bool,
    /// At most 20 ASCII bytes, what VIRTIO_BLK_T_GET_ID answers.
    pub serial: String,
}

/// The vsock device and its two kinds of doors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// Context id of the guest, 3 or more.
    pub cid: u32,
    /// A listening unix stream socket. Host programs connect, write `CONNECT <port>\n`, and read `OK <host port>\n`.
    pub hybrid: FdNumber,
    /// Host ports that the guest may connect to; anything else is reset.
    pub calls: Vec<GuestCall>,
}

/// One connection that the guest may make: the VMM joins it to a connected unix stream it inherited, so it needs no path. Good once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestCall {
    /// Host port.
    pub port: u32,
    /// A connected unix stream socket; the launcher holds the other end.
    pub stream: FdNumber,
}

/// A folder shared by a vhost-user file server (virtiofsd).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// virtio-fs tag, at most 36 bytes.
    pub tag: String,
    /// Unix stream socket connected to the server.
    pub socket: FdNumber,
}

/// The guest's console.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// Where its bytes go: a pipe, socket or file. Never waited for: what does not fit is dropped.
    pub output: FdNumber,
}

/// Why a spec cannot be a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Number of vCPUs out of range.
    #[error("{0} vCPUs asked for, a machine has 1 to {VCPUS_MAX}: change the pod's CPU limit")]
    Vcpus(u8),
    /// Memory out of range.
    #[error(
        "{0} MiB of memory asked for, a machine has {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB: change the pod's memory limit"
    )]
    Memory(u32),
    /// A name that the device cannot carry.
    #[error("{what} {value:?} is empty, not ASCII or longer than {max} bytes")]
    Name {
        /// Which name.
        what: &'static str,
        /// What was given.
        value: String,
        /// Longest that fits.
        max: usize,
    },
    /// No kernel was given.
    #[error("no kernel given: install share/kata-rs/vmlinux-hw or vmlinux-pvm")]
    NoKernel,
    /// Context ids below 3 are reserved.
    #[error("vsock context id {0} is reserved: use 3 or more")]
    Cid(u32),
    /// More network devices than a machine has.
    #[error("{0} network devices asked for, a machine has at most {NETWORKS_MAX}: give the pod fewer interfaces")]
    Networks(usize),
    /// More queue pairs than a machine has.
    #[error("{0} taps asked for, a machine has at most {TAPS_IN_ALL_MAX}: open the taps with fewer queues")]
    Taps(usize),
    /// A network device that cannot be.
    #[error("network device {index} cannot be built")]
    Network {
        /// Its place in the spec.
        index: usize,
        /// Why.
        #[source]
        source: NetworkError,
    },
}

impl MachineSpec {
    /// Checks everything that can be checked without looking at a file.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.vcpus == 0 || self.vcpus > VCPUS_MAX {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if self.kernels.is_empty() {
            return Err(SpecError::NoKernel);
        }
        if self.vsock.cid < 3 || self.vsock.cid == u32::MAX {
            return Err(SpecError::Cid(self.vsock.cid));
        }
        check_networks(&self.networks, self.network_places)?;
        self.disks.iter().try_for_each(|d| check_name("disk serial", &d.serial, 20))?;
        self.shares.iter().try_for_each(|s| check_name("share tag", &s.tag, 36))
    }
}

fn check_name(what: &'static str, value: &str, max: usize) -> Result<(), SpecError> {
    if value.is_empty() || !value.is_ascii() || value.len() > max {
        return Err(SpecError::Name { what, value: value.to_owned(), max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{InterfaceSpec, NetLimit, NetRate};

    fn spec() -> MachineSpec {
        MachineSpec {
            kvm: 4,
            vcpus: 1,
            memory_mib: 128,
            kernels: vec![KernelSpec { flavour: Flavour::Hw, file: 5 }],
            extra_cmdline: String::new(),
            disks: vec![DiskSpec { file: 6, read_only: true, serial: "guest-image".into() }],
            vsock: VsockSpec { cid: 3, hybrid: 7, calls: vec![GuestCall { port: 1024, stream: 8 }] },
            shares: vec![ShareSpec { tag: "kata-rs".into(), socket: 9 }],
            networks: vec![NetSpec {
                taps: vec![11, 12],
                vhosts: vec![],
                interface: InterfaceSpec {
                    mac: [2, 0, 0, 0, 0, 1],
                    mtu: 1500,
                    any_source_mac: false,
                    rate: Some(NetRate { transmit: NetLimit::default(), receive: NetLimit::default() }),
                },
            }],
            network_places: 1,
            console: ConsoleSpec { output: 10 },
        }
    }

    #[test]
    fn an_ordinary_spec_passes_and_survives_json() {
        let spec = spec();
        assert_eq!(spec.check(), Ok(()));
        let json = serde_json::to_string(&spec).expect("plain data");
        assert_eq!(serde_json::from_str::<MachineSpec>(&json).expect("same words"), spec);
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        assert_eq!(MachineSpec { vcpus: 0, ..spec() }.check(), Err(SpecError::Vcpus(0)));
        assert_eq!(MachineSpec { vcpus: 33, ..spec() }.check(), Err(SpecError::Vcpus(33)));
        assert_eq!(MachineSpec { memory_mib: 8, ..spec() }.check(), Err(SpecError::Memory(8)));
    }

    #[test]
    fn an_unknown_word_is_refused() {
        let mut value = serde_json::to_value(spec()).expect("plain data");
        value["qemu_path"] = "/bin/sh".into();
        assert!(serde_json::from_value::<MachineSpec>(value).is_err());
    }
}
