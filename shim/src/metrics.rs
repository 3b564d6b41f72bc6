//! A container's figures as containerd reads them: `io.containerd.cgroups.v2.Metrics`. The guest has cgroup v2 whatever the host has.

use agent_protocol::messages::StatsResponse;
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::{Message, MessageField, well_known_types::any::Any};

/// The figures in the envelope that `Stats` returns.
///
/// # Errors
/// The message cannot be encoded, which its types exclude.
pub fn envelope(stats: &StatsResponse) -> protobuf::Result<Any> {
    Ok(Any {
        // The bare name: containerd's typeurl knows messages by it.
        type_url: "io.containerd.cgroups.v2.Metrics".to_owned(),
        value: metrics(stats).write_to_bytes()?,
        ..Any::default()
    })
}

fn metrics(stats: &StatsResponse) -> Metrics {
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

fn io_entry(device: &agent_protocol::messages::DeviceIo) -> IOEntry {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_has_the_name_that_containerd_knows() {
        let any =
            envelope(&StatsResponse { memory_current: 42, pids_current: 3, ..StatsResponse::default() }).expect("any");
        assert_eq!(any.type_url, <Metrics as protobuf::MessageFull>::descriptor().full_name());
        let metrics = Metrics::parse_from_bytes(&any.value).expect("parsed");
        assert_eq!((metrics.memory.usage, metrics.pids.current), (42, 3));
    }
}
