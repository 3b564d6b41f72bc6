//! Speed and processor time of traffic, through containerd's CRI: of our pod, of runc's, and of a process at the end of a plain veth pair, in turn.
//! Streams and datagrams are iperf3's; what it has no measure for, connections and answers to a byte, is our own program's.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use tests::{
    NetworkNamespace,
    containerd::{RUNC, RUNTIME},
    node::{Network, Node, Pod, Template},
};

use super::{
    cpu::Clocks,
    iperf3::{self, Client, Stream},
    traffic::{self, Server},
};
use crate::{figure::Figure, pods::percentile};

/// Rounds in which each of the three has its turn.
const ROUNDS: usize = 3;
/// What one measurement of our own takes.
const PERIOD: Duration = Duration::from_millis(400);
/// Streams of the figures with four.
const STREAMS: usize = 4;
const GB: f64 = 1e9;

/// Values by the figure's name.
type Values = BTreeMap<&'static str, Vec<f64>>;
type Measure = fn(&End) -> anyhow::Result<Vec<f64>>;

/// What each measurement gives: names, units, and how it is taken.
const MEASURES: [(&[(&str, &str)], Measure); 8] = [
    (&[("net.tcp.send", "MB/s"), ("net.cpu.send", "s/GB"), ("net.busy.send", "s/GB")], |end| {
        end.stream(1, Client::pod_sends)
    }),
    (&[("net.tcp.receive", "MB/s"), ("net.cpu.receive", "s/GB"), ("net.busy.receive", "s/GB")], |end| {
        end.stream(1, Client::pod_receives)
    }),
    (&[("net.tcp4.send", "MB/s")], |end| end.stream(STREAMS, Client::pod_sends)),
    (&[("net.tcp4.receive", "MB/s")], |end| end.stream(STREAMS, Client::pod_receives)),
    (&[("net.udp.packets.send", "/s")], |end| Ok(vec![end.iperf3.pod_floods()?])),
    (&[("net.udp.packets.receive", "/s")], |end| Ok(vec![end.iperf3.pod_is_flooded()?])),
    (&[("net.connect", "/s")], |end| Ok(vec![end.server.connections(PERIOD)?])),
    (&[("net.latency.p50", "us"), ("net.latency.p99", "us")], |end| {
        let times = end.server.round_trips(PERIOD)?;
        Ok(vec![percentile(&times, 50), percentile(&times, 99)])
    }),
];

/// One of the three, and its processes on the host.
struct End {
    iperf3: Client,
    server: Server,
    pids: Vec<u32>,
}

impl End {
    /// Megabytes a second, and seconds of processors per gigabyte: of its processes, and of the machine.
    fn stream(&self, streams: usize, stream: Stream) -> anyhow::Result<Vec<f64>> {
        let before = Clocks::now(&self.pids)?;
        let moved = stream(self.iperf3, streams)?;
        let used = Clocks::now(&self.pids)?.since(&before);
        let gigabytes = moved.bytes / GB;
        let mut values = vec![gigabytes * 1000.0 / moved.seconds, used.processes / gigabytes, used.machine / gigabytes];
        values.truncate(if streams == 1 { 3 } else { 1 });
        Ok(values)
    }
}

/// `net.tcp.*`, `net.tcp4.*`, `net.udp.*`, `net.connect`, `net.latency.*`, `net.cpu.*` (the pod's processes) and `net.busy.*` (the whole machine);
/// `net.veth.*` is the plain veth's.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let node = Node::start_in_own_network()?;
    let (ours, runc) = (pod(&node, RUNTIME)?, pod(&node, RUNC)?);
    let plain = Plain::start(node.network())?;
    let names: [(&Pod, &[&str]); 2] =
        [(&ours, &["kata-rs-vmm", "containerd-shim", "virtiofsd"]), (&runc, &["containerd-shim", iperf3::PROGRAM])];
    let ends = node.network().run(|| -> anyhow::Result<_> {
        let mut ends = Vec::new();
        for (pod, processes) in names {
            let address: Ipv4Addr = pod.status()?.network.context("a pod has a network")?.ip.parse()?;
            let (iperf3, server) = (Client { address }, Server::at(address)?);
            let pids = processes.iter().map(|name| {
                let pids = tests::pids_of(name, &pod.id);
                (!pids.is_empty()).then_some(pids).with_context(|| format!("the pod has no {name}"))
            });
            ends.push(End { iperf3, server, pids: pids.collect::<anyhow::Result<Vec<_>>>()?.concat() });
        }
        let (iperf3, server) = (Client { address: PLAIN_ADDRESS }, Server::at(PLAIN_ADDRESS)?);
        ends.push(End { iperf3, server, pids: vec![plain.iperf3.0.id()] });
        Ok(ends)
    })?;
    let values = node.network().run(|| measure(&ends))?;
    ours.remove()?;
    runc.remove()?;
    Ok(shown(&values))
}

fn measure(ends: &[End]) -> anyhow::Result<Vec<Values>> {
    let mut all = vec![Values::new(); ends.len()];
    for (names, take) in MEASURES {
        for _ in 0..ROUNDS {
            for (end, values) in ends.iter().zip(&mut all) {
                let taken = take(end).with_context(|| names[0].0)?;
                for ((name, _), value) in names.iter().zip(taken) {
                    values.entry(name).or_default().push(value);
                }
            }
        }
    }
    Ok(all)
}

fn shown(values: &[Values]) -> Vec<Figure> {
    let [ours, runc, plain] = values else { return Vec::new() };
    let figures = MEASURES.iter().flat_map(|(names, _)| names.iter());
    figures
        .flat_map(|(name, unit)| {
            let plainly = name.replacen("net.", "net.veth.", 1);
            [Figure::beside(name, unit, &ours[name], "runc", &runc[name]), Figure::alone(plainly, unit, &plain[name])]
        })
        .collect()
}

/// A pod whose containers are the other ends of the traffic.
fn pod<'n>(node: &'n Node, runtime: &str) -> anyhow::Result<Pod<'n>> {
    let pod = node.pod_on(Network::Dual, runtime)?;
    let program = std::env::current_exe().context("this program's file")?;
    let inside = format!("/{}", traffic::PROGRAM);
    pod.start(Template::command(&[&inside, traffic::WORD]).mount(&program, &inside, true))?;
    pod.start(iperf3::server(&node.fresh_folder())?)?;
    Ok(pod)
}

const PLAIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 2);

/// Processes in a namespace at the end of a veth pair, with nothing between them and the node.
struct Plain {
    iperf3: Running,
    _traffic: Running,
    _namespace: NetworkNamespace,
}

impl Plain {
    fn start(node: &NetworkNamespace) -> anyhow::Result<Self> {
        let namespace = NetworkNamespace::new()?;
        node.ip(&format!("link add kr-plain type veth peer name eth0 netns {}", namespace.path().display()))?;
        node.ip("addr add 10.97.0.1/30 dev kr-plain")?;
        node.ip("link set kr-plain up")?;
        namespace.ip(&format!("addr add {PLAIN_ADDRESS}/30 dev eth0"))?;
        namespace.ip("link set eth0 up")?;
        let start = |program: &Path, word| {
            let mut command = Command::new(program);
            command.arg(word).stdin(Stdio::null()).stdout(Stdio::null());
            namespace.run(|| command.spawn()).map(Running).with_context(|| format!("{}", program.display()))
        };
        let iperf3 = start(Path::new(iperf3::PROGRAM), "--server")?;
        let traffic = start(&std::env::current_exe()?, traffic::WORD)?;
        Ok(Self { iperf3, _traffic: traffic, _namespace: namespace })
    }
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
