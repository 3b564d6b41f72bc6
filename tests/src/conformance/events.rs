//! A listener in containerd's place: it serves `containerd.services.events.ttrpc.v1.Events` and keeps what shims tell it, in order.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use containerd_shim_protos::{
    Events,
    api::{Empty, ForwardRequest},
    create_events,
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    },
    protobuf::MessageFull,
    ttrpc::{self, Server, TtrpcContext},
};

/// Longest wait for one event.
const DEADLINE: Duration = Duration::from_secs(30);

/// One event, reduced to what every runtime must say alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// The topic without its `/tasks/`.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The exec, where the event is about one.
    pub exec: Option<String>,
    /// The exit status, where the event has one.
    pub status: Option<u32>,
    /// The pid, where the event has one.
    pub pid: Option<u32>,
    /// containerd's namespace, of the envelope.
    pub namespace: String,
    /// Where stdout goes, of a create event.
    pub io: Option<TaskIO>,
    /// The bundle, of a create event.
    pub bundle: String,
    /// Did the envelope carry a time?
    pub stamped: bool,
    /// Did an exit carry a time?
    pub exited_at: bool,
}

/// The short form, e.g. `exec-started e1` or `exit 137`.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.topic)?;
        self.exec.iter().try_for_each(|exec| write!(f, " {exec}"))?;
        self.status.iter().try_for_each(|status| write!(f, " {status}"))
    }
}

#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Told>>,
    news: Condvar,
}

impl Heard {
    fn events(&self) -> MutexGuard<'_, Vec<Told>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listener and all it has heard.
pub struct EventLog {
    path: PathBuf,
    server: Option<Server>,
    heard: Arc<Heard>,
}

impl EventLog {
    /// Listens at a path.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        let mut log = Self { path: path.to_owned(), server: None, heard: Arc::default() };
        log.listen_again()?;
        Ok(log)
    }

    /// Stops listening, as a containerd that ends: connections break, and the socket's name leads nowhere.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    /// Listens at the same path again; what was heard before is kept.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn listen_again(&mut self) -> anyhow::Result<()> {
        let service: Arc<dyn Events + Send + Sync> = Arc::new(Listener(Arc::clone(&self.heard)));
        let server = Server::new().bind(&format!("unix://{}", self.path.display()))?;
        let server = server.set_thread_count_default(2).set_thread_count_min(1).set_thread_count_max(4);
        let mut server = server.register_service(create_events(service));
        server.start().with_context(|| format!("cannot listen at {}", self.path.display()))?;
        self.server = Some(server);
        Ok(())
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that was heard of a container, in its order and short form.
    pub fn of(&self, container: &str) -> Vec<String> {
        self.heard.events().iter().filter(|told| told.container == container).map(Told::to_string).collect()
    }

    /// The first event of a container with this short form, now or soon.
    ///
    /// # Errors
    /// It does not come; the error says what came.
    pub fn wait_for(&self, container: &str, wanted: &str) -> anyhow::Result<Told> {
        let end = Instant::now() + DEADLINE;
        let mut events = self.heard.events();
        loop {
            let found = events.iter().find(|told| told.container == container && told.to_string() == wanted);
            if let Some(told) = found {
                return Ok(told.clone());
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                let all: Vec<_> = events.iter().map(Told::to_string).collect();
                bail!("no event {wanted:?} of {container} within {DEADLINE:?}, only {all:?}");
            };
            let waited = self.heard.news.wait_timeout(events, left);
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Listener(Arc<Heard>);

impl Events for Listener {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let told = read(&request).map_err(|error| ttrpc::Error::Others(format!("{error:#}")))?;
        self.0.events().push(told);
        self.0.news.notify_all();
        Ok(Empty::default())
    }
}

fn read(request: &ForwardRequest) -> anyhow::Result<Told> {
    let envelope = &request.envelope;
    let mut told = read_body(&envelope.topic, &envelope.event.type_url, &envelope.event.value)?;
    told.topic = envelope.topic.trim_start_matches("/tasks/").to_owned();
    told.namespace.clone_from(&envelope.namespace);
    told.stamped = envelope.timestamp.is_some();
    Ok(told)
}

fn read_body(topic: &str, type_url: &str, bytes: &[u8]) -> anyhow::Result<Told> {
    Ok(match topic {
        "/tasks/create" => {
            let m: TaskCreate = parse(type_url, bytes)?;
            let (pid, io) = (Some(m.pid), m.io.into_option());
            Told { container: m.container_id, pid, io, bundle: m.bundle, ..Told::default() }
        }
        "/tasks/start" => {
            let m: TaskStart = parse(type_url, bytes)?;
            Told { container: m.container_id, pid: Some(m.pid), ..Told::default() }
        }
        "/tasks/exec-added" => {
            let m: TaskExecAdded = parse(type_url, bytes)?;
            Told { container: m.container_id, exec: Some(m.exec_id), ..Told::default() }
        }
        "/tasks/exec-started" => {
            let m: TaskExecStarted = parse(type_url, bytes)?;
            Told { container: m.container_id, exec: Some(m.exec_id), pid: Some(m.pid), ..Told::default() }
        }
        "/tasks/exit" => {
            let m: TaskExit = parse(type_url, bytes)?;
            // The first process of a container has the container's name.
            let exec = Some(m.id).filter(|id| *id != m.container_id);
            let (status, pid) = (Some(m.exit_status), Some(m.pid));
            Told { container: m.container_id, exec, status, pid, exited_at: m.exited_at.is_some(), ..Told::default() }
        }
        "/tasks/delete" => {
            let m: TaskDelete = parse(type_url, bytes)?;
            let exec = Some(m.id).filter(|id| !id.is_empty() && *id != m.container_id);
            let (status, pid) = (Some(m.exit_status), Some(m.pid));
            Told { container: m.container_id, exec, status, pid, exited_at: m.exited_at.is_some(), ..Told::default() }
        }
        "/tasks/oom" => of_container(parse::<TaskOOM>(type_url, bytes)?.container_id),
        "/tasks/paused" => of_container(parse::<TaskPaused>(type_url, bytes)?.container_id),
        "/tasks/resumed" => of_container(parse::<TaskResumed>(type_url, bytes)?.container_id),
        other => bail!("an event of an unknown kind: {other}"),
    })
}

fn of_container(container: String) -> Told {
    Told { container, ..Told::default() }
}

// containerd finds the message by the type's bare name, so that must be the one of the topic.
fn parse<M: MessageFull>(type_url: &str, bytes: &[u8]) -> anyhow::Result<M> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    anyhow::ensure!(name == M::descriptor().full_name(), "a message {type_url}, not {}", M::descriptor().full_name());
    Ok(M::parse_from_bytes(bytes)?)
}
