//! What a pod costs the host, read from its own cgroup. Version 1 is told in the words of version 2: the figures are the same.

use std::{collections::HashMap, fs, io, path::Path};

use agent_protocol::messages::{DeviceIo, StatsResponse};

use super::place::Place;

/// Limits of version 1 at or above this are none: the kernel's own "unlimited" is 2^63 rounded down to a page.
const NO_LIMIT_FROM: u64 = 1 << 62;
/// Ticks of a second in cpuacct.stat (USER_HZ, which Linux fixes for its users).
const TICKS: u64 = 100;

/// Names of memory.stat, version 1 then version 2. Where version 1 has a `total_` of it, that is the one.
const MEMORY_NAMES: [(&str, &str); 12] = [
    ("total_rss", "anon"),
    ("total_cache", "file"),
    ("total_shmem", "shmem"),
    ("total_mapped_file", "file_mapped"),
    ("total_dirty", "file_dirty"),
    ("total_writeback", "file_writeback"),
    ("total_inactive_anon", "inactive_anon"),
    ("total_active_anon", "active_anon"),
    ("total_inactive_file", "inactive_file"),
    ("total_active_file", "active_file"),
    ("total_pgfault", "pgfault"),
    ("total_pgmajfault", "pgmajfault"),
];

pub(super) fn usage(places: &[Place]) -> io::Result<StatsResponse> {
    let mut stats = StatsResponse { memory_max: u64::MAX, swap_max: u64::MAX, ..Default::default() };
    let mut there: Vec<_> = places.iter().filter(|place| place.folder().is_dir()).collect();
    if there.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the pod has no cgroup on this host"));
    }
    // Version 2 first: on a host with both, a controller of version 1 knows better what the other tells as zero.
    there.sort_by_key(|place| !place.hierarchy.unified);
    for place in there {
        match place.hierarchy.unified {
            true => unified(&place.folder(), &mut stats),
            false => version_1(place, &mut stats),
        }
    }
    Ok(stats)
}

pub(super) fn oom_kills(places: &[Place]) -> u64 {
    let count = |place: &Place| {
        let file = match (place.hierarchy.unified, place.has("memory")) {
            (true, _) => "memory.events",
            (false, true) => "memory.oom_control",
            (false, false) => return 0,
        };
        keyed(&place.folder(), file).get("oom_kill").copied().unwrap_or(0)
    };
    places.iter().map(count).max().unwrap_or(0)
}

fn unified(folder: &Path, stats: &mut StatsResponse) {
    let cpu = keyed(folder, "cpu.stat");
    let of = |key: &str| cpu.get(key).copied().unwrap_or(0);
    stats.cpu_usage_usec = of("usage_usec");
    stats.cpu_user_usec = of("user_usec");
    stats.cpu_system_usec = of("system_usec");
    stats.cpu_periods = of("nr_periods");
    stats.cpu_throttled_periods = of("nr_throttled");
    stats.cpu_throttled_usec = of("throttled_usec");
    stats.memory_current = number(folder, "memory.current", u64::MAX);
    stats.memory_max = limit(folder, "memory.max");
    stats.memory_peak = number(folder, "memory.peak", u64::MAX);
    stats.swap_current = number(folder, "memory.swap.current", u64::MAX);
    stats.swap_max = limit(folder, "memory.swap.max");
    stats.memory_stat = keyed(folder, "memory.stat");
    stats.memory_events = keyed(folder, "memory.events");
    stats.pids_current = number(folder, "pids.current", 0);
    stats.pids_max = number(folder, "pids.max", 0);
    stats.io = fs::read_to_string(folder.join("io.stat")).unwrap_or_default().lines().filter_map(io_of).collect();
}

fn version_1(place: &Place, stats: &mut StatsResponse) {
    let folder = place.folder();
    if place.has("cpuacct") {
        let ticks = keyed(&folder, "cpuacct.stat");
        let micros = |key: &str| ticks.get(key).copied().unwrap_or(0).saturating_mul(1_000_000 / TICKS);
        stats.cpu_usage_usec = number(&folder, "cpuacct.usage", 0) / 1000;
        (stats.cpu_user_usec, stats.cpu_system_usec) = (micros("user"), micros("system"));
    }
    if place.has("cpu") {
        let cpu = keyed(&folder, "cpu.stat");
        let of = |key: &str| cpu.get(key).copied().unwrap_or(0);
        (stats.cpu_periods, stats.cpu_throttled_periods) = (of("nr_periods"), of("nr_throttled"));
        stats.cpu_throttled_usec = of("throttled_time") / 1000;
    }
    if place.has("memory") {
        let figures = keyed(&folder, "memory.stat");
        let named = MEMORY_NAMES.iter().filter_map(|(old, new)| Some(((*new).to_owned(), *figures.get(*old)?)));
        stats.memory_stat = named.collect();
        stats.memory_current = number(&folder, "memory.usage_in_bytes", 0);
        stats.memory_peak = number(&folder, "memory.max_usage_in_bytes", 0);
        stats.memory_max = match number(&folder, "memory.limit_in_bytes", u64::MAX) {
            0 | NO_LIMIT_FROM.. => u64::MAX,
            limit => limit,
        };
        stats.memory_events =
            keyed(&folder, "memory.oom_control").into_iter().filter(|(key, _)| key == "oom_kill").collect();
    }
    if place.has("pids") {
        (stats.pids_current, stats.pids_max) = (number(&folder, "pids.current", 0), number(&folder, "pids.max", 0));
    }
}

fn limit(folder: &Path, file: &str) -> u64 {
    match folder.join(file).exists() {
        true => number(folder, file, u64::MAX),
        false => u64::MAX,
    }
}

/// A number, `max`, or zero for an absent file.
fn number(folder: &Path, file: &str, max: u64) -> u64 {
    match fs::read_to_string(folder.join(file)).unwrap_or_default().trim() {
        "max" => max,
        text => text.parse().unwrap_or(0),
    }
}

/// Lines of `key value`.
fn keyed(folder: &Path, file: &str) -> HashMap<String, u64> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// `major:minor rbytes=.. wbytes=..`.
fn io_of(line: &str) -> Option<DeviceIo> {
    let (device, counts) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let count = |name: &str| {
        let of = |word: &str| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        counts.split_whitespace().find_map(of).unwrap_or(0)
    };
    Some(DeviceIo {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        read_bytes: count("rbytes"),
        write_bytes: count("wbytes"),
        read_ops: count("rios"),
        write_ops: count("wios"),
        ..Default::default()
    })
}
