//! What a pod that does nothing costs the host's CPUs.

use std::{thread, time::Duration};

use crate::figure::Figure;

const PERIOD: Duration = Duration::from_secs(30);

/// `idle.cpu` of a pod's processes, in percent of one core.
pub fn figure(pids: &[u32]) -> Figure {
    // A container that has just started still settles: that is not idleness.
    thread::sleep(Duration::from_secs(3));
    let before: u64 = pids.iter().map(|pid| run_nanos(*pid)).sum();
    thread::sleep(PERIOD);
    let after: u64 = pids.iter().map(|pid| run_nanos(*pid)).sum();
    let percent = (after - before) as f64 / PERIOD.as_nanos() as f64 * 100.0;
    Figure::alone("idle.cpu", "%", &[percent])
}

/// Time on a CPU of all threads (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat).
fn run_nanos(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = |text: String| text.split_whitespace().next()?.parse::<u64>().ok();
    tasks.filter_map(|task| nanos(std::fs::read_to_string(task.path().join("schedstat")).ok()?)).sum()
}
