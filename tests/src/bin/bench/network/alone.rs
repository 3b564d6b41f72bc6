//! A pod by the library alone, in a network of its own: what containerd has no question for, exits, interrupts and the moments of a launch.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use pod::{ContainerSpec, Installation, NetReport, Pod, PodNetwork, PodSpec, Report, RootFs, StdioWanted};
use tempfile::TempDir;
use tests::NetworkNamespace;

use super::traffic::{self, Server};
use crate::figure::Figure;

const MEMORY_MIB: u32 = 128;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);
/// Rounds of the counts, and how long each moves bytes.
const ROUNDS: usize = 5;
const PERIOD: Duration = Duration::from_millis(400);
const MIB: f64 = 1_048_576.0;

/// A namespace as a plugin leaves one for a pod, and the other end of its interface.
pub struct Networks {
    pub pods: NetworkNamespace,
    pub outside: NetworkNamespace,
}

impl Networks {
    pub fn new() -> anyhow::Result<Self> {
        let (pods, outside) = (NetworkNamespace::new()?, NetworkNamespace::new()?);
        outside.ip(&format!("link add far type veth peer name eth0 netns {}", pods.path().display()))?;
        outside.ip("addr add 10.96.0.1/24 dev far")?;
        outside.ip("link set far up")?;
        pods.ip(&format!("addr add {ADDRESS}/24 dev eth0"))?;
        pods.ip("link set eth0 up")?;
        pods.ip("route add default via 10.96.0.1")?;
        Ok(Self { pods, outside })
    }
}

/// Launches a pod; its folder goes with the second.
pub async fn launch(id: String, network: Option<PathBuf>) -> anyhow::Result<(Pod, TempDir)> {
    let scratch = tempfile::Builder::new().prefix("kata-rs-bench-").tempdir()?;
    let spec = PodSpec {
        id,
        state_dir: scratch.path().join("pod"),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        hostname: "bench".to_owned(),
        sysctls: Default::default(),
        resolv_conf: String::new(),
        network: network.map_or(PodNetwork::None, PodNetwork::Namespace),
        interface_rules: Default::default(),
        extra_cmdline: String::new(),
    };
    Ok((Pod::launch(&Installation::find()?, spec).await?, scratch))
}

/// Their names, in the order of [`Counts`].
const COUNTS: [&str; 4] = ["exits", "kicks", "interrupts", "wakeups"];

/// `net.exits.*`, and so on for the other [`COUNTS`], per MiB and per round trip of a byte. Wake-ups are those of the device's thread.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(counts())
}

async fn counts() -> anyhow::Result<Vec<Figure>> {
    let networks = Networks::new()?;
    let (pod, scratch) = launch("bench-net".to_owned(), Some(networks.pods.path())).await?;
    pod.create_container(container(&scratch)?).await?;
    pod.start(&pod::ProcessId::first("traffic")).await?;
    let server = networks.outside.run(|| Server::at(ADDRESS))?;
    let works: [(&str, &str, Work); 3] = [
        ("send", "/MiB", |server| Ok(server.pod_sends(PERIOD)? as f64 / MIB)),
        ("receive", "/MiB", |server| Ok(server.pod_receives(PERIOD)? as f64 / MIB)),
        ("trip", "", |server| Ok(server.round_trips(PERIOD)?.len() as f64)),
    ];
    let mut figures = Vec::new();
    for (name, unit, work) in works {
        let mut samples = [const { Vec::new() }; COUNTS.len()];
        for _ in 0..ROUNDS {
            let before = Counts::of(&pod.report().await?);
            // Blocks this thread, and so what would hear of the machine's end: traffic stops then, too.
            let amount = networks.outside.run(|| work(server))?;
            let after = Counts::of(&pod.report().await?);
            samples.iter_mut().zip(after.since(&before)).for_each(|(samples, count)| samples.push(count / amount));
        }
        let counts = COUNTS.into_iter().zip(&samples);
        figures.extend(counts.map(|(count, samples)| Figure::alone(format!("net.{count}.{name}"), unit, samples)));
    }
    pod.stop().await?;
    Ok(figures)
}

/// Does something, and says how much of it, in MiB or in round trips.
type Work = fn(Server) -> anyhow::Result<f64>;

/// What the machine has counted until a moment; an exit that KVM answers by itself is one, too.
struct Counts([u64; COUNTS.len()]);

impl Counts {
    fn of(report: &Report) -> Self {
        let sum = |count: fn(&NetReport) -> u64| report.networks.iter().map(count).sum::<u64>();
        let kicks = sum(|network| network.kicks);
        Self([
            report.exits.values().sum::<u64>() + kicks,
            kicks,
            sum(|network| network.interrupts),
            sum(|network| network.wakeups),
        ])
    }

    fn since(&self, earlier: &Self) -> [f64; COUNTS.len()] {
        std::array::from_fn(|at| self.0[at].saturating_sub(earlier.0[at]) as f64)
    }
}

/// The traffic's other end.
fn container(scratch: &TempDir) -> anyhow::Result<ContainerSpec> {
    let rootfs = scratch.path().join("rootfs");
    std::fs::create_dir_all(&rootfs)?;
    std::fs::copy(std::env::current_exe()?, rootfs.join(traffic::PROGRAM))?;
    let program = format!("/{}", traffic::PROGRAM);
    let oci = serde_json::from_value(serde_json::json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": [program, traffic::WORD] },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" }] },
    }))?;
    let rootfs = RootFs::Folder(rootfs);
    Ok(ContainerSpec { id: "traffic".to_owned(), oci, rootfs, stdio: StdioWanted::default() })
}
