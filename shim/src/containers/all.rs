//! What is asked of all containers of the pod at once, by its sandbox.

use std::time::Duration;

use agent_protocol::messages::{DeviceIo, StatsResponse};
use pod::{ErrorKind, PodError};
use tokio::time::timeout;

use super::Containers;
use crate::{lock::held, pod_cgroup, refusal::Refusal};

impl Containers {
    /// Asks every container to end, and waits until all have, at most for `patience`.
    pub async fn end_all(&self, signal: u32, patience: Duration) {
        let alive = |process: &_| -> bool { is_container(process) && held(&process.life).exit().is_none() };
        let alive: Vec<_> = self.table.made().into_iter().filter(|process| alive(process)).collect();
        let ends = async {
            for process in &alive {
                if let Err(refusal) = self.signal(&process.id, signal, false).await {
                    log::debug!("a container was not asked to end: {refusal}");
                }
            }
            for process in &alive {
                let _ = process.exit.subscribe().wait_for(Option::is_some).await;
            }
        };
        if timeout(patience, ends).await.is_err() {
            log::info!("not all containers have ended within {patience:?}: the machine's end is theirs");
        }
    }

    /// The pod's figures. Those of its cgroup on the host, where all of it is counted: containerd tells the same of a pod with a pause container, and
    /// the kubelet holds them against the pod's limits and overhead. Where no cgroup is the pod's alone, the sum over its containers.
    ///
    /// # Errors
    /// The machine does not answer.
    pub async fn stats_of_pod(&self) -> Result<StatsResponse, Refusal> {
        let inside = self.sum_inside().await?;
        let cost = self.host.get().and_then(pod_cgroup::current).and_then(|cgroup| cgroup.cost().ok());
        Ok(of_pod(cost, inside))
    }

    async fn sum_inside(&self) -> Result<StatsResponse, Refusal> {
        let pod = self.machine.pod().await?;
        let mut sum = StatsResponse { memory_max: u64::MAX, swap_max: u64::MAX, ..StatsResponse::default() };
        for process in self.table.made().iter().filter(|process| is_container(process)) {
            match pod.stats(&process.id.container_id).await {
                Ok(stats) => add(&mut sum, stats),
                // It is going just now, or is gone.
                Err(PodError { kind: ErrorKind::NotFound | ErrorKind::FailedPrecondition, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sum)
    }
}

// The host sees the machine's process and nothing of its network.
fn of_pod(cost: Option<StatsResponse>, inside: StatsResponse) -> StatsResponse {
    match cost {
        Some(cost) => StatsResponse { interfaces: inside.interfaces, ..cost },
        None => inside,
    }
}

fn is_container(process: &super::Process) -> bool {
    process.id.exec_id.is_empty()
}

// Limits are not summed: the pod's own is its machine.
fn add(sum: &mut StatsResponse, stats: StatsResponse) {
    for (total, figure) in [
        (&mut sum.cpu_usage_usec, stats.cpu_usage_usec),
        (&mut sum.cpu_user_usec, stats.cpu_user_usec),
        (&mut sum.cpu_system_usec, stats.cpu_system_usec),
        (&mut sum.cpu_periods, stats.cpu_periods),
        (&mut sum.cpu_throttled_periods, stats.cpu_throttled_periods),
        (&mut sum.cpu_throttled_usec, stats.cpu_throttled_usec),
        (&mut sum.memory_current, stats.memory_current),
        (&mut sum.memory_peak, stats.memory_peak),
        (&mut sum.swap_current, stats.swap_current),
        (&mut sum.pids_current, stats.pids_current),
    ] {
        *total = total.saturating_add(figure);
    }
    for (name, figure) in stats.memory_stat {
        let total = sum.memory_stat.entry(name).or_default();
        *total = total.saturating_add(figure);
    }
    for (name, figure) in stats.memory_events {
        let total = sum.memory_events.entry(name).or_default();
        *total = total.saturating_add(figure);
    }
    stats.io.into_iter().for_each(|device| add_device(sum, device));
    // Of the machine, so every container tells the same.
    sum.interfaces = stats.interfaces;
}

fn add_device(sum: &mut StatsResponse, device: DeviceIo) {
    let same = |known: &&mut DeviceIo| (known.major, known.minor) == (device.major, device.minor);
    let Some(known) = sum.io.iter_mut().find(same) else { return sum.io.push(device) };
    for (total, figure) in [
        (&mut known.read_bytes, device.read_bytes),
        (&mut known.write_bytes, device.write_bytes),
        (&mut known.read_ops, device.read_ops),
        (&mut known.write_ops, device.write_ops),
    ] {
        *total = total.saturating_add(figure);
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::messages::Interface;

    use super::*;

    #[test]
    fn a_pod_costs_what_its_cgroup_on_the_host_says_and_talks_through_the_guests_interfaces() {
        let interfaces = vec![Interface { name: "eth0".into(), rx_bytes: 5, ..Interface::default() }];
        let inside = StatsResponse { memory_current: 2, interfaces: interfaces.clone(), ..StatsResponse::default() };
        let cost = StatsResponse { memory_current: 40, pids_current: 9, ..StatsResponse::default() };
        let mut sum = StatsResponse::default();
        add(&mut sum, inside.clone());
        add(&mut sum, inside);
        assert_eq!(
            of_pod(None, sum.clone()),
            StatsResponse { memory_current: 4, interfaces: interfaces.clone(), ..StatsResponse::default() }
        );
        assert_eq!(of_pod(Some(cost.clone()), sum), StatsResponse { interfaces, ..cost });
    }

    #[test]
    fn figures_add_up_and_devices_meet() {
        let device = |minor, read_bytes| DeviceIo { major: 8, minor, read_bytes, ..DeviceIo::default() };
        let one = StatsResponse {
            cpu_usage_usec: 10,
            memory_current: u64::MAX - 1,
            memory_stat: [("anon".to_owned(), 3)].into(),
            io: vec![device(0, 5)],
            ..StatsResponse::default()
        };
        let two = StatsResponse { memory_current: 7, io: vec![device(0, 6), device(1, 9)], ..one.clone() };
        let mut sum = StatsResponse::default();
        add(&mut sum, one);
        add(&mut sum, two);
        assert_eq!((sum.cpu_usage_usec, sum.memory_current, sum.memory_stat["anon"]), (20, u64::MAX, 6));
        assert_eq!(sum.io, [device(0, 11), device(1, 9)]);
    }
}
