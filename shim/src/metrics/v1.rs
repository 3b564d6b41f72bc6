//! `io.containerd.cgroups.v1.Metrics`: the guest's figures under the names of version 1.
//!
//! What version 2 does not count (page-ins, processors one by one, the kernel's network memory) stays zero. `total_` figures are those with the cgroups
//! below, which version 2 always counts along.

use agent_protocol::messages::{DeviceIo, HugePages, Interface, StatsResponse};
use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    NetworkStat, PidsStat, Throttle,
};
use protobuf::MessageField;

/// "No limit" in version 1: the largest number of pages of 4 KiB, in bytes (PAGE_COUNTER_MAX). Readers know it.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;
const NANOS_PER_MICRO: u64 = 1000;

/// All of them.
pub(super) fn metrics(stats: &StatsResponse) -> Metrics {
    Metrics {
        hugetlb: stats.huge_pages.iter().map(huge_pages).collect(),
        pids: some(PidsStat { current: stats.pids_current, limit: stats.pids_max, ..PidsStat::default() }),
        cpu: some(cpu(stats)),
        memory: some(memory(stats)),
        blkio: some(blkio(&stats.io)),
        network: stats.interfaces.iter().map(network).collect(),
        memory_oom_control: some(MemoryOomControl {
            oom_kill: stats.memory_events.get("oom_kill").copied().unwrap_or(0),
            ..MemoryOomControl::default()
        }),
        ..Metrics::default()
    }
}

fn cpu(stats: &StatsResponse) -> CPUStat {
    let nanos = |micros: u64| micros.saturating_mul(NANOS_PER_MICRO);
    CPUStat {
        usage: some(CPUUsage {
            total: nanos(stats.cpu_usage_usec),
            user: nanos(stats.cpu_user_usec),
            kernel: nanos(stats.cpu_system_usec),
            ..CPUUsage::default()
        }),
        throttling: some(Throttle {
            periods: stats.cpu_periods,
            throttled_periods: stats.cpu_throttled_periods,
            throttled_time: nanos(stats.cpu_throttled_usec),
            ..Throttle::default()
        }),
        ..CPUStat::default()
    }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let figure = |name: &str| stats.memory_stat.get(name).copied().unwrap_or(0);
    let limit = stats.memory_max.min(UNLIMITED);
    // Version 1 counts memory and swap together.
    let with_swap = MemoryEntry {
        limit: limit.saturating_add(stats.swap_max).min(UNLIMITED),
        usage: stats.memory_current.saturating_add(stats.swap_current),
        ..MemoryEntry::default()
    };
    MemoryStat {
        cache: figure("file"),
        rss: figure("anon"),
        rss_huge: figure("anon_thp"),
        mapped_file: figure("file_mapped"),
        dirty: figure("file_dirty"),
        writeback: figure("file_writeback"),
        pg_fault: figure("pgfault"),
        pg_maj_fault: figure("pgmajfault"),
        inactive_anon: figure("inactive_anon"),
        active_anon: figure("active_anon"),
        inactive_file: figure("inactive_file"),
        active_file: figure("active_file"),
        unevictable: figure("unevictable"),
        hierarchical_memory_limit: limit,
        hierarchical_swap_limit: with_swap.limit,
        total_cache: figure("file"),
        total_rss: figure("anon"),
        total_rss_huge: figure("anon_thp"),
        total_mapped_file: figure("file_mapped"),
        total_dirty: figure("file_dirty"),
        total_writeback: figure("file_writeback"),
        total_pg_fault: figure("pgfault"),
        total_pg_maj_fault: figure("pgmajfault"),
        total_inactive_anon: figure("inactive_anon"),
        total_active_anon: figure("active_anon"),
        total_inactive_file: figure("inactive_file"),
        total_active_file: figure("active_file"),
        total_unevictable: figure("unevictable"),
        usage: some(MemoryEntry {
            limit,
            usage: stats.memory_current,
            max: stats.memory_peak,
            failcnt: stats.memory_events.get("max").copied().unwrap_or(0),
            ..MemoryEntry::default()
        }),
        swap: some(with_swap),
        kernel: some(MemoryEntry { limit: UNLIMITED, usage: figure("kernel"), ..MemoryEntry::default() }),
        kernel_tcp: some(MemoryEntry { limit: UNLIMITED, usage: figure("sock"), ..MemoryEntry::default() }),
        ..MemoryStat::default()
    }
}

fn blkio(devices: &[DeviceIo]) -> BlkIOStat {
    let entries = |read: fn(&DeviceIo) -> u64, write: fn(&DeviceIo) -> u64| {
        devices.iter().flat_map(move |device| {
            let (read, write) = (read(device), write(device));
            [("Read", read), ("Write", write), ("Total", read.saturating_add(write))].map(|(op, value)| BlkIOEntry {
                op: op.to_owned(),
                major: device.major,
                minor: device.minor,
                value,
                ..BlkIOEntry::default()
            })
        })
    };
    BlkIOStat {
        io_service_bytes_recursive: entries(|d| d.read_bytes, |d| d.write_bytes).collect(),
        io_serviced_recursive: entries(|d| d.read_ops, |d| d.write_ops).collect(),
        ..BlkIOStat::default()
    }
}

fn huge_pages(pages: &HugePages) -> HugetlbStat {
    HugetlbStat {
        usage: pages.current,
        max: pages.max.min(UNLIMITED),
        failcnt: pages.failures,
        pagesize: pages.page_size.clone(),
        ..HugetlbStat::default()
    }
}

fn network(interface: &Interface) -> NetworkStat {
    NetworkStat {
        name: interface.name.clone(),
        rx_bytes: interface.rx_bytes,
        rx_packets: interface.rx_packets,
        rx_errors: interface.rx_errors,
        rx_dropped: interface.rx_dropped,
        tx_bytes: interface.tx_bytes,
        tx_packets: interface.tx_packets,
        tx_errors: interface.tx_errors,
        tx_dropped: interface.tx_dropped,
        ..NetworkStat::default()
    }
}

fn some<T>(message: T) -> MessageField<T> {
    MessageField::some(message)
}
