//! A pod that is not there, behind the shim's services at a real socket with real clients. Each test program uses its part.
#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use agent_protocol::messages::StatsResponse;
use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CreateTaskRequest, DeleteRequest, Empty, ExecProcessRequest, ForwardRequest, KillRequest, StartRequest,
        StateRequest, StateResponse, WaitRequest,
    },
    sandbox_async::SandboxClient,
    shim_async::{Events, TaskClient, create_events},
};
use oci_spec::runtime::{LinuxResources, Spec};
use pod::{ContainerSpec, ErrorKind, ExecSpec, Exit, PodError, ProcessId, ProcessStreams, StdioWanted};
use protobuf::well_known_types::any::Any;
use shim::{
    containers::Containers,
    group::Group,
    machine::{Launch, Launched, Machine, PodFront},
    pod_request::PodRequest,
    publisher::Publisher,
    sandbox_service::SandboxService,
    task::TaskService,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};
use ttrpc::{
    Code,
    r#async::{Client, Server, TtrpcContext},
    context,
};

pub const VMM_PID: u32 = 4242;

/// A pod whose processes end when a test says so.
#[derive(Default)]
pub struct FakePod {
    pub exits: Mutex<BTreeMap<ProcessId, watch::Sender<Option<Exit>>>>,
    pub far_ends: Mutex<BTreeMap<ProcessId, ProcessStreams>>,
    /// What was asked for, by container.
    pub specs: Mutex<BTreeMap<String, Spec>>,
    /// Containers that end before their start is answered.
    pub hasty: Mutex<bool>,
    /// What `create` waits for, if anything.
    pub create_gate: Mutex<Option<oneshot::Receiver<()>>>,
    /// What `start` waits for, if anything.
    pub gate: Mutex<Option<oneshot::Receiver<()>>>,
    /// Signals end nothing.
    pub undead: Mutex<bool>,
    pub signals: Mutex<Vec<(ProcessId, u32, bool)>>,
    pub gone: Notify,
    pub stopped: watch::Sender<bool>,
}

impl FakePod {
    pub fn streams(&self, id: &ProcessId, wanted: StdioWanted) -> ProcessStreams {
        let pair = |wanted: bool| wanted.then(|| UnixStream::pair().expect("pair")).unzip();
        let (stdin, far_stdin) = pair(wanted.stdin);
        let (stdout, far_stdout) = pair(wanted.stdout);
        let (stderr, far_stderr) = pair(wanted.stderr);
        let far = ProcessStreams { stdin: far_stdin, stdout: far_stdout, stderr: far_stderr };
        self.far_ends.lock().expect("lock").insert(id.clone(), far);
        ProcessStreams { stdin, stdout, stderr }
    }

    pub fn end(&self, id: &ProcessId, status: u32) {
        self.far_ends.lock().expect("lock").remove(id);
        let exit = Exit { status, at: SystemTime::now(), oom_killed: false };
        self.exits.lock().expect("lock").get(id).expect("process").send_replace(Some(exit));
    }

    pub fn far_stdout(&self, id: &ProcessId) -> UnixStream {
        let mut far = self.far_ends.lock().expect("lock");
        far.get_mut(id).expect("process").stdout.take().expect("stdout")
    }
}

pub fn refusal(kind: ErrorKind, message: &str) -> PodError {
    PodError { kind, message: message.into(), source: None }
}

#[async_trait]
impl PodFront for FakePod {
    async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        let id = process(&container.id, "");
        let gate = self.create_gate.lock().expect("lock").take();
        if let Some(gate) = gate {
            let _ = gate.await;
        }
        self.exits.lock().expect("lock").insert(id.clone(), watch::Sender::new(None));
        self.specs.lock().expect("lock").insert(container.id.clone(), container.oci);
        Ok((1, self.streams(&id, container.stdio)))
    }
    async fn add_exec(&self, exec: ExecSpec) -> Result<ProcessStreams, PodError> {
        let id = process(&exec.container_id, &exec.exec_id);
        self.exits.lock().expect("lock").insert(id.clone(), watch::Sender::new(None));
        Ok(self.streams(&id, exec.stdio))
    }
    async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        if process.exec_id == "missing" {
            return Err(refusal(ErrorKind::NotFound, "no such command"));
        }
        let gate = self.gate.lock().expect("lock").take();
        if let Some(gate) = gate {
            let _ = gate.await;
        }
        if *self.hasty.lock().expect("lock") {
            self.end(process, 3);
            // The watch hears of the end while the start is still unanswered.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        Ok(7)
    }
    async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        self.signals.lock().expect("lock").push((process.clone(), signal, all));
        if signal == 9 && !*self.undead.lock().expect("lock") {
            self.end(process, 137);
        }
        Ok(())
    }
    async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError> {
        let exit = self.exits.lock().expect("lock").get(process).map(watch::Sender::subscribe);
        let mut exit = exit.ok_or_else(|| refusal(ErrorKind::NotFound, "nobody"))?;
        let ended = exit.wait_for(Option::is_some).await.map_err(|_| refusal(ErrorKind::NotFound, "deleted"))?;
        Ok(ended.expect("some"))
    }
    async fn resize(&self, _: &ProcessId, _: u16, _: u16) -> Result<(), PodError> {
        Ok(())
    }
    async fn delete(&self, process: &ProcessId) -> Result<Exit, PodError> {
        self.far_ends.lock().expect("lock").remove(process);
        let exit = self.exits.lock().expect("lock").remove(process);
        let exit = exit.ok_or_else(|| refusal(ErrorKind::NotFound, "nobody"))?;
        let exit = *exit.borrow();
        Ok(exit.unwrap_or(Exit { status: 137, at: SystemTime::now(), oom_killed: false }))
    }
    async fn pids(&self, _: &str) -> Result<Vec<u32>, PodError> {
        Ok(vec![11, 12])
    }
    async fn stats(&self, _: &str) -> Result<StatsResponse, PodError> {
        Ok(StatsResponse { memory_current: 99, ..StatsResponse::default() })
    }
    async fn next_oom(&self) -> Result<String, PodError> {
        std::future::pending().await
    }
    async fn update(&self, _: &str, _: LinuxResources) -> Result<(), PodError> {
        Ok(())
    }
    async fn pause(&self, _: &str) -> Result<(), PodError> {
        Ok(())
    }
    async fn resume(&self, _: &str) -> Result<(), PodError> {
        Ok(())
    }
    async fn gone(&self) -> String {
        let gone = self.gone.notified();
        gone.await;
        // Whoever else waits is told too.
        self.gone.notify_one();
        "the test ended it".into()
    }
    async fn stop(&self) -> Result<(), PodError> {
        self.stopped.send_replace(true);
        self.gone.notify_one();
        self.exits.lock().expect("lock").values().for_each(|exit| {
            let death = Exit { status: 137, at: SystemTime::now(), oom_killed: false };
            exit.send_if_modified(|exit| exit.replace(death).is_none());
        });
        Ok(())
    }
    fn vmm_pid(&self) -> u32 {
        VMM_PID
    }
}

/// Topic and message of each event.
pub type Topics = Vec<(String, Vec<u8>)>;

#[derive(Clone, Default)]
pub struct Heard {
    pub events: Arc<Mutex<Topics>>,
    pub news: Arc<Notify>,
}

#[async_trait]
impl Events for Heard {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.envelope.namespace, "ns");
        let envelope = request.envelope.unwrap_or_default();
        self.events.lock().expect("lock").push((envelope.topic, envelope.event.value.clone()));
        self.news.notify_one();
        Ok(Empty::new())
    }
}

pub struct Shim {
    pub dir: tempfile::TempDir,
    pub pod: Arc<FakePod>,
    pub heard: Heard,
    pub service: TaskService,
    pub task: TaskClient,
    pub sandbox: SandboxClient,
    pub _servers: (Server, Server),
}

impl Shim {
    pub async fn start() -> Self {
        let pod = Arc::new(FakePod::default());
        let front: Arc<dyn PodFront> = Arc::clone(&pod) as _;
        Self::start_with(pod, async { Ok(front) }).await
    }

    pub async fn start_with(pod: Arc<FakePod>, launch: impl Future<Output = Launched> + Send + 'static) -> Self {
        Self::serve(pod, |state_dir| Machine::boot(launch, state_dir)).await
    }

    /// A shim whose machine waits to be asked for; the requests come out of the channel.
    pub async fn start_awaited() -> (Self, mpsc::UnboundedReceiver<PodRequest>) {
        let pod = Arc::new(FakePod::default());
        let front: Arc<dyn PodFront> = Arc::clone(&pod) as _;
        Self::start_awaited_with(pod, async { Ok(front) }).await
    }

    pub async fn start_awaited_with(
        pod: Arc<FakePod>,
        launch: impl Future<Output = Launched> + Send + 'static,
    ) -> (Self, mpsc::UnboundedReceiver<PodRequest>) {
        let (asked, requests) = mpsc::unbounded_channel();
        let launch: Launch = Box::new(move |request| {
            asked.send(request).expect("the test looks");
            Box::pin(launch)
        });
        (Self::serve(pod, |state_dir| Machine::awaited(launch, state_dir)).await, requests)
    }

    async fn serve(pod: Arc<FakePod>, machine: impl FnOnce(PathBuf) -> Machine) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("config.json"), CONFIG).expect("written");
        let heard = Heard::default();
        let events: Arc<dyn Events + Send + Sync> = Arc::new(heard.clone());
        let events_path = dir.path().join("events.sock");
        let containerd = serve(&events_path, create_events(events)).await;
        let publisher = Publisher::start(Some(events_path), "ns".into());
        let containers = Containers::new(machine(dir.path().join("state")), publisher);
        tokio::spawn(Arc::clone(&containers).watch_machine());
        let socket = dir.path().join("shim.sock");
        let group = Group { id: "c".into(), state_dir: dir.path().join("state"), socket: socket.clone() };
        let service = TaskService::new(Arc::clone(&containers), group);
        let sandbox = SandboxService::new(containers, service.ending().clone());
        let mut services = service.handlers();
        services.extend(sandbox.handlers());
        let server = serve(&socket, services).await;
        let client = connect(&socket).await;
        let (task, sandbox) = (TaskClient::new(client.clone()), SandboxClient::new(client));
        Self { dir, pod, heard, service, task, sandbox, _servers: (containerd, server) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("shim.sock")
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("fifo");
        path.display().to_string()
    }

    pub fn create_request(&self, id: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.into(),
            bundle: self.dir.path().display().to_string(),
            ..CreateTaskRequest::default()
        }
    }

    pub async fn run(&self, id: &str) {
        self.task.create(quick(), &self.create_request(id)).await.expect("created");
        self.task.start(quick(), &start(id, "")).await.expect("started");
    }

    /// A running container, and the reader of its output.
    pub async fn run_with_output(&self, id: &str) -> File {
        let request = CreateTaskRequest { stdout: self.fifo("out"), ..self.create_request(id) };
        let reader = File::options().read(true).write(true).open(&request.stdout).expect("reader");
        self.task.create(quick(), &request).await.expect("created");
        self.task.start(quick(), &start(id, "")).await.expect("started");
        reader
    }

    pub async fn add_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<Empty> {
        let spec = Any { value: br#"{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}}"#.to_vec(), ..Any::default() };
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            spec: Some(spec).into(),
            ..ExecProcessRequest::default()
        };
        self.task.exec(quick(), &request).await
    }

    pub async fn state(&self, id: &str, exec_id: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec_id.into(), ..StateRequest::default() };
        self.task.state(quick(), &request).await
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let request = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.task.wait(quick(), &request).await.expect("waited").exit_status
    }

    pub async fn topics(&self, count: usize) -> Vec<String> {
        timeout(Duration::from_secs(10), async {
            loop {
                let topics: Vec<_> = self.heard.events.lock().expect("lock").iter().map(|(t, _)| t.clone()).collect();
                if topics.len() >= count {
                    return topics;
                }
                self.heard.news.notified().await;
            }
        })
        .await
        .expect("in time")
    }
}

pub const CONFIG: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
    "process":{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0},"consoleSize":{"height":24,"width":80}}}"#;

pub async fn serve(path: &Path, services: std::collections::HashMap<String, ttrpc::r#async::Service>) -> Server {
    let mut server =
        Server::new().bind(&format!("unix://{}", path.display())).expect("bound").register_service(services);
    server.start().await.expect("started");
    server
}

pub async fn connect(path: &Path) -> Client {
    Client::connect(&format!("unix://{}", path.display())).await.expect("connected")
}

pub fn quick() -> context::Context {
    context::with_duration(Duration::from_secs(10))
}

pub fn process(container_id: &str, exec_id: &str) -> ProcessId {
    ProcessId { container_id: container_id.into(), exec_id: exec_id.into() }
}

pub fn start(id: &str, exec_id: &str) -> StartRequest {
    StartRequest { id: id.into(), exec_id: exec_id.into(), ..StartRequest::default() }
}

pub fn kill(id: &str, signal: u32) -> KillRequest {
    KillRequest { id: id.into(), signal, ..KillRequest::default() }
}

pub fn delete(id: &str, exec_id: &str) -> DeleteRequest {
    DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..DeleteRequest::default() }
}

pub fn code<T: std::fmt::Debug>(outcome: ttrpc::Result<T>) -> Code {
    match outcome.expect_err("refused") {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other:?}"),
    }
}
