//! Time on processors: of a pod's processes, and of the whole machine, whose other work counts, too.

use anyhow::Context;

/// Ticks a second in /proc (USER_HZ, the same on every machine of ours).
const TICKS: f64 = 100.0;

/// Seconds until a moment.
pub struct Clocks {
    pub processes: f64,
    pub machine: f64,
}

impl Clocks {
    /// At this moment.
    pub fn now(pids: &[u32]) -> anyhow::Result<Self> {
        // Of the whole process, as a stream's thread has ended by the time that somebody looks.
        let stat = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).context("a process of the pod");
        let processes =
            pids.iter().map(|pid| stat(pid).map(|text| process_ticks(&text))).sum::<anyhow::Result<u64>>()?;
        let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Ok(Self { processes: processes as f64 / TICKS, machine: busy_ticks(&text) as f64 / TICKS })
    }

    /// What passed since an earlier one.
    pub fn since(&self, earlier: &Self) -> Self {
        Self { processes: self.processes - earlier.processes, machine: self.machine - earlier.machine }
    }
}

/// utime, which has a guest's time, and stime: fields 14 and 15, counted from the end of the name, which may have spaces (proc(5)).
fn process_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// user, nice, system, irq, softirq and steal; idle and iowait are none, guests are part of user (proc(5)).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| ticks.get(at)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_has_its_time() {
        assert_eq!(process_ticks("7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20"), 42);
    }

    #[test]
    fn waiting_is_not_work_and_a_guest_does_not_count_twice() {
        assert_eq!(busy_ticks("cpu  1 2 4 1000 2000 8 16 32 4000 8000\ncpu0 9 9 9\n"), 63);
    }
}
