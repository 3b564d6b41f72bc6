//! Limits of containers, what happens at them, and what the kubelet reads of their use.

use anyhow::{Context, ensure};
use cri::v1;

use super::{super::Case, Subject, node, pod, same};
use crate::node::{Container, Template, poll_until};

const GROUP: &str = "Pods: resources";
const MIB: i64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "a container over its memory limit is OOMKilled with exit code 137", oom),
        Case::new(
            GROUP,
            "a process over the limit that is not the first is killed, and the container goes on",
            oom_of_a_child,
        ),
        Case::new(GROUP, "another container of the pod outlives an OOM", oom_of_a_neighbour),
        Case::new(GROUP, "the memory limit is the container's cgroup's", memory),
        Case::new(GROUP, "the cpu limit is the container's cgroup's", cpu),
        Case::new(GROUP, "limits are changed while the container runs", update),
        Case::new(GROUP, "a change of limits of an ended container is refused", update_ended),
        Case::new(GROUP, "a container's statistics have cpu, memory with working set, and writable layer", stats),
        Case::new(GROUP, "cpu use grows with work, memory use with memory", stats_grow),
        Case::new(GROUP, "statistics of all containers are listed by pod", stats_list),
    ]
}

/// Takes more and more, touching each page.
const HOG: &str = "kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))";

fn oom(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::python(HOG).resources(|limits| limits.memory_limit_in_bytes = 32 * MIB);
    let (status, _) = pod.run_to_end(template)?;
    same("status", (status.exit_code, status.reason.as_str()), (137, "OOMKilled"))?;
    Ok(pod.remove()?)
}

fn oom_of_a_child(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let line = format!("python3 -c '{}'; echo the child: $?; exit 3", HOG.replace('\'', "\""));
    let template = Template::python("")
        .with(|config| config.command = ["sh", "-c", &line].map(str::to_owned).to_vec())
        .resources(|limits| limits.memory_limit_in_bytes = 64 * MIB);
    let (status, printed) = pod.run_to_end(template)?;
    ensure!(printed.contains("the child: 137\n"), "{printed}");
    same("exit code", status.exit_code, 3)?;
    // containerd says OOMKilled when anything of the container was, whatever the exit code.
    same("reason", status.reason.as_str(), "OOMKilled")?;
    Ok(pod.remove()?)
}

fn oom_of_a_neighbour(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let neighbour = pod.start(Template::pause())?;
    let template = Template::python(HOG).resources(|limits| limits.memory_limit_in_bytes = 32 * MIB);
    let (status, _) = pod.run_to_end(template)?;
    same("reason", status.reason.as_str(), "OOMKilled")?;
    same("the neighbour answers", neighbour.sh("echo yes")?.as_str(), "yes\n")?;
    Ok(pod.remove()?)
}

/// The limit as the container itself reads it, on either version of cgroups.
const MEMORY: &str = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
const CPU: &str = "cat /sys/fs/cgroup/cpu.max 2>/dev/null || \
                   echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us) $(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)";

fn memory(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause().resources(|limits| limits.memory_limit_in_bytes = 48 * MIB))?;
    same("limit", container.sh(MEMORY)?.trim().parse::<i64>()?, 48 * MIB)?;
    Ok(pod.remove()?)
}

fn cpu(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause().resources(|limits| {
        limits.cpu_period = 100_000;
        limits.cpu_quota = 25_000;
        limits.cpu_shares = 256;
    }))?;
    same("quota and period", container.sh(CPU)?.trim(), "25000 100000")?;
    Ok(pod.remove()?)
}

fn update(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause().resources(|limits| {
        limits.memory_limit_in_bytes = 48 * MIB;
        limits.cpu_period = 100_000;
        limits.cpu_quota = 25_000;
    }))?;
    let linux = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..Default::default()
    });
    change(&container, linux)?;
    same("memory", container.sh(MEMORY)?.trim().parse::<i64>()?, 64 * MIB)?;
    same("cpu", container.sh(CPU)?.trim(), "50000 100000")?;
    Ok(pod.remove()?)
}

fn change(container: &Container, linux: Option<v1::LinuxContainerResources>) -> cri::Answer<()> {
    let request =
        v1::UpdateContainerResourcesRequest { container_id: container.id.clone(), linux, ..Default::default() };
    container.pod.node.cri.update_container_resources(request).map(drop)
}

fn update_ended(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::command(&["true"]))?;
    container.wait()?;
    let linux = Some(v1::LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() });
    // containerd changes what it has written down, and asks the runtime only of a container that runs.
    change(&container, linux)?;
    Ok(pod.remove()?)
}

fn stats_of(container: &Container) -> anyhow::Result<v1::ContainerStats> {
    let request = v1::ContainerStatsRequest { container_id: container.id.clone() };
    container.pod.node.cri.container_stats(request)?.stats.context("no statistics")
}

fn cpu_nanos(stats: &v1::ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref()).map_or(0, |value| value.value)
}

fn working_set(stats: &v1::ContainerStats) -> u64 {
    stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref()).map_or(0, |value| value.value)
}

fn stats(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause().named("measured"))?;
    container.sh("dd if=/dev/zero of=/tmp/file bs=1k count=2048 2>/dev/null")?;
    let stats = stats_of(&container)?;
    let name = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref()).map(|m| m.name.as_str());
    same("name", name, Some("measured"))?;
    ensure!(cpu_nanos(&stats) > 0, "cpu: {:?}", stats.cpu);
    ensure!(working_set(&stats) > 0, "memory: {:?}", stats.memory);
    ensure!(stats.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0), "time: {:?}", stats.cpu);
    // containerd measures the layer every ten seconds.
    let layer = || {
        let used = stats_of(&container)?.writable_layer.and_then(|layer| layer.used_bytes).map(|bytes| bytes.value);
        Ok(used.filter(|bytes| *bytes >= 2 << 20))
    };
    let seen = poll_until(std::time::Duration::from_secs(25), layer)?;
    ensure!(seen.is_some(), "the writable layer never has 2 MiB: {:?}", stats_of(&container)?.writable_layer);
    Ok(pod.remove()?)
}

fn stats_grow(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let program = "import time\nx = bytearray(b'x') * (40 << 20)\nend = time.process_time() + 0.3\n\
                   while time.process_time() < end: pass\nprint('done', flush=True)\ntime.sleep(1000)";
    let container = pod.start(Template::python(program))?;
    container.wait_for_output("done")?;
    let stats = stats_of(&container)?;
    let (cpu, memory) = (cpu_nanos(&stats), working_set(&stats));
    ensure!((300_000_000..20_000_000_000).contains(&cpu), "cpu: {cpu} ns");
    ensure!((40 << 20..120 << 20).contains(&memory), "working set: {memory} bytes");
    Ok(pod.remove()?)
}

fn stats_list(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let (one, two) = (pod.start(Template::pause())?, pod.start(Template::pause())?);
    let filter = v1::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let all = node()?.cri.list_container_stats(request)?.stats;
    let mut ids: Vec<_> =
        all.into_iter().filter_map(|stats| stats.attributes).map(|attributes| attributes.id).collect();
    let mut expected = vec![one.id.clone(), two.id.clone()];
    ids.sort();
    expected.sort();
    same("containers", ids, expected)?;
    Ok(pod.remove()?)
}
