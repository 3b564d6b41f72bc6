//! What this host has to give to one machine.

use std::{fs, path::Path};

use vmm_control::{MEMORY_MIB_MAX, VCPUS_MAX};

/// List of the CPUs that are on (Linux Documentation/admin-guide/cputopology.rst).
const CPUS_ONLINE: &str = "/sys/devices/system/cpu/online";

/// What this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSize {
    /// CPUs that are on.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl HostSize {
    /// Looks. What cannot be seen sets no bound.
    pub fn now() -> Self {
        let info = rustix::system::sysinfo();
        let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
        Self { cpus: cpus(Path::new(CPUS_ONLINE)), memory_mib: u32::try_from(bytes >> 20).unwrap_or(MEMORY_MIB_MAX) }
    }
}

fn cpus(list: &Path) -> u8 {
    let count = fs::read_to_string(list).ok().and_then(|text| count(text.trim()));
    count.map_or(VCPUS_MAX, |count| u8::try_from(count).unwrap_or(u8::MAX))
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0, |sum: u32, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_in_ranges() {
        for (list, expected) in [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-0", None)]
        {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    #[test]
    fn a_host_that_does_not_tell_sets_no_bound() {
        assert_eq!(cpus(Path::new("/nowhere")), VCPUS_MAX);
    }

    #[test]
    fn this_host_has_something() {
        let host = HostSize::now();
        assert!(host.cpus >= 1 && host.memory_mib >= 64, "{host:?}");
    }
}
