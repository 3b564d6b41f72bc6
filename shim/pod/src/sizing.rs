//! How large a machine a container asks for. Pure.
//!
//! A container's memory limit is what it may use, so the machine has that much and what guest kernel and agent need themselves.
//! Memory is backed by the host only when the guest touches it, so a generous machine costs the guest kernel's book-keeping only
//! (one 64-byte `struct page` for each 4 KiB: 1.6 %).

use oci_spec::runtime::Spec;
use vmm_control::{MEMORY_MIB_MAX, VCPUS_MAX};

/// Memory of a pod whose containers have no limit.
pub const MEMORY_DEFAULT_MIB: u32 = 512;
/// What guest kernel, agent and the file server's buffers in the guest take beside the containers.
pub const MEMORY_OVERHEAD_MIB: u32 = 64;
/// Least memory that we give: below it a guest has nothing left to cache files with.
pub const MEMORY_LEAST_MIB: u32 = 128;
/// vCPUs of a pod whose containers have no quota.
pub const VCPUS_DEFAULT: u8 = 1;
/// The kernel's own CFS period when a quota comes without one, in microseconds.
const CPU_PERIOD_DEFAULT_MICROS: u64 = 100_000;

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl MachineSize {
    /// The machine for one stand-alone container.
    pub fn for_container(spec: &Spec) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let memory = resources.and_then(|r| r.memory().as_ref()).and_then(|m| m.limit());
        let cpu = resources.and_then(|r| r.cpu().as_ref());
        Self::for_limits(memory, cpu.and_then(|c| c.quota()), cpu.and_then(|c| c.period()))
    }

    /// The machine for the sum of some limits: bytes, and CFS quota and period in microseconds; nothing or a negative number is no limit.
    pub fn for_limits(memory_bytes: Option<i64>, cpu_quota: Option<i64>, cpu_period: Option<u64>) -> Self {
        Self { vcpus: vcpus(cpu_quota, cpu_period), memory_mib: memory_mib(memory_bytes) }
    }
}

fn memory_mib(limit_bytes: Option<i64>) -> u32 {
    let Some(bytes) = limit_bytes.and_then(|b| u64::try_from(b).ok()).filter(|b| *b > 0) else {
        return MEMORY_DEFAULT_MIB;
    };
    let limit_mib = bytes.div_ceil(1 << 20);
    let book_keeping_mib = limit_mib.div_ceil(64);
    let wanted = limit_mib.saturating_add(book_keeping_mib).saturating_add(u64::from(MEMORY_OVERHEAD_MIB));
    let even = wanted.next_multiple_of(2);
    u32::try_from(even).unwrap_or(MEMORY_MIB_MAX).clamp(MEMORY_LEAST_MIB, MEMORY_MIB_MAX)
}

fn vcpus(quota: Option<i64>, period: Option<u64>) -> u8 {
    let Some(quota) = quota.and_then(|q| u64::try_from(q).ok()).filter(|q| *q > 0) else {
        return VCPUS_DEFAULT;
    };
    let period = period.filter(|p| *p > 0).unwrap_or(CPU_PERIOD_DEFAULT_MICROS);
    u8::try_from(quota.div_ceil(period)).unwrap_or(VCPUS_MAX).clamp(1, VCPUS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    #[test]
    fn memory_is_the_limit_and_what_the_guest_needs_itself() {
        for (limit, expected) in [
            (None, MEMORY_DEFAULT_MIB),
            (Some(0), MEMORY_DEFAULT_MIB),
            (Some(-1), MEMORY_DEFAULT_MIB),
            (Some(1), MEMORY_LEAST_MIB),
            (Some(16 * MIB), MEMORY_LEAST_MIB),
            (Some(128 * MIB), 128 + 2 + 64),
            (Some(1024 * MIB), 1024 + 16 + 64),
            (Some(i64::MAX), MEMORY_MIB_MAX),
        ] {
            assert_eq!(memory_mib(limit), expected, "{limit:?}");
        }
    }

    #[test]
    fn vcpus_are_the_quota_rounded_up() {
        for (quota, period, expected) in [
            (None, None, 1),
            (Some(-1), Some(100_000), 1),
            (Some(50_000), Some(100_000), 1),
            (Some(150_000), None, 2),
            (Some(400_000), Some(100_000), 4),
            (Some(400_000), Some(0), 4),
            (Some(i64::MAX), Some(1), VCPUS_MAX),
        ] {
            assert_eq!(vcpus(quota, period), expected, "{quota:?}/{period:?}");
        }
    }

    #[test]
    fn a_spec_without_linux_gets_the_defaults() {
        let mut spec = Spec::default();
        spec.set_linux(None);
        let size = MachineSize::for_container(&spec);
        assert_eq!(size, MachineSize { vcpus: VCPUS_DEFAULT, memory_mib: MEMORY_DEFAULT_MIB });
    }
}
