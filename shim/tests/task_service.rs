//! The Task service over a real socket with real clients, in front of a pod that is not there.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use agent_protocol::messages::StatsResponse;
use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest, Empty,
        ExecProcessRequest, ForwardRequest, KillRequest, PauseRequest, PidsRequest, ResumeRequest, ShutdownRequest,
        StartRequest, StateRequest, StateResponse, StatsRequest, Status, WaitRequest,
    },
    events::task::TaskExit,
    shim_async::{Events, TaskClient, create_events},
};
use oci_spec::runtime::LinuxResources;
use pod::{ContainerSpec, ErrorKind, ExecSpec, Exit, PodError, ProcessId, ProcessStreams, StdioWanted};
use protobuf::{Message, well_known_types::any::Any};
use shim::{
    containers::Containers,
    group::Group,
    machine::{Machine, PodFront},
    publisher::Publisher,
    refusal::Refusal,
    task::TaskService,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use ttrpc::{
    Code,
    r#async::{Client, Server, TtrpcContext},
    context,
};

const VMM_PID: u32 = 4242;

/// A pod whose processes end when a test says so.
#[derive(Default)]
struct FakePod {
    exits: Mutex<BTreeMap<ProcessId, watch::Sender<Option<Exit>>>>,
    far_ends: Mutex<BTreeMap<ProcessId, ProcessStreams>>,
    /// Containers that end before their start is answered.
    hasty: Mutex<bool>,
    /// What `start` waits for, if anything.
    gate: Mutex<Option<oneshot::Receiver<()>>>,
    signals: Mutex<Vec<(ProcessId, u32, bool)>>,
    gone: Notify,
    stopped: watch::Sender<bool>,
}

impl FakePod {
    fn streams(&self, id: &ProcessId, wanted: StdioWanted) -> ProcessStreams {
        let pair = |wanted: bool| wanted.then(|| UnixStream::pair().expect("pair")).unzip();
        let (stdin, far_stdin) = pair(wanted.stdin);
        let (stdout, far_stdout) = pair(wanted.stdout);
        let (stderr, far_stderr) = pair(wanted.stderr);
        let far = ProcessStreams { stdin: far_stdin, stdout: far_stdout, stderr: far_stderr };
        self.far_ends.lock().expect("lock").insert(id.clone(), far);
        ProcessStreams { stdin, stdout, stderr }
    }

    fn end(&self, id: &ProcessId, status: u32) {
        self.far_ends.lock().expect("lock").remove(id);
        let exit = Exit { status, at: SystemTime::now(), oom_killed: false };
        self.exits.lock().expect("lock").get(id).expect("process").send_replace(Some(exit));
    }

    fn far_stdout(&self, id: &ProcessId) -> UnixStream {
        let mut far = self.far_ends.lock().expect("lock");
        far.get_mut(id).expect("process").stdout.take().expect("stdout")
    }
}

fn refusal(kind: ErrorKind, message: &str) -> PodError {
    PodError { kind, message: message.into(), source: None }
}

#[async_trait]
impl PodFront for FakePod {
    async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        let id = process(&container.id, "");
        self.exits.lock().expect("lock").insert(id.clone(), watch::Sender::new(None));
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
        if signal == 9 {
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
        self.gone.notified().await;
        "the test ended it".into()
    }
    async fn stop(&self) -> Result<(), PodError> {
        self.stopped.send_replace(true);
        Ok(())
    }
    fn vmm_pid(&self) -> u32 {
        VMM_PID
    }
}

/// Topic and message of each event.
type Topics = Vec<(String, Vec<u8>)>;

#[derive(Clone, Default)]
struct Heard {
    events: Arc<Mutex<Topics>>,
    news: Arc<Notify>,
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

struct Shim {
    dir: tempfile::TempDir,
    pod: Arc<FakePod>,
    heard: Heard,
    service: TaskService,
    task: TaskClient,
    _servers: (Server, Server),
}

impl Shim {
    async fn start() -> Self {
        let pod = Arc::new(FakePod::default());
        let front: Arc<dyn PodFront> = Arc::clone(&pod) as _;
        Self::start_with(pod, async { Ok(front) }).await
    }

    async fn start_with(
        pod: Arc<FakePod>,
        launch: impl Future<Output = Result<Arc<dyn PodFront>, Refusal>> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("config.json"), CONFIG).expect("written");
        let heard = Heard::default();
        let events: Arc<dyn Events + Send + Sync> = Arc::new(heard.clone());
        let events_path = dir.path().join("events.sock");
        let containerd = serve(&events_path, create_events(events)).await;
        let publisher = Publisher::start(Some(events_path), "ns".into());
        let machine = Machine::boot(launch, dir.path().join("state"));
        let containers = Containers::new(machine, publisher);
        tokio::spawn(Arc::clone(&containers).watch_machine());
        let socket = dir.path().join("shim.sock");
        let group = Group { id: "c".into(), state_dir: dir.path().join("state"), socket: socket.clone() };
        let service = TaskService::new(containers, group);
        let server = serve(&socket, service.handlers()).await;
        let task = TaskClient::new(connect(&socket).await);
        Self { dir, pod, heard, service, task, _servers: (containerd, server) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("shim.sock")
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("fifo");
        path.display().to_string()
    }

    fn create_request(&self, id: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.into(),
            bundle: self.dir.path().display().to_string(),
            ..CreateTaskRequest::default()
        }
    }

    async fn run(&self, id: &str) {
        self.task.create(quick(), &self.create_request(id)).await.expect("created");
        self.task.start(quick(), &start(id, "")).await.expect("started");
    }

    /// A running container, and the reader of its output.
    async fn run_with_output(&self, id: &str) -> File {
        let request = CreateTaskRequest { stdout: self.fifo("out"), ..self.create_request(id) };
        let reader = File::options().read(true).write(true).open(&request.stdout).expect("reader");
        self.task.create(quick(), &request).await.expect("created");
        self.task.start(quick(), &start(id, "")).await.expect("started");
        reader
    }

    async fn add_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<Empty> {
        let spec = Any { value: br#"{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}}"#.to_vec(), ..Any::default() };
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            spec: Some(spec).into(),
            ..ExecProcessRequest::default()
        };
        self.task.exec(quick(), &request).await
    }

    async fn state(&self, id: &str, exec_id: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec_id.into(), ..StateRequest::default() };
        self.task.state(quick(), &request).await
    }

    async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let request = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.task.wait(quick(), &request).await.expect("waited").exit_status
    }

    async fn topics(&self, count: usize) -> Vec<String> {
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

const CONFIG: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},
    "process":{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0},"consoleSize":{"height":24,"width":80}}}"#;

async fn serve(path: &Path, services: std::collections::HashMap<String, ttrpc::r#async::Service>) -> Server {
    let mut server =
        Server::new().bind(&format!("unix://{}", path.display())).expect("bound").register_service(services);
    server.start().await.expect("started");
    server
}

async fn connect(path: &Path) -> Client {
    Client::connect(&format!("unix://{}", path.display())).await.expect("connected")
}

fn quick() -> context::Context {
    context::with_duration(Duration::from_secs(10))
}

fn process(container_id: &str, exec_id: &str) -> ProcessId {
    ProcessId { container_id: container_id.into(), exec_id: exec_id.into() }
}

fn start(id: &str, exec_id: &str) -> StartRequest {
    StartRequest { id: id.into(), exec_id: exec_id.into(), ..StartRequest::default() }
}

fn kill(id: &str, signal: u32) -> KillRequest {
    KillRequest { id: id.into(), signal, ..KillRequest::default() }
}

fn delete(id: &str, exec_id: &str) -> DeleteRequest {
    DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..DeleteRequest::default() }
}

fn code<T: std::fmt::Debug>(outcome: ttrpc::Result<T>) -> Code {
    match outcome.expect_err("refused") {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_container_lives_and_containerd_hears_of_it_in_order() {
    let shim = Shim::start().await;
    shim.run("c").await;
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
    shim.pod.end(&process("c", ""), 5);
    assert_eq!(shim.wait("c", "").await, 5);
    let state = shim.state("c", "").await.expect("state");
    assert_eq!((state.status.enum_value(), state.exit_status, state.pid), (Ok(Status::STOPPED), 5, VMM_PID));
    let deleted = shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    assert_eq!((deleted.exit_status, deleted.pid), (5, VMM_PID));
    assert_eq!(shim.topics(4).await, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert_eq!(code(shim.state("c", "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn a_container_that_ends_before_its_start_is_answered_is_still_told_in_order() {
    let shim = Shim::start().await;
    *shim.pod.hasty.lock().expect("lock") = true;
    shim.run("c").await;
    assert_eq!(shim.wait("c", "").await, 3);
    assert_eq!(shim.topics(3).await, ["/tasks/create", "/tasks/start", "/tasks/exit"]);
}

#[tokio::test]
async fn both_names_of_the_service_reach_the_same_containers() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let client = connect(&shim.socket()).await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let state = StateRequest { id: "c".into(), ..StateRequest::default() };
        let request = ttrpc::Request {
            service: service.into(),
            method: "State".into(),
            payload: state.write_to_bytes().expect("bytes"),
            ..ttrpc::Request::default()
        };
        let response = client.request(request).await.expect("answered");
        let state = StateResponse::parse_from_bytes(&response.payload).expect("state");
        assert_eq!((state.id.as_str(), state.pid), ("c", VMM_PID), "{service}");
    }
}

#[tokio::test]
async fn an_exec_lives_beside_its_container() {
    let shim = Shim::start().await;
    assert_eq!(code(shim.add_exec("c", "e").await), Code::NOT_FOUND);
    shim.task.create(quick(), &shim.create_request("c")).await.expect("created");
    assert_eq!(code(shim.add_exec("c", "e").await), Code::FAILED_PRECONDITION);
    shim.task.start(quick(), &start("c", "")).await.expect("started");
    shim.add_exec("c", "e").await.expect("added");
    assert_eq!(code(shim.add_exec("c", "e").await), Code::ALREADY_EXISTS);
    shim.task.start(quick(), &start("c", "e")).await.expect("started");
    shim.pod.end(&process("c", "e"), 2);
    assert_eq!(shim.wait("c", "e").await, 2);
    shim.task.delete(quick(), &delete("c", "e")).await.expect("deleted");
    let topics = shim.topics(5).await;
    assert_eq!(
        topics[2..],
        ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"],
        "an exec's end deletes no task"
    );
    let exit = TaskExit::parse_from_bytes(&shim.heard.events.lock().expect("lock")[4].1).expect("parsed");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c", "e"));
}

#[tokio::test]
async fn an_exec_that_cannot_run_fails_alone_and_can_be_deleted() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.add_exec("c", "missing").await.expect("added");
    assert_eq!(code(shim.task.start(quick(), &start("c", "missing")).await), Code::NOT_FOUND);
    shim.task.delete(quick(), &delete("c", "missing")).await.expect("deleted");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
}

#[tokio::test]
async fn signals_pass_while_another_start_hangs_and_fail_once_it_is_over() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let (_open, gate) = oneshot::channel();
    *shim.pod.gate.lock().expect("lock") = Some(gate);
    shim.task.create(quick(), &shim.create_request("slow")).await.expect("created");
    let hanging = TaskClient::new(connect(&shim.socket()).await);
    let hanging = tokio::spawn(async move { hanging.start(quick(), &start("slow", "")).await });
    shim.task.kill(quick(), &kill("c", 15)).await.expect("a signal waits for nobody");
    shim.task.kill(quick(), &kill("c", 9)).await.expect("killed");
    assert_eq!(shim.wait("c", "").await, 137);
    assert_eq!(code(shim.task.kill(quick(), &kill("c", 9)).await), Code::NOT_FOUND);
    assert_eq!(code(shim.task.kill(quick(), &kill("nobody", 9)).await), Code::NOT_FOUND);
    hanging.abort();
}

#[tokio::test]
async fn a_request_runs_to_its_end_when_containerd_hangs_up() {
    let shim = Shim::start().await;
    shim.task.create(quick(), &shim.create_request("c")).await.expect("created");
    let (open, gate) = oneshot::channel();
    *shim.pod.gate.lock().expect("lock") = Some(gate);
    let client = TaskClient::new(connect(&shim.socket()).await);
    let call = tokio::spawn(async move { client.start(quick(), &start("c", "")).await });
    while shim.pod.gate.lock().expect("lock").is_some() {
        tokio::task::yield_now().await;
    }
    call.abort();
    let _ = call.await;
    open.send(()).expect("the start still waits");
    assert_eq!(shim.topics(2).await, ["/tasks/create", "/tasks/start"]);
}

#[tokio::test]
async fn what_runs_is_not_deleted_and_names_are_taken_once() {
    let shim = Shim::start().await;
    shim.run("c").await;
    assert_eq!(code(shim.task.delete(quick(), &delete("c", "")).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(shim.task.create(quick(), &shim.create_request("c")).await), Code::ALREADY_EXISTS);
    assert_eq!(code(shim.task.start(quick(), &start("c", "")).await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted_or_killed() {
    let shim = Shim::start().await;
    shim.task.create(quick(), &shim.create_request("a")).await.expect("created");
    assert_eq!(shim.task.delete(quick(), &delete("a", "")).await.expect("deleted").exit_status, 137);
    shim.task.create(quick(), &shim.create_request("b")).await.expect("created");
    shim.task.kill(quick(), &kill("b", 9)).await.expect("killed");
    assert_eq!(shim.wait("b", "").await, 137);
    shim.task.delete(quick(), &delete("b", "")).await.expect("deleted");
}

#[tokio::test]
async fn pausing_shows_in_the_state_and_in_the_events() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.task.pause(quick(), &PauseRequest { id: "c".into(), ..PauseRequest::default() }).await.expect("paused");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::PAUSED));
    shim.task.resume(quick(), &ResumeRequest { id: "c".into(), ..ResumeRequest::default() }).await.expect("resumed");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
    assert_eq!(shim.topics(4).await[2..], ["/tasks/paused", "/tasks/resumed"]);
}

#[tokio::test]
async fn figures_pids_and_connect_answer_for_what_is_there() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let stats =
        shim.task.stats(quick(), &StatsRequest { id: "c".into(), ..StatsRequest::default() }).await.expect("stats");
    assert_eq!(stats.stats.type_url, "io.containerd.cgroups.v2.Metrics");
    let pids = shim.task.pids(quick(), &PidsRequest { id: "c".into(), ..PidsRequest::default() }).await.expect("pids");
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [11, 12]);
    let request = ConnectRequest { id: "c".into(), ..ConnectRequest::default() };
    let connected = shim.task.connect(quick(), &request).await.expect("connected");
    assert_eq!((connected.shim_pid, connected.task_pid), (std::process::id(), VMM_PID));
    let request = ConnectRequest { id: "nobody".into(), ..ConnectRequest::default() };
    assert_eq!(code(shim.task.connect(quick(), &request).await), Code::NOT_FOUND);
    let request = CheckpointTaskRequest { id: "c".into(), ..CheckpointTaskRequest::default() };
    assert_eq!(code(shim.task.checkpoint(quick(), &request).await), Code::UNIMPLEMENTED);
}

fn ten_bytes(mut reader: &File) -> [u8; 10] {
    let mut bytes = [0; 10];
    reader.read_exact(&mut bytes).expect("read");
    bytes
}

#[tokio::test]
async fn delete_waits_until_the_output_is_where_it_belongs() {
    let shim = Shim::start().await;
    let reader = shim.run_with_output("c").await;
    let id = process("c", "");
    shim.pod.far_stdout(&id).write_all(b"last words").expect("written");
    shim.pod.end(&id, 0);
    assert_eq!(shim.wait("c", "").await, 0);
    shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    assert_eq!(&ten_bytes(&reader), b"last words");
}

#[tokio::test]
async fn a_second_delete_waits_for_the_output_too() {
    let shim = Shim::start().await;
    let reader = shim.run_with_output("c").await;
    let id = process("c", "");
    let mut output = shim.pod.far_stdout(&id);
    shim.pod.end(&id, 4);
    assert_eq!(shim.wait("c", "").await, 4);
    let mut deletes = Vec::new();
    for _ in 0..2 {
        let client = TaskClient::new(connect(&shim.socket()).await);
        deletes.push(tokio::spawn(async move { client.delete(quick(), &delete("c", "")).await }));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(deletes.iter().all(|delete| !delete.is_finished()), "told before the output was there");
    output.write_all(b"last words").expect("written");
    drop(output);
    for delete in deletes {
        assert_eq!(delete.await.expect("ran").expect("deleted").exit_status, 4);
    }
    assert_eq!(&ten_bytes(&reader), b"last words");
}

#[tokio::test]
async fn close_io_ends_the_input_after_what_is_in_it() {
    let shim = Shim::start().await;
    let request = CreateTaskRequest { stdin: shim.fifo("in"), ..shim.create_request("c") };
    shim.task.create(quick(), &request).await.expect("created");
    shim.task.start(quick(), &start("c", "")).await.expect("started");
    let mut far = {
        let mut far = shim.pod.far_ends.lock().expect("lock");
        far.get_mut(&process("c", "")).expect("process").stdin.take().expect("stdin")
    };
    std::fs::write(&request.stdin, "all of it").expect("written");
    let close = CloseIORequest { id: "c".into(), stdin: true, ..CloseIORequest::default() };
    shim.task.close_io(quick(), &close).await.expect("closed");
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        far.read_to_string(&mut text).map(|_| text)
    });
    let text = timeout(Duration::from_secs(10), text).await.expect("in time").expect("thread").expect("read");
    assert_eq!(text, "all of it");
}

#[tokio::test]
async fn shutdown_is_followed_after_the_last_container_only() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let shutdown = ShutdownRequest { id: "c".into(), now: true, ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(!*shim.pod.stopped.borrow() && shim.socket().exists());
    shim.task.kill(quick(), &kill("c", 9)).await.expect("killed");
    assert_eq!(shim.wait("c", "").await, 137);
    shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
    assert!(*shim.pod.stopped.borrow() && !shim.socket().exists());
}

#[tokio::test]
async fn an_exec_that_was_never_started_ends_with_the_machine() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.add_exec("c", "e").await.expect("added");
    let waiting = shim.wait("c", "e");
    shim.pod.gone.notify_one();
    assert_eq!(timeout(Duration::from_secs(10), waiting).await.expect("released"), 137);
}

#[tokio::test]
async fn a_machine_that_does_not_boot_says_why_and_leaves_no_container() {
    let sentence = "the guest kernel panicked";
    let failing = async move { Err(Refusal::new(ErrorKind::Unavailable, sentence)) };
    let shim = Shim::start_with(Arc::default(), failing).await;
    let outcome = shim.task.create(quick(), &shim.create_request("c")).await;
    let ttrpc::Error::RpcStatus(status) = outcome.expect_err("refused") else { panic!("a status") };
    assert_eq!((status.code(), status.message()), (Code::UNAVAILABLE, sentence));
    assert_eq!(code(shim.task.delete(quick(), &delete("c", "")).await), Code::NOT_FOUND);
    assert!(shim.topics(0).await.is_empty());
}

#[tokio::test]
async fn a_pod_that_still_boots_can_be_shut_down() {
    let shim = Shim::start_with(Arc::default(), std::future::pending()).await;
    let creating = TaskClient::new(connect(&shim.socket()).await);
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
    assert_eq!(code(creating.create(quick(), &shim.create_request("c")).await), Code::UNAVAILABLE);
}

#[tokio::test]
async fn a_boot_under_way_is_stopped_like_a_pod_that_is_up() {
    let pod = Arc::new(FakePod::default());
    let front: Arc<dyn PodFront> = Arc::clone(&pod) as _;
    let slow = async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(front)
    };
    let shim = Shim::start_with(pod, slow).await;
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(*shim.pod.stopped.borrow(), "a boot that is dropped goes on taking what nobody undoes");
}

#[tokio::test]
async fn a_second_shutdown_leaves_the_socket_of_the_next_daemon_alone() {
    let shim = Shim::start().await;
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(!shim.socket().exists());
    let _next = std::os::unix::net::UnixListener::bind(shim.socket()).expect("the name is free");
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(shim.socket().exists(), "the next daemon cannot be reached any more");
}

#[tokio::test]
async fn bad_input_is_an_invalid_argument_with_its_object_named() {
    let shim = Shim::start().await;
    let request = CreateTaskRequest { id: "../c".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    let request = CreateTaskRequest { bundle: "/nowhere".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    let request = CreateTaskRequest { stdout: "/nowhere/fifo".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    std::fs::write(shim.dir.path().join("config.json"), "{ broken").expect("written");
    assert_eq!(code(shim.task.create(quick(), &shim.create_request("c")).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(shim.state("c", "").await), Code::NOT_FOUND, "nothing is left of a refused container");
    let request = ExecProcessRequest { id: "c".into(), exec_id: "e".into(), ..ExecProcessRequest::default() };
    assert_eq!(code(shim.task.exec(quick(), &request).await), Code::INVALID_ARGUMENT);
}
