//! containerd's Task service: each call is parsed here, once, and handed on as values.
//!
//! The messages are those of version 3; version 2 differs in its name alone, so one set of handlers serves both.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, Mount, PauseRequest, PidsRequest,
        PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
        StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    shim_async::{Task, create_task},
};
use oci_spec::runtime::Spec;
use pod::{ErrorKind, HostMount, ProcessId, RootFs};
use protobuf::well_known_types::any::Any;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use ttrpc::{Result as TtrpcResult, r#async::Service, r#async::TtrpcContext};

use crate::{
    arguments::check_identifier,
    bundle,
    containers::{Containers, NewContainer, NewExec, first},
    ending::Ending,
    giving_up,
    group::Group,
    lifecycle::Phase,
    malformed, metrics, oci_json,
    pod_request::PodRequest,
    refusal::Refusal,
    stdio::Paths,
    timestamp,
};

const SERVICE_V3: &str = "containerd.task.v3.Task";
const SERVICE_V2: &str = "containerd.task.v2.Task";

/// The service of one daemon.
#[derive(Clone)]
pub struct TaskService {
    containers: Arc<Containers>,
    ending: Ending,
}

impl TaskService {
    /// A service for `containers`, reached at the socket of `group`.
    pub fn new(containers: Arc<Containers>, group: Group) -> Self {
        Self { ending: Ending::new(Arc::clone(&containers), group), containers }
    }

    /// The handlers under both of their names.
    pub fn handlers(&self) -> HashMap<String, Service> {
        let mut all = create_task(self.shared());
        all.extend(create_task(self.shared()).remove(SERVICE_V3).map(|service| (SERVICE_V2.to_owned(), service)));
        all.extend(giving_up::handlers(Arc::clone(&self.containers), self.ending.clone()));
        malformed::refused(all)
    }

    /// The pod's end, which other services may ask for too.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Resolves when the pod has been stopped.
    pub async fn ended(&self) {
        self.ending.ended().await;
    }

    fn shared(&self) -> Arc<dyn Task + Send + Sync> {
        Arc::new(self.clone())
    }

    // ttrpc drops a handler whose client hangs up; a request that changes something must run to its end all the same.
    async fn detached<T, F>(&self, work: impl FnOnce(Arc<Containers>) -> F + Send) -> TtrpcResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let outcome = tokio::spawn(work(Arc::clone(&self.containers))).await;
        let outcome = outcome.unwrap_or_else(|error| Err(Refusal::new(ErrorKind::Internal, error.to_string())));
        Ok(outcome?)
    }

    // A container whose create was answered to nobody, because the request's time was over or containerd is gone, is taken back: containerd
    // knows nothing of it.
    async fn make(&self, new: NewContainer) -> TtrpcResult<u32> {
        let (answer, heard) = oneshot::channel();
        let (containers, ending, id) = (Arc::clone(&self.containers), self.ending.clone(), first(&new.id));
        tokio::spawn(async move {
            // The group's first container says what pod is wanted, if nobody has said so before.
            containers.machine().begin(PodRequest::of_container(&new.oci));
            let made = containers.create(new).await;
            let unheard = match (made.is_ok(), answer.send(made)) {
                (true, Ok(())) => return ending.not_yet(),
                (made, _) => made,
            };
            if unheard {
                log::warn!("nobody waits for the container {} any more: it is taken back", id.container_id);
                let _ = containers.delete(&id).await;
            }
            ending.after_a_failed_container().await;
        });
        let made = heard.await;
        Ok(made.map_err(|_| {
            Refusal::new(ErrorKind::Internal, "the container's creation was interrupted: this is a bug")
        })??)
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let new = new_container(request)?;
        let pid = self.make(new).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let id = process_id(request.id, request.exec_id);
        let pid = self.detached(|containers| async move { containers.start(&id).await }).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let id = process_id(request.id, request.exec_id);
        let snapshot = self.containers.snapshot(&id)?;
        Ok(StateResponse {
            bundle: snapshot.bundle.display().to_string(),
            pid: snapshot.pid,
            status: status(snapshot.phase).into(),
            stdin: snapshot.stdio.stdin,
            stdout: snapshot.stdio.stdout,
            stderr: snapshot.stdio.stderr,
            terminal: snapshot.stdio.terminal,
            exit_status: snapshot.exit.map_or(0, |exit| exit.status),
            exited_at: snapshot.exit.map(|exit| timestamp::proto(exit.at)).into(),
            id: id.container_id,
            exec_id: id.exec_id,
            ..StateResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let id = process_id(request.id, request.exec_id);
        let exit = self.detached(|containers| async move { containers.delete(&id).await }).await?;
        Ok(DeleteResponse {
            pid: self.containers.pid(),
            exit_status: exit.status,
            exited_at: Some(timestamp::proto(exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let id = process_id(request.id, request.exec_id);
        let (signal, all) = (request.signal, request.all);
        self.detached(move |containers| async move { containers.signal(&id, signal, all).await }).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let new = new_exec(request)?;
        self.detached(|containers| async move { containers.add_exec(new).await }).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let exit = self.containers.wait(&process_id(request.id, request.exec_id)).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp::proto(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let id = process_id(request.id, request.exec_id);
        let (columns, rows) = (cells(request.width)?, cells(request.height)?);
        self.detached(move |containers| async move { containers.resize(&id, columns, rows).await }).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        if request.stdin {
            self.containers.close_stdin(&process_id(request.id, request.exec_id))?;
        }
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let pids = self.detached(|containers| async move { containers.pids(&request.id).await }).await?;
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, ..ProcessInfo::default() }).collect();
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let stats = self.detached(|containers| async move { containers.stats(&request.id).await }).await?;
        let any = metrics::envelope(&stats).map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
        Ok(StatsResponse { stats: Some(any).into(), ..StatsResponse::default() })
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let resources = oci_object("resources", request.resources.as_ref())?;
        self.detached(|containers| async move { containers.update(&request.id, resources).await }).await?;
        Ok(Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        self.detached(|containers| async move { containers.pause(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        self.detached(|containers| async move { containers.resume(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        let sentence =
            format!("cannot checkpoint the container {}: this runtime has no checkpoints of containers", request.id);
        Err(Refusal::new(ErrorKind::Unimplemented, sentence).into())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        // A sandbox is no task; yet this is how containerd asks after its own restart whether the shim still lives, and it forgets one that
        // knows nothing of it.
        if !self.ending.holds(&request.id) {
            self.containers.check_known(&first(&request.id))?;
        }
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self
                .containers
                .snapshot(&first(&request.id))
                .map_or_else(|_| self.containers.pid(), |known| known.pid),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> TtrpcResult<Empty> {
        self.ending.after_a_container().await;
        Ok(Empty::default())
    }
}

fn process_id(container_id: String, exec_id: String) -> ProcessId {
    ProcessId { container_id, exec_id }
}

fn status(phase: Phase) -> Status {
    match phase {
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped => Status::STOPPED,
    }
}

fn cells(count: u32) -> Result<u16, Refusal> {
    u16::try_from(count).map_err(|_| invalid(format!("a terminal cannot be {count} cells wide or high")))
}

fn invalid(sentence: String) -> Refusal {
    Refusal::new(ErrorKind::InvalidArgument, sentence)
}

fn new_container(request: CreateTaskRequest) -> Result<NewContainer, Refusal> {
    check_identifier("container id", &request.id).map_err(|error| invalid(error.to_string()))?;
    if !request.checkpoint.is_empty() {
        let sentence =
            format!("cannot restore the container {}: this runtime has no checkpoints of containers", request.id);
        return Err(Refusal::new(ErrorKind::Unimplemented, sentence));
    }
    let bundle = PathBuf::from(request.bundle);
    let oci = bundle::spec(&bundle)?;
    Ok(NewContainer {
        rootfs: rootfs(&request.rootfs, &oci, &bundle)?,
        id: request.id,
        bundle,
        oci,
        mounts: request.rootfs,
        stdio: Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
    })
}

fn rootfs(mounts: &[Mount], oci: &Spec, bundle: &std::path::Path) -> Result<RootFs, Refusal> {
    if mounts.is_empty() {
        let root = oci.root().as_ref().map(|root| bundle.join(root.path()));
        return root.map(RootFs::Folder).ok_or_else(|| {
            invalid(format!("{} names no root and containerd sent none", bundle.join("config.json").display()))
        });
    }
    let host_mount = |mount: &Mount| HostMount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    };
    Ok(RootFs::Mounts(mounts.iter().map(host_mount).collect()))
}

fn new_exec(request: ExecProcessRequest) -> Result<NewExec, Refusal> {
    check_identifier("exec id", &request.exec_id).map_err(|error| invalid(error.to_string()))?;
    Ok(NewExec {
        process: oci_object("process", request.spec.as_ref())?,
        id: process_id(request.id, request.exec_id),
        stdio: Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
    })
}

// containerd wraps OCI objects as JSON in an `Any` whose type names them; only the JSON is of interest.
fn oci_object<T: DeserializeOwned>(what: &str, any: Option<&Any>) -> Result<T, Refusal> {
    let bytes = any.map(|any| any.value.as_slice()).unwrap_or_default();
    oci_json::parse(bytes).map_err(|misfit| invalid(format!("the request's OCI {what} object is broken: {misfit}")))
}
