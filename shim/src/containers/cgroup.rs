//! What is asked of a container's cgroup in the guest: who is in it, what it uses and may use, and its freezer.

use agent_protocol::messages::StatsResponse;
use oci_spec::runtime::LinuxResources;

use super::{Containers, process::first};
use crate::{events::Event, lock::held, refusal::Refusal};

impl Containers {
    /// Pids of a container's processes, as the guest counts. Never empty: containerd takes a container without processes for a
    /// leaked one when it restarts, and would end it.
    ///
    /// # Errors
    /// There is no such container, or the machine does not answer.
    pub async fn pids(&self, container_id: &str) -> Result<Vec<u32>, Refusal> {
        let process = self.table.find(&first(container_id))?;
        if held(&process.life).exit().is_some() {
            return Ok(vec![process.pid]);
        }
        let pids = self.machine.pod().await?.pids(container_id).await?;
        Ok(if pids.is_empty() { vec![process.pid] } else { pids })
    }

    /// A container's figures.
    ///
    /// # Errors
    /// There is no such container, or the machine does not answer.
    pub async fn stats(&self, container_id: &str) -> Result<StatsResponse, Refusal> {
        self.table.find(&first(container_id))?;
        Ok(self.machine.pod().await?.stats(container_id).await?)
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// There is no such container, or the guest refuses.
    pub async fn update(&self, container_id: &str, resources: LinuxResources) -> Result<(), Refusal> {
        self.table.find(&first(container_id))?;
        Ok(self.machine.pod().await?.update(container_id, resources).await?)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// There is no such container, it does not run, or the guest refuses.
    pub async fn pause(&self, container_id: &str) -> Result<(), Refusal> {
        let process = self.table.find(&first(container_id))?;
        held(&process.life).check_pause()?;
        self.machine.pod().await?.pause(container_id).await?;
        let mut life = held(&process.life);
        if life.paused() {
            self.publisher.publish(Event::Paused(container_id.to_owned()));
        }
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// There is no such container, it is not frozen, or the guest refuses.
    pub async fn resume(&self, container_id: &str) -> Result<(), Refusal> {
        let process = self.table.find(&first(container_id))?;
        held(&process.life).check_resume()?;
        self.machine.pod().await?.resume(container_id).await?;
        let mut life = held(&process.life);
        if life.resumed() {
            self.publisher.publish(Event::Resumed(container_id.to_owned()));
        }
        Ok(())
    }
}
