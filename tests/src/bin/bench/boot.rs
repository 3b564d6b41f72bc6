//! From the start of the VMM process to the agent's call, and what it took, with 128 MiB and nothing else in the way.

use std::collections::BTreeSet;

use anyhow::Context;
use pod::{ContainerSpec, Installation, Pod, PodSpec, ProcessId, Report, RootFs, StdioWanted};

use crate::figure::Figure;

const BOOTS: usize = 11;
const MEMORY_MIB: u32 = 128;

struct Boot {
    report: Report,
    available_bytes: f64,
}

/// `boot.*` and `guest.available`.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let boots = (0..BOOTS).map(|n| runtime.block_on(boot(n))).collect::<anyhow::Result<Vec<_>>>()?;
    let samples = |of: &dyn Fn(&Boot) -> f64| boots.iter().map(of).collect::<Vec<_>>();
    let mut figures = vec![
        Figure::alone("boot.call", "s", &samples(&|b| until_call(&b.report))),
        Figure::alone("boot.exits", "", &samples(&|b| b.report.exits_at_call.values().sum::<u64>() as f64)),
    ];
    let reasons: BTreeSet<_> = boots.iter().flat_map(|b| b.report.exits_at_call.keys()).collect();
    for reason in reasons {
        let count = |b: &Boot| b.report.exits_at_call.get(reason).copied().unwrap_or(0) as f64;
        figures.push(Figure::alone(format!("boot.exits.{reason}"), "", &samples(&count)));
    }
    figures.extend([
        Figure::alone("boot.kernel", "bytes", &samples(&|b| b.report.kernel_bytes as f64)),
        Figure::alone("boot.image", "bytes", &samples(&|b| b.report.disk_bytes_read.iter().sum::<u64>() as f64)),
        Figure::alone("boot.memory", "MiB", &samples(&|b| b.report.memory_touched_bytes as f64 / MIB)),
        Figure::alone("guest.available", "MiB", &samples(&|b| b.available_bytes / MIB)),
    ]);
    Ok(figures)
}

const MIB: f64 = 1_048_576.0;

fn until_call(report: &Report) -> f64 {
    let at = |name: &str| report.marks.iter().find(|mark| mark.name == name).map(|mark| mark.monotonic_nanos);
    match (at("vmm start"), at("agent call")) {
        (Some(start), Some(call)) => call.saturating_sub(start) as f64 / 1e9,
        _ => f64::NAN,
    }
}

async fn boot(n: usize) -> anyhow::Result<Boot> {
    let scratch = tempfile::Builder::new().prefix("kata-rs-bench-").tempdir()?;
    let spec = PodSpec {
        id: format!("bench-{n}"),
        state_dir: scratch.path().join("pod"),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        hostname: "bench".to_owned(),
        sysctls: Default::default(),
        resolv_conf: String::new(),
        network: pod::PodNetwork::None,
        interface_rules: Default::default(),
        extra_cmdline: String::new(),
    };
    let pod = Pod::launch(&Installation::find()?, spec).await?;
    let report = pod.report().await?;
    let available = available_bytes(&pod, scratch.path()).await;
    pod.stop().await?;
    Ok(Boot { report, available_bytes: available? })
}

/// What a container finds free when it looks.
async fn available_bytes(pod: &Pod, scratch: &std::path::Path) -> anyhow::Result<f64> {
    use tokio::io::AsyncReadExt;
    let rootfs = scratch.join("rootfs");
    tests::rootfs::unpack(&tests::prefix::image("busybox"), &rootfs)?;
    let oci = serde_json::from_value(serde_json::json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/busybox", "cat", "/proc/meminfo"] },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" }] },
    }))?;
    let container = ContainerSpec {
        id: "meminfo".to_owned(),
        oci,
        rootfs: RootFs::Folder(rootfs),
        stdio: StdioWanted { stdout: true, ..StdioWanted::default() },
    };
    let process = ProcessId { container_id: "meminfo".to_owned(), exec_id: String::new() };
    let (_, streams) = pod.create_container(container).await?;
    pod.start(&process).await?;
    let stdout = streams.stdout.context("asked for")?;
    stdout.set_nonblocking(true)?;
    let mut text = String::new();
    tokio::net::UnixStream::from_std(stdout)?.read_to_string(&mut text).await?;
    pod.wait(&process).await?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0)
}
