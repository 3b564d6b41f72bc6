//! The pod's machine as the daemon holds it: booting since the daemon's start, up, or failed.
//!
//! The boot begins before containerd asks for a container, because it takes longer than everything else: the bundle that `start`
//! runs in already says what machine is needed. `Create` then waits for the rest of it. A machine that is never asked for is stopped
//! like any other. A boot that is under way then is never dropped: it would go on taking things behind the back of whoever undoes them. It
//! gets its time to come up; after that its processes are killed under it, of which it fails and undoes itself.

use std::{path::PathBuf, sync::Arc, time::Duration};

use agent_protocol::messages::StatsResponse;
use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;
use pod::{ContainerSpec, ErrorKind, ExecSpec, Exit, Pod, PodError, ProcessId, ProcessStreams};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::refusal::Refusal;

/// How long a boot that nobody wants any more may take to come up: a boot takes 0.1 to 0.4 s.
const BOOT_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to undo itself once its processes are dead.
const UNDO_PATIENCE: Duration = Duration::from_secs(2);

/// The calls of a pod that this crate makes; the second implementation is the tests'.
#[async_trait]
#[expect(missing_docs, reason = "each is the method of pod::Pod with its name")]
pub trait PodFront: Send + Sync {
    async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError>;
    async fn add_exec(&self, exec: ExecSpec) -> Result<ProcessStreams, PodError>;
    async fn start(&self, process: &ProcessId) -> Result<u32, PodError>;
    async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError>;
    async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError>;
    async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError>;
    async fn delete(&self, process: &ProcessId) -> Result<Exit, PodError>;
    async fn pids(&self, container_id: &str) -> Result<Vec<u32>, PodError>;
    async fn stats(&self, container_id: &str) -> Result<StatsResponse, PodError>;
    async fn update(&self, container_id: &str, resources: LinuxResources) -> Result<(), PodError>;
    async fn pause(&self, container_id: &str) -> Result<(), PodError>;
    async fn resume(&self, container_id: &str) -> Result<(), PodError>;
    async fn gone(&self) -> String;
    async fn stop(&self) -> Result<(), PodError>;
    fn vmm_pid(&self) -> u32;
    /// The pid that stands on the host for a container.
    fn host_pid(&self, _container_id: &str) -> u32 {
        self.vmm_pid()
    }
}

#[async_trait]
impl PodFront for Pod {
    async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        Self::create_container(self, container).await
    }
    async fn add_exec(&self, exec: ExecSpec) -> Result<ProcessStreams, PodError> {
        Self::add_exec(self, exec).await
    }
    async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        Self::start(self, process).await
    }
    async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        Self::signal(self, process, signal, all).await
    }
    async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError> {
        Self::wait(self, process).await
    }
    async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError> {
        Self::resize(self, process, columns, rows).await
    }
    async fn delete(&self, process: &ProcessId) -> Result<Exit, PodError> {
        Self::delete(self, process).await
    }
    async fn pids(&self, container_id: &str) -> Result<Vec<u32>, PodError> {
        Self::pids(self, container_id).await
    }
    async fn stats(&self, container_id: &str) -> Result<StatsResponse, PodError> {
        Self::stats(self, container_id).await
    }
    async fn update(&self, container_id: &str, resources: LinuxResources) -> Result<(), PodError> {
        Self::update(self, container_id, resources).await
    }
    async fn pause(&self, container_id: &str) -> Result<(), PodError> {
        Self::pause(self, container_id).await
    }
    async fn resume(&self, container_id: &str) -> Result<(), PodError> {
        Self::resume(self, container_id).await
    }
    async fn gone(&self) -> String {
        Self::gone(self).await
    }
    async fn stop(&self) -> Result<(), PodError> {
        Self::stop(self).await
    }
    fn vmm_pid(&self) -> u32 {
        Self::vmm_pid(self)
    }
    fn host_pid(&self, container_id: &str) -> u32 {
        Self::host_pid(self, container_id)
    }
}

#[derive(Clone)]
enum Boot {
    UnderWay,
    Up(Arc<dyn PodFront>),
    Failed(Refusal),
}

/// The machine, in whichever state.
pub struct Machine {
    boot: watch::Receiver<Boot>,
    launch: std::sync::Mutex<Option<JoinHandle<()>>>,
    state_dir: PathBuf,
}

impl Machine {
    /// Begins to boot, in the background. `state_dir` is where the boot keeps its record.
    pub fn boot(
        launch: impl Future<Output = Result<Arc<dyn PodFront>, Refusal>> + Send + 'static,
        state_dir: PathBuf,
    ) -> Self {
        let (outcome, boot) = watch::channel(Boot::UnderWay);
        let launch = tokio::spawn(async move {
            let boot = match launch.await {
                Ok(pod) => Boot::Up(pod),
                Err(refusal) => {
                    log::error!("the pod's machine does not start: {refusal}");
                    Boot::Failed(refusal)
                }
            };
            outcome.send_replace(boot);
        });
        Self { boot, launch: std::sync::Mutex::new(Some(launch)), state_dir }
    }

    /// The pod, once the machine is up.
    ///
    /// # Errors
    /// Why it is not: the boot's own sentence.
    pub async fn pod(&self) -> Result<Arc<dyn PodFront>, Refusal> {
        let mut boot = self.boot.clone();
        let settled = boot.wait_for(|boot| !matches!(boot, Boot::UnderWay)).await.map(|boot| boot.clone());
        match settled {
            Ok(Boot::Up(pod)) => Ok(pod),
            Ok(Boot::Failed(refusal)) => Err(refusal),
            Ok(Boot::UnderWay) | Err(_) => {
                Err(Refusal::new(ErrorKind::Unavailable, "the pod is being stopped; make it again"))
            }
        }
    }

    /// The pid that stands for the pod on the host; 0 while there is none.
    pub fn pid(&self) -> u32 {
        match &*self.boot.borrow() {
            Boot::Up(pod) => pod.vmm_pid(),
            _ => 0,
        }
    }

    /// Stops the machine and undoes what it took, whatever state it is in. What remains is logged, and `shim delete` tries again.
    pub async fn stop(&self) {
        let launch = crate::lock::held(&self.launch).take();
        if let Some(mut launch) = launch
            && timeout(BOOT_PATIENCE, &mut launch).await.is_err()
        {
            log::warn!("the pod still boots after {BOOT_PATIENCE:?} and is not wanted any more: killing it");
            self.undo_record().await;
            if timeout(UNDO_PATIENCE, &mut launch).await.is_err() {
                launch.abort();
            }
        }
        let boot = self.boot.borrow().clone();
        match boot {
            Boot::Up(pod) => complain(pod.stop().await),
            Boot::UnderWay | Boot::Failed(_) => self.undo_record().await,
        }
    }

    async fn undo_record(&self) {
        let state_dir = self.state_dir.clone();
        match tokio::task::spawn_blocking(move || pod::clean_up(&state_dir)).await {
            Ok(outcome) => complain(outcome),
            Err(error) => log::error!("the clean-up did not run: {error}"),
        }
    }
}

fn complain(outcome: Result<(), PodError>) {
    if let Err(error) = outcome {
        log::error!("the pod is stopped, but not everything could be undone: {}", Refusal::from(error));
    }
}
