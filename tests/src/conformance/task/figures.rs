//! What a container uses and may use, who is in it, and its freezer.

use std::{thread, time::Duration};

use containerd_shim_protos::{
    api::Status, cgroups::metrics::Metrics as MetricsV1, cgroups_v2::metrics::Metrics as MetricsV2, protobuf::Message,
};
use serde_json::json;

use super::same;
use crate::conformance::{Bundle, Case, Reader, SIGKILL, Stdio, Subject, Task, process};

const GROUP: &str = "Task: figures and limits";
const MIB: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("Pids has every process of the container, execs too", pids),
        case("the pid of State is among the pids", pid_among_pids).unlike_in_a_vm(
            "the processes are the guest's; State has the pid of the pod's machine, which is a process of the host",
            pid_is_the_machines,
        ),
        case("Stats counts memory, processes and processor time", stats),
        case("Stats has the limits", stats_limits),
        case("a new memory limit holds inside", update_memory),
        case("a new processor quota holds inside", update_cpu),
        case("a new limit of processes holds inside", update_pids),
        case("a limit that was not named stays", update_keeps_the_rest),
        case("a paused container is PAUSED, does nothing, and goes on when resumed", pause),
        case("a paused container can be killed", kill_paused),
        case("Stats and Pids of a paused container are answered", figures_of_paused),
    ]
}

/// The figures that both messages have.
#[derive(Debug, Default)]
struct Figures {
    memory_bytes: u64,
    memory_limit_bytes: u64,
    cpu_usec: u64,
    pids: u64,
    pids_limit: u64,
}

fn figures(task: &Task) -> anyhow::Result<Figures> {
    let stats = task.stats()?.stats;
    let name = stats.type_url.rsplit('/').next().unwrap_or_default();
    match name {
        "io.containerd.cgroups.v1.Metrics" => {
            let m = MetricsV1::parse_from_bytes(&stats.value)?;
            Ok(Figures {
                memory_bytes: m.memory.usage.usage,
                memory_limit_bytes: m.memory.usage.limit,
                cpu_usec: m.cpu.usage.total / 1000,
                pids: m.pids.current,
                pids_limit: m.pids.limit,
            })
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let m = MetricsV2::parse_from_bytes(&stats.value)?;
            Ok(Figures {
                memory_bytes: m.memory.usage,
                memory_limit_bytes: m.memory.usage_limit,
                cpu_usec: m.cpu.usage_usec,
                pids: m.pids.current,
                pids_limit: m.pids.limit,
            })
        }
        other => anyhow::bail!("figures of a kind that containerd does not know: {other:?}"),
    }
}

/// A file of the container's own cgroup as it sees it, under its name in version 1 or 2.
fn inside(task: &Task, exec: &str, v1: &str, v2: &str) -> anyhow::Result<String> {
    let script = format!("cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}");
    let (status, text) = task.output_of(exec, &["sh", "-c", &script])?;
    same("status of the look", status, 0)?;
    Ok(text.trim().to_owned())
}

fn pids(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"])?;
    stdio.until("up")?;
    let count = || anyhow::Ok(task.pids()?.processes.len());
    same("processes", count()?, 3)?;
    task.exec("e1", &["sleep", "1000"])?;
    task.start("e1")?;
    same("processes with an exec", count()?, 4)?;
    task.kill("e1", SIGKILL)?;
    task.wait("e1")?;
    task.delete("e1")?;
    same("processes after it", count()?, 3)?;
    let mut all: Vec<_> = task.pids()?.processes.iter().map(|process| process.pid).collect();
    all.sort_unstable();
    all.dedup();
    same("different processes", all.len(), 3)?;
    task.end()
}

fn pid_among_pids(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let pid = task.state("")?.pid;
    let all: Vec<_> = task.pids()?.processes.iter().map(|process| process.pid).collect();
    anyhow::ensure!(all.contains(&pid), "{pid} is not among {all:?}");
    task.end()
}

fn pid_is_the_machines(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let pid = task.state("")?.pid;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
    same("process", name.trim(), "kata-rs-vmm")?;
    task.end()
}

fn stats(subject: &Subject) -> anyhow::Result<()> {
    // A shared memory of 20 MiB, and an exec that computes.
    let script = "head -c 20971520 /dev/zero > /dev/shm/file; echo up; sleep 1000";
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", script])?;
    stdio.until("up")?;
    let before = figures(&task)?;
    anyhow::ensure!((20 * MIB..64 * MIB).contains(&before.memory_bytes), "{before:?}");
    same("processes", before.pids, 1)?;
    let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    same("the exec", task.output_of("e1", &["sh", "-c", spin])?.0, 0)?;
    let after = figures(&task)?;
    anyhow::ensure!(after.cpu_usec > before.cpu_usec + 50_000, "{before:?}, then {after:?}");
    task.end()
}

fn stats_limits(subject: &Subject) -> anyhow::Result<()> {
    let mut bundle = Bundle::new(subject, &["sleep", "1000"])?;
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 64 * MIB });
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    let (task, _stdio) = Task::of(subject, bundle)?;
    let found = figures(&task)?;
    same("limits", (found.memory_limit_bytes, found.pids_limit), (64 * MIB, 77))?;
    task.end()
}

fn update_memory(subject: &Subject) -> anyhow::Result<()> {
    let mut bundle = Bundle::new(subject, &["sleep", "1000"])?;
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 64 * MIB });
    let (task, _stdio) = Task::of(subject, bundle)?;
    task.update(&json!({ "memory": { "limit": 96 * MIB } }))?;
    let found = inside(&task, "e1", "memory/memory.limit_in_bytes", "memory.max")?;
    same("limit inside", found, (96 * MIB).to_string())?;
    same("limit in Stats", figures(&task)?.memory_limit_bytes, 96 * MIB)?;
    let (status, _) = task.output_of("e2", &["sh", "-c", "head -c 80m /dev/zero | tail > /dev/null"])?;
    same("80 MiB in 96", status, 0)?;
    task.update(&json!({ "memory": { "limit": 32 * MIB } }))?;
    let found = inside(&task, "e3", "memory/memory.limit_in_bytes", "memory.max")?;
    same("limit inside", found, (32 * MIB).to_string())?;
    task.end()
}

fn update_cpu(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.update(&json!({ "cpu": { "quota": 20000, "period": 100_000 } }))?;
    let found = inside(&task, "e1", "cpu/cpu.cfs_quota_us", "cpu.max")?;
    same("quota inside", found.split(' ').next(), Some("20000"))?;
    task.update(&json!({ "cpu": { "quota": 50000, "period": 100_000 } }))?;
    let found = inside(&task, "e2", "cpu/cpu.cfs_quota_us", "cpu.max")?;
    same("quota inside", found.split(' ').next(), Some("50000"))?;
    task.end()
}

fn update_pids(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.update(&json!({ "pids": { "limit": 20 } }))?;
    same("limit inside", inside(&task, "e1", "pids/pids.max", "pids.max")?.as_str(), "20")?;
    let script = "for n in $(seq 40); do sleep 5 & done; wait";
    let stdio = Stdio::output(&task.bundle.folder, "e2")?;
    task.exec_with("e2", &process(&["sh", "-c", script]), &stdio)?;
    task.start("e2")?;
    let status = task.wait("e2")?.exit_status;
    anyhow::ensure!(status != 0, "forty processes were allowed with a limit of twenty");
    task.end()
}

fn update_keeps_the_rest(subject: &Subject) -> anyhow::Result<()> {
    let mut bundle = Bundle::new(subject, &["sleep", "1000"])?;
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 64 * MIB });
    bundle.spec["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    let (task, _stdio) = Task::of(subject, bundle)?;
    task.update(&json!({ "memory": { "limit": 96 * MIB } }))?;
    let found = figures(&task)?;
    same("limits", (found.memory_limit_bytes, found.pids_limit), (96 * MIB, 77))?;
    task.end()
}

fn pause(subject: &Subject) -> anyhow::Result<()> {
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done";
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", script])?;
    stdio.until("3\n")?;
    task.pause()?;
    same("status", task.status("")?, Status::PAUSED)?;
    // What was under way may still arrive; then silence is what is to be seen, for which there is no event.
    thread::sleep(Duration::from_millis(300));
    let frozen = stdio.out.as_ref().map(Reader::len);
    thread::sleep(Duration::from_millis(500));
    same("output while paused", stdio.out.as_ref().map(Reader::len), frozen)?;
    task.resume()?;
    same("status", task.status("")?, Status::RUNNING)?;
    let next = stdio.out.as_ref().map(|out| out.so_far().lines().count() + 3).unwrap_or_default();
    stdio.until(&format!("\n{next}\n"))?;
    task.end()
}

fn kill_paused(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.pause()?;
    task.kill("", SIGKILL)?;
    same("exit status", task.wait("")?.exit_status, 137)?;
    same("status", task.status("")?, Status::STOPPED)?;
    task.end()
}

fn figures_of_paused(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.pause()?;
    same("processes", task.pids()?.processes.len(), 1)?;
    same("processes in Stats", figures(&task)?.pids, 1)?;
    task.resume()?;
    task.end()
}
