//! Making containers and execs.

use std::time::Instant;

use agent_protocol::messages::{AddExecRequest, CreateContainerRequest};

use super::{Pod, detached};
use crate::{
    ContainerSpec, ErrorKind, ExecSpec, PodError, ProcessId, ProcessStreams,
    agent::wire,
    container::Event,
    ids::check_id,
    membership::Membership,
    shared_memory,
    sizing::above_machine,
    translate::{Translation, translate},
};

impl Pod {
    /// Makes a container; its first process waits at the gate. The pid is the guest's.
    pub async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        let pod = self.clone();
        detached(async move {
            let translation = translate(&container, |pid| pod.shared.host_pids.whose(pid))?;
            let wide = above_machine(&container.oci, pod.shared.memory_mib);
            translation
                .warnings
                .iter()
                .chain(&wide)
                .for_each(|warning| log::warn!("container {}: {warning}", container.id));
            let process = ProcessId::first(&container.id);
            pod.enter(&process).await?;
            let made = pod.make_container(&container, translation).await;
            pod.made(&process, made).await
        })
        .await
    }

    async fn make_container(
        &self,
        container: &ContainerSpec,
        translation: Translation,
    ) -> Result<(u32, ProcessStreams), PodError> {
        let oci_spec = serde_json::to_vec(&translation.guest)
            .map_err(|e| PodError::host("cannot write the guest's config.json", e))?;
        let (columns, rows) = container.stdio.terminal.unwrap_or_default();
        let begun = Instant::now();
        let shared_memory_bytes = match &translation.storage.shared_memory {
            Some(folder) => shared_memory::size_of(folder.clone()).await,
            None => 0,
        };
        if matches!(translation.membership, Membership::Member { .. }) {
            self.shared.host_pids.give(&container.id);
        }
        let ((), (streams, stdio)) =
            tokio::try_join!(self.shared.share.add(translation.storage), self.shared.streams.open(container.stdio))?;
        let pids_of = translation.pids_of.unwrap_or_default();
        let pids_of_pod = translation.membership.is_sandbox(&pids_of)
            && self.look(&ProcessId::first(&pids_of)).await.is_err_and(|error| error.kind == ErrorKind::NotFound);
        let request = CreateContainerRequest {
            container_id: container.id.clone(),
            oci_spec,
            stdio: protobuf::MessageField::some(stdio),
            columns: columns.into(),
            rows: rows.into(),
            pids_of: if pids_of_pod { String::new() } else { pids_of },
            pids_of_pod,
            shared_memory_bytes,
            ..Default::default()
        };
        let prepared = begun.elapsed();
        let pid = self.shared.agent.create_container(request).await?;
        log::debug!(
            "container {}: files and streams {prepared:?}, agent {:?}",
            container.id,
            begun.elapsed() - prepared
        );
        Ok((pid, streams))
    }

    /// Registers an exec; nothing runs yet, so a missing command is reported by start.
    pub async fn add_exec(&self, exec: ExecSpec) -> Result<ProcessStreams, PodError> {
        let pod = self.clone();
        detached(async move {
            check_id("exec", &exec.exec_id)?;
            let process = ProcessId { container_id: exec.container_id.clone(), exec_id: exec.exec_id.clone() };
            pod.enter(&process).await?;
            let made = pod.make_exec(&process, exec).await.map(|streams| (0, streams));
            pod.made(&process, made).await.map(|(_, streams)| streams)
        })
        .await
    }

    async fn make_exec(&self, process: &ProcessId, exec: ExecSpec) -> Result<ProcessStreams, PodError> {
        let oci_process =
            serde_json::to_vec(&exec.process).map_err(|e| PodError::host("cannot write the exec's process", e))?;
        let (columns, rows) = exec.stdio.terminal.unwrap_or_default();
        let (streams, stdio) = self.shared.streams.open(exec.stdio).await?;
        let request = AddExecRequest {
            process: wire(process),
            oci_process,
            stdio: protobuf::MessageField::some(stdio),
            columns: columns.into(),
            rows: rows.into(),
            ..Default::default()
        };
        self.shared.agent.add_exec(request).await?;
        Ok(streams)
    }

    /// Tells the task how making went; a container's wait begins at once, and a failed one gives its files back.
    async fn made<T>(&self, process: &ProcessId, made: Result<T, PodError>) -> Result<T, PodError> {
        match made {
            Ok(made) => {
                self.apply(process, Event::Made).await?;
                if !process.is_exec() {
                    self.begin_wait(process);
                }
                Ok(made)
            }
            Err(error) => {
                if !process.is_exec() {
                    self.shared.host_pids.take(&process.container_id);
                    if let Err(left) = self.shared.share.remove(&process.container_id).await {
                        log::error!("{left}");
                    }
                }
                let _ = self.apply(process, Event::MakeFailed).await;
                Err(self.explain(error).await)
            }
        }
    }
}
