//! What a cgroup uses, read from the kernel's text files.

use super::CgroupError;
use std::collections::BTreeMap;

/// What a cgroup uses. Amounts of memory are bytes; those of an absent controller are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time, microseconds.
    pub cpu_usage_usec: u64,
    /// Of it, in user mode.
    pub cpu_user_usec: u64,
    /// Of it, in the kernel.
    pub cpu_system_usec: u64,
    /// Periods of cpu.max that have passed.
    pub cpu_periods: u64,
    /// Of them, how many ended throttled.
    pub cpu_throttled_periods: u64,
    /// Time spent throttled, microseconds.
    pub cpu_throttled_usec: u64,
    /// Memory in use.
    pub memory_current: u64,
    /// Limit of memory, 2^64-1 for none.
    pub memory_max: u64,
    /// Most memory ever in use.
    pub memory_peak: u64,
    /// Swap in use.
    pub swap_current: u64,
    /// Limit of swap, 2^64-1 for none.
    pub swap_max: u64,
    /// memory.stat, by its keys.
    pub memory_stat: BTreeMap<String, u64>,
    /// memory.events, by its keys.
    pub memory_events: BTreeMap<String, u64>,
    /// Processes and threads.
    pub pids_current: u64,
    /// Limit of them, 0 for none.
    pub pids_max: u64,
    /// Traffic by device.
    pub io: Vec<DeviceIo>,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePages>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Size as the kernel writes it in names of files: `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub current: u64,
    /// Limit of them, 2^64-1 for none.
    pub max: u64,
    /// How often the limit was in the way.
    pub failures: u64,
}

/// Traffic of one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read requests.
    pub read_ops: u64,
    /// Write requests.
    pub write_ops: u64,
}

impl Stats {
    /// Puts together what `read` returns for each file, with empty text for an absent one.
    pub(super) fn collect(
        page_sizes: &[String],
        read: impl Fn(&str) -> Result<String, CgroupError>,
    ) -> Result<Self, CgroupError> {
        let cpu = flat_keyed(&read("cpu.stat")?);
        let of = |key: &str| cpu.get(key).copied().unwrap_or(0);
        Ok(Self {
            cpu_usage_usec: of("usage_usec"),
            cpu_user_usec: of("user_usec"),
            cpu_system_usec: of("system_usec"),
            cpu_periods: of("nr_periods"),
            cpu_throttled_periods: of("nr_throttled"),
            cpu_throttled_usec: of("throttled_usec"),
            memory_current: amount(&read("memory.current")?, u64::MAX),
            memory_max: amount(&read("memory.max")?, u64::MAX),
            memory_peak: amount(&read("memory.peak")?, u64::MAX),
            swap_current: amount(&read("memory.swap.current")?, u64::MAX),
            swap_max: amount(&read("memory.swap.max")?, u64::MAX),
            memory_stat: flat_keyed(&read("memory.stat")?),
            memory_events: flat_keyed(&read("memory.events")?),
            pids_current: amount(&read("pids.current")?, 0),
            pids_max: amount(&read("pids.max")?, 0),
            io: device_io(&read("io.stat")?),
            huge_pages: page_sizes.iter().map(|size| huge_pages(size, &read)).collect::<Result<_, _>>()?,
        })
    }
}

fn huge_pages(page_size: &str, read: &impl Fn(&str) -> Result<String, CgroupError>) -> Result<HugePages, CgroupError> {
    let events = flat_keyed(&read(&format!("hugetlb.{page_size}.events"))?);
    Ok(HugePages {
        page_size: page_size.to_owned(),
        current: amount(&read(&format!("hugetlb.{page_size}.current"))?, u64::MAX),
        max: amount(&read(&format!("hugetlb.{page_size}.max"))?, u64::MAX),
        failures: events.get("max").copied().unwrap_or(0),
    })
}

/// A number, `max`, or nothing.
fn amount(text: &str, max: u64) -> u64 {
    match text.trim() {
        "max" => max,
        text => text.parse().unwrap_or(0),
    }
}

/// Lines of `key value`; what is not a number is passed over.
pub(super) fn flat_keyed(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}

/// Lines of `major:minor key=value key=value`.
fn device_io(text: &str) -> Vec<DeviceIo> {
    text.lines().filter_map(one_device).collect()
}

fn one_device(line: &str) -> Option<DeviceIo> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = DeviceIo { major: major.parse().ok()?, minor: minor.parse().ok()?, ..DeviceIo::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let place = match key {
            "rbytes" => &mut device.read_bytes,
            "wbytes" => &mut device.write_bytes,
            "rios" => &mut device.read_ops,
            "wios" => &mut device.write_ops,
            _ => continue,
        };
        *place = value.parse().ok()?;
    }
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(file: &str) -> Result<String, CgroupError> {
        Ok(match file {
            "cpu.stat" => {
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 10\nnr_throttled 2\nthrottled_usec 77\n"
            }
            "memory.current" => "4096\n",
            "memory.max" => "max\n",
            "memory.swap.max" => "1048576\n",
            "memory.events" => "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
            "pids.current" => "3\n",
            "pids.max" => "max\n",
            "hugetlb.2MB.current" => "4194304\n",
            "hugetlb.2MB.max" => "max\n",
            "hugetlb.2MB.events" => "max 5\n",
            "io.stat" => "254:0 rbytes=8192 wbytes=0 rios=2 wios=0 dbytes=0 dios=0\n7:1\n",
            _ => "",
        }
        .to_owned())
    }

    #[test]
    fn the_kernels_files_become_numbers() {
        let stats = Stats::collect(&["2MB".to_owned()], files).expect("collected");
        assert_eq!((stats.cpu_usage_usec, stats.cpu_throttled_usec), (1500, 77));
        assert_eq!((stats.memory_current, stats.memory_max, stats.swap_max), (4096, u64::MAX, 1 << 20));
        assert_eq!((stats.pids_current, stats.pids_max), (3, 0));
        assert_eq!(stats.memory_events["oom_kill"], 1);
        let huge = HugePages { page_size: "2MB".into(), current: 4 << 20, max: u64::MAX, failures: 5 };
        assert_eq!(stats.huge_pages, [huge]);
        let disk = DeviceIo { major: 254, read_bytes: 8192, read_ops: 2, ..DeviceIo::default() };
        assert_eq!(stats.io, [disk, DeviceIo { major: 7, minor: 1, ..DeviceIo::default() }]);
    }

    #[test]
    fn absent_controllers_count_as_zero() {
        assert_eq!(Stats::collect(&[], |_| Ok(String::new())).expect("collected"), Stats::default());
    }
}
