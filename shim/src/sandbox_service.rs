//! containerd's sandbox service: a pod without a pause container. Each call is parsed here; what it means is [`crate::sandbox`]'s.
//!
//! containerd's own order is Create, Start, Wait (until the end), Status and Ping at any time, Stop, Shutdown; Platform before each
//! container (its `plugins/sandbox/controller.go`). Containers are made with the Task service of the same shim, and join the pod.
//! The machine boots between Create and Start. Nothing is published: the events of a sandbox are containerd's own.
//!
//! | call | wrong state |
//! |---|---|
//! | any, of another sandbox or before Create | NOT_FOUND, which containerd takes for an end |
//! | Create twice | ALREADY_EXISTS |
//! | Start twice, or after Stop | FAILED_PRECONDITION |
//! | Ping without a machine | UNAVAILABLE |
//! | Stop and Shutdown, again | nothing happens |

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim_protos::{
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
        SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
        ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
        StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::{Sandbox as SandboxCalls, create_sandbox},
    types::platform::Platform,
};
use pod::{ErrorKind, Exit};
use tokio::sync::watch;
use ttrpc::{Result as TtrpcResult, r#async::Service, r#async::TtrpcContext};

use crate::{
    containers::{Containers, KILLED_STATUS},
    ending::Ending,
    lock::held,
    malformed, metrics,
    pod_files::PodFiles,
    pod_request::PodRequest,
    refusal::Refusal,
    sandbox::{Phase, Sandbox},
    timestamp,
};

/// Signal with which a sandbox that has a while asks its containers to end.
const SIGTERM: u32 = 15;

/// The service of one daemon, for the one sandbox that its pod can be.
#[derive(Clone)]
pub struct SandboxService {
    containers: Arc<Containers>,
    ending: Ending,
    sandbox: Arc<Mutex<Option<Sandbox>>>,
    exit: watch::Sender<Option<Exit>>,
}

impl SandboxService {
    /// A service for the pod of `containers`, which `ending` ends.
    pub fn new(containers: Arc<Containers>, ending: Ending) -> Self {
        Self { containers, ending, sandbox: Arc::default(), exit: watch::Sender::new(None) }
    }

    /// The handlers under the service's name.
    pub fn handlers(&self) -> HashMap<String, Service> {
        let shared: Arc<dyn SandboxCalls + Send + Sync> = Arc::new(self.clone());
        malformed::refused(create_sandbox(shared))
    }

    fn create(&self, request: &CreateSandboxRequest) -> Result<(), Refusal> {
        let (id, mine) = (&request.sandbox_id, self.ending.pod_id());
        if id != mine {
            let sentence = format!("sandbox_id is {id:?}, and this shim is the sandbox {mine}'s");
            return Err(Refusal::new(ErrorKind::InvalidArgument, sentence));
        }
        let pod = PodRequest::of_sandbox(request)?;
        let mut sandbox = held(&self.sandbox);
        if sandbox.is_some() || !self.containers.is_empty() {
            return Err(Refusal::new(ErrorKind::AlreadyExists, format!("the sandbox {id} exists already")));
        }
        if !request.rootfs.is_empty() {
            log::debug!("the sandbox has a root file system, and nothing to do with it: the guest has its own");
        }
        self.containers.show(files(request, &pod)?);
        if !self.containers.machine().begin(pod) {
            log::info!("the sandbox's machine was made as its bundle says; its options do not change it any more");
        }
        *sandbox = Some(Sandbox::new(SystemTime::now()));
        self.ending.hold();
        tokio::spawn(self.clone().watch());
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<Sandbox, Refusal> {
        let sandbox = self.look(id)?;
        if sandbox.exit().is_none() {
            sandbox.check_start()?;
        }
        // First, because a machine that does not come up has ended the sandbox, and knows why.
        self.containers.machine().pod().await?;
        let mut sandbox = held(&self.sandbox);
        let sandbox = sandbox.as_mut().ok_or_else(|| missing(id))?;
        sandbox.started()?;
        Ok(*sandbox)
    }

    // Each stop waits for the first one's end.
    async fn stop(&self, id: &str, patience: Duration) -> Result<(), Refusal> {
        self.look(id)?;
        if held(&self.sandbox).as_mut().is_some_and(Sandbox::request_stop) {
            let service = self.clone();
            // A task of its own: containerd may hang up.
            tokio::spawn(async move {
                if !patience.is_zero() {
                    service.containers.end_all(SIGTERM, patience).await;
                }
                service.containers.machine().stop().await;
                service.over();
            });
        }
        self.wait(id).await.map(drop)
    }

    async fn wait(&self, id: &str) -> Result<Exit, Refusal> {
        self.look(id)?;
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| missing(id))
    }

    async fn shut_down(&self, id: &str) -> Result<(), Refusal> {
        // Also of one that was never made: containerd does so when its creation fails.
        if id != self.ending.pod_id() {
            return Err(missing(id));
        }
        held(&self.sandbox).as_mut().map(Sandbox::request_stop);
        self.ending.now().await;
        self.over();
        Ok(())
    }

    // A machine that dies by itself, or does not come up, is the end of a sandbox too.
    async fn watch(self) {
        if let Ok(pod) = self.containers.machine().pod().await {
            let how = pod.gone().await;
            log::info!("the sandbox's machine is gone: {how}");
        }
        self.over();
    }

    fn over(&self) {
        if let Some(sandbox) = held(&self.sandbox).as_mut() {
            let exit = sandbox.ended(KILLED_STATUS, SystemTime::now());
            self.exit.send_replace(Some(exit));
        }
    }

    fn status(&self, request: SandboxStatusRequest) -> Result<SandboxStatusResponse, Refusal> {
        let sandbox = self.look(&request.sandbox_id)?;
        let pid = self.pid(&sandbox);
        Ok(SandboxStatusResponse {
            pid,
            state: sandbox.state().to_owned(),
            info: if request.verbose { info(&sandbox, pid) } else { HashMap::new() },
            created_at: Some(timestamp::proto(sandbox.created_at())).into(),
            exited_at: sandbox.exit().map(|exit| timestamp::proto(exit.at)).into(),
            sandbox_id: request.sandbox_id,
            ..SandboxStatusResponse::default()
        })
    }

    async fn metrics(&self, id: &str) -> Result<SandboxMetricsResponse, Refusal> {
        self.look(id)?;
        let stats = self.containers.stats_of_pod().await?;
        let figures =
            metrics::envelope(&stats).map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = Some(timestamp::proto(SystemTime::now())).into();
        metric.id = id.to_owned();
        metric.data = Some(figures).into();
        Ok(response)
    }

    // 0 once it has ended, as with a container.
    fn pid(&self, sandbox: &Sandbox) -> u32 {
        if sandbox.exit().is_some() { 0 } else { self.containers.pid() }
    }

    fn look(&self, id: &str) -> Result<Sandbox, Refusal> {
        if id != self.ending.pod_id() {
            return Err(missing(id));
        }
        held(&self.sandbox).ok_or_else(|| missing(id))
    }
}

#[async_trait]
impl SandboxCalls for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        self.create(&request)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(&self, _: &TtrpcContext, request: StartSandboxRequest) -> TtrpcResult<StartSandboxResponse> {
        let sandbox = self.start(&request.sandbox_id).await?;
        Ok(StartSandboxResponse {
            pid: self.pid(&sandbox),
            created_at: Some(timestamp::proto(sandbox.created_at())).into(),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> TtrpcResult<PlatformResponse> {
        self.look(&request.sandbox_id)?;
        // The machine is of the host's kind: KVM does not translate.
        let platform = Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), ..Platform::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..PlatformResponse::default() })
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: StopSandboxRequest) -> TtrpcResult<StopSandboxResponse> {
        self.stop(&request.sandbox_id, Duration::from_secs(request.timeout_secs.into())).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: WaitSandboxRequest) -> TtrpcResult<WaitSandboxResponse> {
        let exit = self.wait(&request.sandbox_id).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp::proto(exit.at)).into(),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        Ok(self.status(request)?)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> TtrpcResult<PingResponse> {
        match self.look(&request.sandbox_id)?.phase() {
            Phase::Created | Phase::Ready => Ok(PingResponse::default()),
            Phase::Ended(_) => {
                let sentence = format!("the sandbox {} has ended; make it again", request.sandbox_id);
                Err(Refusal::new(ErrorKind::Unavailable, sentence).into())
            }
        }
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        self.shut_down(&request.sandbox_id).await?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        Ok(self.metrics(&request.sandbox_id).await?)
    }
}

// containerd's CRI reads the JSON under this name and adds to it (internal/cri/types, SandboxInfo).
fn info(sandbox: &Sandbox, pid: u32) -> HashMap<String, String> {
    let status = match sandbox.phase() {
        Phase::Created => "created",
        Phase::Ready => "running",
        Phase::Ended(_) => "stopped",
    };
    let text = serde_json::json!({ "pid": pid, "processStatus": status, "runtimeType": "io.containerd.kata-rs.v2" });
    [("info".to_owned(), text.to_string())].into()
}

// containerd removes the bundle with all that is in it when the sandbox goes.
fn files(request: &CreateSandboxRequest, pod: &PodRequest) -> Result<PodFiles, Refusal> {
    let bundle = Path::new(&request.bundle_path);
    let written = match bundle.is_absolute() {
        true => PodFiles::write(bundle, &pod.host_name(&request.sandbox_id), &pod.resolv_conf),
        false => Err(std::io::ErrorKind::NotFound.into()),
    };
    written.map_err(|error| {
        let sentence = format!("bundle_path is {bundle:?}, and the pod's files cannot be written there: {error}");
        Refusal::new(ErrorKind::InvalidArgument, sentence)
    })
}

fn missing(id: &str) -> Refusal {
    Refusal::not_found(format_args!("the sandbox {id}"))
}
