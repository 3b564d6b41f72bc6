//! Pods through CRI as the kubelet asks for them: one after the other with our runtime and with runc in turn, and twenty at once.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use tests::{
    containerd::{RUNC, RUNTIME},
    node::{Node, Pod, Template},
};

use crate::{figure::Figure, idle, memory};

/// Pods of each runtime.
const PODS: usize = 20;
/// Execs in each pod.
const EXECS: usize = 3;
/// Pods started at once.
const BURST: usize = 20;
/// Containers of the pod whose shim is weighed.
const CONTAINERS: usize = 10;

/// What one pod took, in seconds.
#[derive(Default)]
struct Times {
    start: Vec<f64>,
    exec: Vec<f64>,
    stop: Vec<f64>,
}

/// `cri.start`, `cri.exec`, `cri.stop`, `cri.burst*`, `pss.shim10` and `idle.cpu`.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let node = Node::start()?;
    let (ours, runc) = one_by_one(&node)?;
    let mut figures = vec![
        Figure::beside("cri.start", "s", &ours.start, "runc", &runc.start),
        Figure::beside("cri.exec", "s", &ours.exec, "runc", &runc.exec),
        Figure::beside("cri.stop", "s", &ours.stop, "runc", &runc.stop),
    ];
    figures.extend(burst_figures(&node));
    figures.extend(resting(&node)?);
    Ok(figures)
}

fn one_by_one(node: &Node) -> anyhow::Result<(Times, Times)> {
    let (mut ours, mut runc) = (Times::default(), Times::default());
    // The first of each fills caches and does not count.
    measure(node, RUNTIME, &mut Times::default())?;
    measure(node, RUNC, &mut Times::default())?;
    for _ in 0..PODS {
        measure(node, RUNTIME, &mut ours)?;
        measure(node, RUNC, &mut runc)?;
    }
    Ok((ours, runc))
}

fn measure(node: &Node, runtime: &str, times: &mut Times) -> anyhow::Result<()> {
    let clock = Instant::now();
    let pod = node.plain_pod(runtime)?;
    let container = pod.start(Template::pause())?;
    times.start.push(clock.elapsed().as_secs_f64());
    for _ in 0..EXECS {
        let clock = Instant::now();
        anyhow::ensure!(container.exec(&["true"])?.exit_code == 0, "true is not true in {runtime}");
        times.exec.push(clock.elapsed().as_secs_f64());
    }
    let clock = Instant::now();
    // It ends when told, so the grace is nothing that anybody waits for.
    container.stop(30)?;
    pod.remove()?;
    times.stop.push(clock.elapsed().as_secs_f64());
    Ok(())
}

/// From the moment at which all were asked for until each one's process runs.
fn burst_figures(node: &Node) -> Vec<Figure> {
    let (ours, failed) = burst(node, RUNTIME);
    let (runc, failed_of_runc) = burst(node, RUNC);
    let ratio = |times: &[f64]| [percentile(times, 99) / percentile(times, 50)];
    vec![
        Figure::beside("cri.burst", "s", &ours, "runc", &runc),
        Figure::beside("cri.burst.p99/p50", "", &ratio(&ours), "runc", &ratio(&runc)),
        Figure::beside("cri.burst.failures", "", &[failed as f64], "runc", &[failed_of_runc as f64]),
    ]
}

fn burst(node: &Node, runtime: &str) -> (Vec<f64>, usize) {
    let clock = Instant::now();
    let started: Vec<_> = thread::scope(|scope| {
        let start = || -> anyhow::Result<(Pod, f64)> {
            let pod = node.plain_pod(runtime)?;
            pod.start(Template::pause())?;
            Ok((pod, clock.elapsed().as_secs_f64()))
        };
        let starts: Vec<_> = (0..BURST).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().expect("no panic")).collect()
    });
    started.iter().filter_map(|pod| pod.as_ref().err()).for_each(|error| eprintln!("cri.burst: {runtime}: {error:#}"));
    let failed = started.iter().filter(|pod| pod.is_err()).count();
    (started.into_iter().flatten().map(|(_, took)| took).collect(), failed)
}

/// The nearest sample that so many per cent of all do not exceed.
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// What a pod holds and uses that does nothing.
fn resting(node: &Node) -> anyhow::Result<Vec<Figure>> {
    let pod = node.plain_pod(RUNTIME)?;
    pod.start(Template::command(&["sleep", "1000000"]))?;
    let processes = |name: &str| tests::pids_of(name, &pod.id);
    let all: Vec<_> = ["kata-rs-vmm", "containerd-shim", "virtiofsd"].into_iter().flat_map(processes).collect();
    let idle = idle::figure(&all);
    for _ in 1..CONTAINERS {
        pod.start(Template::command(&["sleep", "1000000"]))?;
    }
    // The last start's buffers are given back after a moment; the kubelet looks every ten seconds.
    thread::sleep(Duration::from_secs(2));
    let shim = processes("containerd-shim").first().copied().context("a pod has a shim")?;
    let weight = Figure::alone("pss.shim10", "MiB", &[memory::pss_kib(shim)? as f64 / 1024.0]);
    pod.remove()?;
    Ok(vec![weight, idle])
}

#[cfg(test)]
mod tests_of_percentiles {
    use super::*;

    #[test]
    fn the_99th_of_twenty_is_the_largest_and_the_50th_is_the_tenth() {
        let samples: Vec<_> = (1..=20).rev().map(f64::from).collect();
        assert_eq!((percentile(&samples, 99), percentile(&samples, 50)), (20.0, 10.0));
        assert_eq!(percentile(&[7.0], 50), 7.0);
    }
}
