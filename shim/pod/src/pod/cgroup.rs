//! What is asked of a container's cgroup in the guest: who is in it, what it uses and may use, and its freezer.

use agent_protocol::messages::StatsResponse;
use oci_spec::runtime::LinuxResources;

use super::Pod;
use crate::{PodError, ProcessId, container::Event};

impl Pod {
    /// Pids of a container, as the guest counts them.
    pub async fn pids(&self, container_id: &str) -> Result<Vec<u32>, PodError> {
        self.apply(&ProcessId::first(container_id), Event::UseAsked).await?;
        let pids = self.shared.agent.pids(container_id).await;
        self.explained(pids).await
    }

    /// What a container uses, from its cgroup in the guest.
    pub async fn stats(&self, container_id: &str) -> Result<StatsResponse, PodError> {
        self.apply(&ProcessId::first(container_id), Event::UseAsked).await?;
        let stats = self.shared.agent.stats(container_id).await;
        self.explained(stats).await
    }

    /// Waits until the guest's kernel has killed a process of some container for want of memory, and tells which container. Each news is told once.
    ///
    /// # Errors
    /// The machine is gone.
    pub async fn next_oom(&self) -> Result<String, PodError> {
        self.shared.agent.next_oom().await
    }

    /// Changes a container's limits.
    pub async fn update(&self, container_id: &str, resources: LinuxResources) -> Result<(), PodError> {
        self.apply(&ProcessId::first(container_id), Event::UseAsked).await?;
        let resources = serde_json::to_vec(&resources).map_err(|e| PodError::host("cannot write the resources", e))?;
        let updated = self.shared.agent.update(container_id, resources).await;
        self.explained(updated).await
    }

    /// Freezes a container.
    pub async fn pause(&self, container_id: &str) -> Result<(), PodError> {
        self.apply(&ProcessId::first(container_id), Event::UseAsked).await?;
        let paused = self.shared.agent.pause(container_id).await;
        self.explained(paused).await
    }

    /// Thaws a container.
    pub async fn resume(&self, container_id: &str) -> Result<(), PodError> {
        self.apply(&ProcessId::first(container_id), Event::UseAsked).await?;
        let resumed = self.shared.agent.resume(container_id).await;
        self.explained(resumed).await
    }
}
