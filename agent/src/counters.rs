//! A container's counters as the host is told them, with the machine's interfaces, which are the pod's.

use std::fs;

use agent_protocol::messages::{DeviceIo, HugePages, Interface, StatsResponse};

/// Most interfaces that are told; a pod has two or three.
const INTERFACES_MAX: usize = 64;
const LOOPBACK: &str = "lo";

/// Everything that is counted.
pub fn answer(stats: container::Stats) -> StatsResponse {
    StatsResponse {
        cpu_usage_usec: stats.cpu_usage_usec,
        cpu_user_usec: stats.cpu_user_usec,
        cpu_system_usec: stats.cpu_system_usec,
        cpu_periods: stats.cpu_periods,
        cpu_throttled_periods: stats.cpu_throttled_periods,
        cpu_throttled_usec: stats.cpu_throttled_usec,
        memory_current: stats.memory_current,
        memory_max: stats.memory_max,
        memory_peak: stats.memory_peak,
        swap_current: stats.swap_current,
        swap_max: stats.swap_max,
        memory_stat: stats.memory_stat.into_iter().collect(),
        pids_current: stats.pids_current,
        pids_max: stats.pids_max,
        memory_events: stats.memory_events.into_iter().collect(),
        io: stats.io.into_iter().map(device).collect(),
        huge_pages: stats.huge_pages.into_iter().map(huge_pages).collect(),
        interfaces: interfaces(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
        ..Default::default()
    }
}

fn device(device: container::cgroup::DeviceIo) -> DeviceIo {
    DeviceIo {
        major: device.major,
        minor: device.minor,
        read_bytes: device.read_bytes,
        write_bytes: device.write_bytes,
        read_ops: device.read_ops,
        write_ops: device.write_ops,
        ..Default::default()
    }
}

fn huge_pages(pages: container::cgroup::HugePages) -> HugePages {
    HugePages {
        page_size: pages.page_size,
        current: pages.current,
        max: pages.max,
        failures: pages.failures,
        ..Default::default()
    }
}

/// Lines of /proc/net/dev (proc(5)): a name, eight figures of what came in, eight of what went out. What a pod says to itself is
/// no traffic of its network.
fn interfaces(text: &str) -> Vec<Interface> {
    text.lines().filter_map(interface).filter(|interface| interface.name != LOOPBACK).take(INTERFACES_MAX).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, figures) = line.split_once(':')?;
    let figures: Vec<u64> = figures.split_whitespace().map_while(|figure| figure.parse().ok()).collect();
    let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
        figures[..]
    else {
        return None;
    };
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_and_the_headings_and_loopback_are_not() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     700       7    0    0    0     0          0         0      700       7    0    0    0     0       0          0
  eth0:     100       2    0    1    0     0          0         0      300       4    5    6    0     0       0          0
";
        let all = interfaces(text);
        assert_eq!(all.len(), 1);
        let eth0 = &all[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_packets, eth0.rx_dropped), ("eth0", 100, 2, 1));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (300, 4, 5, 6));
    }

    #[test]
    fn what_is_no_interface_is_left_out() {
        assert_eq!(interfaces("eth0: 1 2 3\nrubbish\n: x\n"), []);
    }
}
