//! Figures of a container or a pod as containerd reads them. It knows two messages, and which of them is expected follows the *host's* cgroups:
//! its own collectors read nothing else. The figures are the guest's, which has version 2 whatever the host has.

mod v1;
mod v2;

use agent_protocol::messages::StatsResponse;
use protobuf::{Message, well_known_types::any::Any};

/// The message that a containerd expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `io.containerd.cgroups.v1.Metrics`.
    Version1,
    /// `io.containerd.cgroups.v2.Metrics`.
    Version2,
}

impl Form {
    /// That of this host.
    pub fn of_host() -> Self {
        if pod::host_cgroup::unified() { Self::Version2 } else { Self::Version1 }
    }
}

/// The figures in the envelope that `Stats` returns, in the form of this host.
///
/// # Errors
/// The message cannot be encoded, which its types exclude.
pub fn envelope(stats: &StatsResponse) -> protobuf::Result<Any> {
    envelope_as(Form::of_host(), stats)
}

fn envelope_as(form: Form, stats: &StatsResponse) -> protobuf::Result<Any> {
    // The bare names: containerd's typeurl knows messages by them.
    let (name, value) = match form {
        Form::Version1 => ("io.containerd.cgroups.v1.Metrics", v1::metrics(stats).write_to_bytes()?),
        Form::Version2 => ("io.containerd.cgroups.v2.Metrics", v2::metrics(stats).write_to_bytes()?),
    };
    Ok(Any { type_url: name.to_owned(), value, ..Any::default() })
}

#[cfg(test)]
mod tests {
    use agent_protocol::messages::{DeviceIo, HugePages, Interface};
    use containerd_shim_protos::{cgroups::metrics::Metrics as MetricsV1, cgroups_v2::metrics::Metrics as MetricsV2};
    use protobuf::MessageFull;

    use super::*;

    fn stats() -> StatsResponse {
        let figures = [("anon", 10), ("file", 20), ("inactive_file", 5), ("pgfault", 7), ("pgmajfault", 1)];
        StatsResponse {
            cpu_usage_usec: 1500,
            cpu_user_usec: 1000,
            cpu_system_usec: 500,
            cpu_throttled_usec: 9,
            memory_current: 42,
            memory_max: u64::MAX,
            swap_max: u64::MAX,
            memory_peak: 64,
            pids_current: 3,
            pids_max: 100,
            memory_stat: figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            memory_events: [("oom_kill".to_owned(), 2), ("max".to_owned(), 4)].into(),
            io: vec![DeviceIo { major: 254, read_bytes: 8, write_bytes: 1, ..DeviceIo::default() }],
            huge_pages: vec![HugePages { page_size: "2MB".into(), current: 1, max: u64::MAX, ..HugePages::default() }],
            interfaces: vec![Interface { name: "eth0".into(), rx_bytes: 11, tx_bytes: 12, ..Interface::default() }],
            ..StatsResponse::default()
        }
    }

    #[test]
    fn each_envelope_has_the_name_that_containerd_knows() {
        let name = |form| envelope_as(form, &stats()).expect("any").type_url;
        assert_eq!(name(Form::Version1), MetricsV1::descriptor().full_name());
        assert_eq!(name(Form::Version2), MetricsV2::descriptor().full_name());
    }

    #[test]
    fn version_2_has_the_guests_figures() {
        let any = envelope_as(Form::Version2, &stats()).expect("any");
        let metrics = MetricsV2::parse_from_bytes(&any.value).expect("parsed");
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit, metrics.pids.current), (42, u64::MAX, 3));
        assert_eq!((metrics.memory.inactive_file, metrics.memory.anon, metrics.cpu.usage_usec), (5, 10, 1500));
        assert_eq!((metrics.hugetlb[0].current, metrics.network[0].rx_bytes), (1, 11));
    }

    #[test]
    fn version_1_has_the_same_figures_under_its_own_names_and_units() {
        let any = envelope_as(Form::Version1, &stats()).expect("any");
        let metrics = MetricsV1::parse_from_bytes(&any.value).expect("parsed");
        let usage = &metrics.cpu.usage;
        assert_eq!((usage.total, usage.user, usage.kernel), (1_500_000, 1_000_000, 500_000), "nanoseconds");
        assert_eq!(metrics.cpu.throttling.throttled_time, 9000);
        let memory = &metrics.memory;
        assert_eq!((memory.usage.usage, memory.usage.max, memory.usage.failcnt), (42, 64, 4));
        assert_eq!(memory.usage.limit, 0x7fff_ffff_ffff_f000, "no limit as version 1 writes it");
        assert_eq!((memory.total_inactive_file, memory.total_rss, memory.total_cache), (5, 10, 20));
        assert_eq!((memory.total_pg_fault, memory.total_pg_maj_fault), (7, 1));
        assert_eq!((metrics.pids.limit, metrics.memory_oom_control.oom_kill), (100, 2));
        let io: Vec<_> = metrics.blkio.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
        assert_eq!(io, [("Read", 8), ("Write", 1), ("Total", 9)]);
        assert_eq!((metrics.hugetlb[0].usage, metrics.network[0].tx_bytes), (1, 12));
    }

    #[test]
    fn a_limit_of_memory_is_kept_and_swap_is_counted_with_it() {
        let limited = StatsResponse { memory_max: 100, swap_max: 50, swap_current: 8, ..stats() };
        let any = envelope_as(Form::Version1, &limited).expect("any");
        let memory = MetricsV1::parse_from_bytes(&any.value).expect("parsed").memory.into_option().expect("memory");
        assert_eq!((memory.usage.limit, memory.hierarchical_memory_limit), (100, 100));
        assert_eq!((memory.swap.limit, memory.swap.usage), (150, 50));
    }
}
