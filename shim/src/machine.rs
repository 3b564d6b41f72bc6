//! The pod's machine as the daemon holds it: awaited, booting, up, or failed.
//!
//! ```text
//!   Awaited ── begin ──> UnderWay ──> Up ── stop ──> (stopped)
//!                            └──────> Failed
//! ```
//! The boot begins before containerd asks for a container, because it takes longer than everything else: the bundle that `start`
//! runs in already says what machine is needed. `Create` then waits for the rest of it. A bundle without a configuration is a sandbox's of
//! containerd's sandbox service: the machine waits for `CreateSandbox`, or for a first container, which say what is needed.
//!
//! A machine that is never asked for is stopped like any other. A boot that is under way then is never dropped: it would go on taking things behind the back of whoever undoes them. It
//! gets its time to come up; after that its processes are killed under it, of which it fails and undoes itself.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_protocol::messages::StatsResponse;
use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;
use pod::{ContainerSpec, ErrorKind, ExecSpec, Exit, Pod, PodError, ProcessId, ProcessStreams};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{lock::held, pod_request::PodRequest, refusal::Refusal};

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
    async fn next_oom(&self) -> Result<String, PodError>;
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
    async fn next_oom(&self) -> Result<String, PodError> {
        Self::next_oom(self).await
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

/// What becomes of a launch.
pub type Launched = Result<Arc<dyn PodFront>, Refusal>;
/// Launches the pod that is asked for.
pub type Launch = Box<dyn FnOnce(PodRequest) -> Pin<Box<dyn Future<Output = Launched> + Send>> + Send>;

#[derive(Clone)]
enum Boot {
    Awaited,
    UnderWay,
    Up(Arc<dyn PodFront>),
    Failed(Refusal),
}

/// The machine, in whichever state.
pub struct Machine {
    boot: watch::Sender<Boot>,
    /// Until it is used.
    launch: Mutex<Option<Launch>>,
    under_way: Mutex<Option<JoinHandle<()>>>,
    stopped: AtomicBool,
    state_dir: PathBuf,
}

impl Machine {
    /// Begins to boot, in the background. `state_dir` is where the boot keeps its record.
    pub fn boot(launch: impl Future<Output = Launched> + Send + 'static, state_dir: PathBuf) -> Self {
        let machine = Self::new(None, state_dir);
        machine.run(launch);
        machine
    }

    /// Waits for somebody to say what pod is wanted: [`Machine::begin`].
    pub fn awaited(launch: Launch, state_dir: PathBuf) -> Self {
        Self::new(Some(launch), state_dir)
    }

    fn new(launch: Option<Launch>, state_dir: PathBuf) -> Self {
        Self {
            boot: watch::Sender::new(Boot::Awaited),
            launch: Mutex::new(launch),
            under_way: Mutex::default(),
            stopped: AtomicBool::new(false),
            state_dir,
        }
    }

    /// Begins to boot the pod that is asked for. False when a boot has begun before, which may be another pod's.
    pub fn begin(&self, request: PodRequest) -> bool {
        let Some(launch) = held(&self.launch).take() else { return false };
        self.run(launch(request));
        true
    }

    fn run(&self, launch: impl Future<Output = Launched> + Send + 'static) {
        self.boot.send_replace(Boot::UnderWay);
        let outcome = self.boot.clone();
        let boot = tokio::spawn(async move {
            outcome.send_replace(match launch.await {
                Ok(pod) => Boot::Up(pod),
                Err(refusal) => {
                    log::error!("the pod's machine does not start: {refusal}");
                    Boot::Failed(refusal)
                }
            });
        });
        *held(&self.under_way) = Some(boot);
    }

    /// The pod, once the machine is up.
    ///
    /// # Errors
    /// Why it is not: the boot's own sentence, or that nobody has asked for one yet.
    pub async fn pod(&self) -> Launched {
        let mut boot = self.boot.subscribe();
        let settled = boot.wait_for(|boot| !matches!(boot, Boot::UnderWay)).await.map(|boot| boot.clone());
        match settled {
            Ok(Boot::Up(pod)) => Ok(pod),
            Ok(Boot::Failed(refusal)) => Err(refusal),
            Ok(Boot::Awaited) => Err(Refusal::new(
                ErrorKind::FailedPrecondition,
                "the pod has no machine yet: its sandbox, or its first container, has to be created first",
            )),
            Ok(Boot::UnderWay) | Err(_) => Err(unwanted()),
        }
    }

    /// The pod, once somebody has asked for it and it is up; never, if it fails.
    pub async fn up(&self) -> Arc<dyn PodFront> {
        let mut boot = self.boot.subscribe();
        match boot.wait_for(|boot| matches!(boot, Boot::Up(_))).await.map(|boot| boot.clone()) {
            Ok(Boot::Up(pod)) => pod,
            _ => std::future::pending().await,
        }
    }

    /// The pid that stands for the pod on the host; 0 while there is none.
    pub fn pid(&self) -> u32 {
        match &*self.boot.borrow() {
            Boot::Up(pod) => pod.vmm_pid(),
            _ => 0,
        }
    }

    /// Whether it was stopped: nothing of the pod is left then, so nothing can be asked of it.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Stops the machine and undoes what it took, whatever state it is in. What remains is logged, and `shim delete` tries again.
    pub async fn stop(&self) {
        drop(held(&self.launch).take());
        let under_way = held(&self.under_way).take();
        if let Some(mut boot) = under_way
            && timeout(BOOT_PATIENCE, &mut boot).await.is_err()
        {
            log::warn!("the pod still boots after {BOOT_PATIENCE:?} and is not wanted any more: killing it");
            self.undo_record().await;
            if timeout(UNDO_PATIENCE, &mut boot).await.is_err() {
                boot.abort();
            }
        }
        let boot = self.boot.borrow().clone();
        match boot {
            Boot::Up(pod) => complain(pod.stop().await),
            Boot::Failed(_) => self.undo_record().await,
            Boot::Awaited | Boot::UnderWay => {
                self.undo_record().await;
                self.boot.send_replace(Boot::Failed(unwanted()));
            }
        }
        self.stopped.store(true, Ordering::Relaxed);
    }

    async fn undo_record(&self) {
        let state_dir = self.state_dir.clone();
        match tokio::task::spawn_blocking(move || pod::clean_up(&state_dir)).await {
            Ok(outcome) => complain(outcome),
            Err(error) => log::error!("the clean-up did not run: {error}"),
        }
    }
}

fn unwanted() -> Refusal {
    Refusal::new(ErrorKind::Unavailable, "the pod is being stopped; make it again")
}

fn complain(outcome: Result<(), PodError>) {
    if let Err(error) = outcome {
        log::error!("the pod is stopped, but not everything could be undone: {}", Refusal::from(error));
    }
}
