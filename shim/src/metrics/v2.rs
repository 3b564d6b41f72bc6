//! `io.containerd.cgroups.v2.Metrics`: the guest's own words.

use agent_protocol::messages::{DeviceIo, HugePages, Interface, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};
use protobuf::MessageField;

/// All of them.
pub(super) fn metrics(stats: &StatsResponse) -> Metrics {
    Metrics {
        pids: some(PidsStat { current: stats.pids_current, limit: stats.pids_max, ..PidsStat::default() }),
        cpu: some(CPUStat {
            usage_usec: stats.cpu_usage_usec,
            user_usec: stats.cpu_user_usec,
            system_usec: stats.cpu_system_usec,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_usec,
            ..CPUStat::default()
        }),
        memory: some(memory(stats)),
        memory_events: some(memory_events(stats)),
        hugetlb: stats.huge_pages.iter().map(huge_pages).collect(),
        network: stats.interfaces.iter().map(network).collect(),
        io: some(IOStat { usage: stats.io.iter().map(io_entry).collect(), ..IOStat::default() }),
        ..Metrics::default()
    }
}

fn memory(stats: &StatsResponse) -> MemoryStat {
    let figure = |name: &str| stats.memory_stat.get(name).copied().unwrap_or(0);
    MemoryStat {
        anon: figure("anon"),
        file: figure("file"),
        kernel_stack: figure("kernel_stack"),
        slab: figure("slab"),
        sock: figure("sock"),
        shmem: figure("shmem"),
        file_mapped: figure("file_mapped"),
        file_dirty: figure("file_dirty"),
        file_writeback: figure("file_writeback"),
        anon_thp: figure("anon_thp"),
        inactive_anon: figure("inactive_anon"),
        active_anon: figure("active_anon"),
        inactive_file: figure("inactive_file"),
        active_file: figure("active_file"),
        unevictable: figure("unevictable"),
        slab_reclaimable: figure("slab_reclaimable"),
        slab_unreclaimable: figure("slab_unreclaimable"),
        pgfault: figure("pgfault"),
        pgmajfault: figure("pgmajfault"),
        // The kernel has counted refaults by kind since 5.9; the message has one field.
        workingset_refault: figure("workingset_refault_anon").saturating_add(figure("workingset_refault_file")),
        workingset_activate: figure("workingset_activate_anon").saturating_add(figure("workingset_activate_file")),
        workingset_nodereclaim: figure("workingset_nodereclaim"),
        pgrefill: figure("pgrefill"),
        pgscan: figure("pgscan"),
        pgsteal: figure("pgsteal"),
        pgactivate: figure("pgactivate"),
        pgdeactivate: figure("pgdeactivate"),
        pglazyfree: figure("pglazyfree"),
        pglazyfreed: figure("pglazyfreed"),
        thp_fault_alloc: figure("thp_fault_alloc"),
        thp_collapse_alloc: figure("thp_collapse_alloc"),
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        max_usage: stats.memory_peak,
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_max,
        ..MemoryStat::default()
    }
}

fn memory_events(stats: &StatsResponse) -> MemoryEvents {
    let figure = |name: &str| stats.memory_events.get(name).copied().unwrap_or(0);
    MemoryEvents {
        low: figure("low"),
        high: figure("high"),
        max: figure("max"),
        oom: figure("oom"),
        oom_kill: figure("oom_kill"),
        oom_group_kill: figure("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn huge_pages(pages: &HugePages) -> HugeTlbStat {
    HugeTlbStat {
        pagesize: pages.page_size.clone(),
        current: pages.current,
        max: pages.max,
        failcnt: pages.failures,
        ..HugeTlbStat::default()
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

fn io_entry(device: &DeviceIo) -> IOEntry {
    IOEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.read_ops,
        wios: device.write_ops,
        ..IOEntry::default()
    }
}

fn some<T>(message: T) -> MessageField<T> {
    MessageField::some(message)
}
