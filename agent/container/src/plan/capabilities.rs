//! The five capability sets of a process, capabilities(7), as bit masks.

use super::Warning;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use serde::{Deserialize, Serialize};

/// Bit masks, bit n being the capability with number n in linux/capability.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Ceiling over everything execve can grant.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over execve of a file that has them too.
    pub inheritable: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over execve of an ordinary file by a user who is not root.
    pub ambient: u64,
}

/// CAP_SYS_ADMIN, needed to install a seccomp filter without no_new_privs.
pub const SYS_ADMIN: u64 = 1 << 21;

/// In the order of linux/capability.h: the index is the number.
#[rustfmt::skip]
const NAMES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

impl CapabilitySets {
    /// Reads `process.capabilities`. None at all means a process without any.
    ///
    /// Capabilities the guest's kernel does not know (above `last_known`) cannot be given and are warned about. An ambient
    /// one must be permitted and inheritable, and an effective one permitted: the kernel would refuse the whole set, so what
    /// does not fit is left out.
    pub(super) fn read(asked: Option<&LinuxCapabilities>, last_known: u8, warnings: &mut Vec<Warning>) -> Self {
        let Some(asked) = asked else { return Self::default() };
        let known = u64::MAX >> (63 - u32::from(last_known.min(63)));
        let mut beyond = 0;
        let mut mask = |set: &Option<Capabilities>| {
            let all = set.iter().flatten().fold(0, |mask, capability| mask | bit(*capability));
            beyond |= all & !known;
            all & known
        };
        let bounding = mask(asked.bounding());
        let permitted = mask(asked.permitted());
        let inheritable = mask(asked.inheritable());
        let effective = mask(asked.effective()) & permitted;
        let ambient = mask(asked.ambient()) & permitted & inheritable;
        if beyond != 0 {
            warnings.push(Warning {
                field: "process.capabilities".into(),
                sentence: format!("the guest's kernel knows no capability above number {last_known}; left out"),
            });
        }
        Self { bounding, effective, inheritable, permitted, ambient }
    }
}

fn bit(capability: Capability) -> u64 {
    let name = capability.to_string();
    NAMES.iter().position(|known| *known == name).map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_specification_has_its_number() {
        assert_eq!(bit(Capability::Chown), 1);
        assert_eq!(bit(Capability::SysAdmin), SYS_ADMIN);
        assert_eq!(bit(Capability::NetBindService), 1 << 10);
        assert_eq!(bit(Capability::CheckpointRestore), 1 << 40);
        assert_eq!(bit(Capability::Bpf), 1 << 39);
        assert_eq!(bit(Capability::Mknod), 1 << 27);
    }

    #[test]
    fn what_the_kernel_does_not_know_is_left_out_with_a_warning() {
        let mut asked = LinuxCapabilities::default();
        let all = [Capability::Chown, Capability::CheckpointRestore].into_iter().collect::<Capabilities>();
        asked.set_bounding(Some(all.clone())).set_permitted(Some(all.clone())).set_effective(Some(all));
        asked.set_inheritable(None).set_ambient(None);
        let mut warnings = Vec::new();
        let sets = CapabilitySets::read(Some(&asked), 39, &mut warnings);
        assert_eq!(sets.bounding, 1);
        assert_eq!(warnings.len(), 1, "once, not for each set");
    }

    #[test]
    fn an_ambient_capability_must_be_permitted_and_inheritable() {
        let mut asked = LinuxCapabilities::default();
        let one = [Capability::NetRaw].into_iter().collect::<Capabilities>();
        asked.set_permitted(Some(one.clone())).set_ambient(Some(one)).set_inheritable(None);
        asked.set_bounding(None).set_effective(None);
        assert_eq!(CapabilitySets::read(Some(&asked), 40, &mut Vec::new()).ambient, 0);
    }
}
