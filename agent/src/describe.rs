//! What the guest is, as the guest itself reads it.

use agent_protocol::messages::DescribeResponse;

/// Kernel, memory and CPUs of this machine.
pub fn describe() -> DescribeResponse {
    let (total, available) = std::fs::read_to_string("/proc/meminfo").map(|text| memory(&text)).unwrap_or_default();
    DescribeResponse {
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        memory_total_bytes: total,
        memory_available_bytes: available,
        cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        ..Default::default()
    }
}

/// MemTotal and MemAvailable in bytes, of proc_meminfo(5).
fn memory(meminfo: &str) -> (u64, u64) {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    (bytes("MemTotal").unwrap_or(0), bytes("MemAvailable").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        assert_eq!(
            memory("MemTotal:  120000 kB\nMemFree: 1 kB\nMemAvailable:   99000 kB\n"),
            (122_880_000, 101_376_000)
        );
        assert_eq!(memory("nonsense"), (0, 0));
    }

    #[test]
    fn this_machine_has_a_kernel_memory_and_a_cpu() {
        let it = describe();
        assert!(!it.kernel_release.is_empty() && it.memory_total_bytes > it.memory_available_bytes && it.cpus > 0);
    }
}
