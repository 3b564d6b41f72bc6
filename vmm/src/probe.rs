//! `kata-rs-vmm probe`: can this host run machines, and of which kind?
//!
//! The one command that opens a path: it is run by a person or by the launcher's host check, and never becomes a machine.

use std::{fs::OpenOptions, io};

use vmm_control::{KvmKind, Probe, VCPUS_MAX};

use crate::kvm::{Host, KvmError, Vm};

const KVM_PATH: &str = "/dev/kvm";

/// Software KVM runs machines with one vCPU: the guest kernel's page of interrupt state has one owner.
pub const PVM_VCPUS_MAX: u8 = 1;

/// Why the host's KVM could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No such file.
    #[error(
        "{KVM_PATH} does not exist: load the module kvm_intel or kvm_amd, and switch virtualisation on in the firmware or in the outer hypervisor"
    )]
    Absent,
    /// Not for us.
    #[error("no permission to open {KVM_PATH}: run as root, or join the group that owns it (usually kvm)")]
    Permission,
    /// Something else.
    #[error("{KVM_PATH} could not be opened")]
    Open(#[source] io::Error),
    /// KVM said no.
    #[error("{KVM_PATH} is there, but no machine could be made: is another hypervisor holding the processor?")]
    Kvm(#[source] KvmError),
}

/// Looks at this host.
pub fn host() -> Result<Probe, ProbeError> {
    let file = OpenOptions::new().read(true).write(true).open(KVM_PATH).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProbeError::Absent,
        io::ErrorKind::PermissionDenied => ProbeError::Permission,
        _ => ProbeError::Open(error),
    })?;
    let host = Host::new(file.into()).map_err(ProbeError::Kvm)?;
    let (api_version, missing_capabilities) = (host.api_version(), host.missing());
    if !missing_capabilities.is_empty() {
        // No machine to ask; the list of what is missing is the answer.
        return Ok(Probe { kvm: KvmKind::Hardware, api_version, missing_capabilities, vcpus_max: 0 });
    }
    let vm = Vm::new(host).map_err(ProbeError::Kvm)?;
    let kvm = vm.vcpu(0).and_then(|vcpu| vcpu.kind()).map_err(ProbeError::Kvm)?;
    Ok(Probe { kvm, api_version, missing_capabilities, vcpus_max: vcpus_max(kvm, vm.vcpus_max()).into() })
}

/// Most vCPUs of a machine on such a host. How many of them make sense is for the operator to say (`max_vcpus`, by default the host's processors).
pub fn vcpus_max(kvm: KvmKind, taken: usize) -> u8 {
    let taken = u8::try_from(taken).unwrap_or(VCPUS_MAX).clamp(1, VCPUS_MAX);
    match kvm {
        KvmKind::Hardware => taken,
        KvmKind::Pvm => PVM_VCPUS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_kvm_runs_one_vcpu_and_hardware_up_to_the_limit() {
        assert_eq!(vcpus_max(KvmKind::Pvm, 64), 1);
        assert_eq!(vcpus_max(KvmKind::Hardware, 8), 8);
        assert_eq!(vcpus_max(KvmKind::Hardware, 4096), VCPUS_MAX);
    }
}
