//! The handle to the table of containers: each method sends one message to the task that owns it ([`crate::ledger`]) and waits for
//! the answer. A caller that stops waiting changes nothing: what was asked is done all the same.

use std::sync::Arc;

use agent_protocol::messages::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::process::Signal;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    launch::{Launcher, StdioRequest},
    ledger::{Event, Ledger},
    oom::{Kills, OomBoard},
    process::Exit,
    refusal::Refusal,
    runtime::{Container, Size},
};

/// Most messages that wait for the table's task; senders wait beyond it.
const QUEUE_MAX: usize = 64;

/// Which process: a container's first (`exec` empty) or an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessName {
    /// Id of the container.
    pub container: String,
    /// Id of the exec, or empty.
    pub exec: String,
}

impl std::fmt::Display for ProcessName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exec.as_str() {
            "" => write!(f, "container {:?}", self.container),
            exec => write!(f, "exec {exec:?} of container {:?}", self.container),
        }
    }
}

/// In whose pid namespace a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidsOf {
    /// One of its own.
    Itself,
    /// That of a container, which must not have ended.
    Container(String),
    /// One of the pod's that is no container's.
    Pod,
}

/// What a deleted process was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The pid it had; 0 if it never had one.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Handle to the table; clones share it.
#[derive(Clone)]
pub struct Containers {
    events: mpsc::Sender<Event>,
    oom: OomBoard,
}

impl Containers {
    /// Starts the task that owns the table. Call inside the runtime.
    pub fn start(launcher: Launcher, owns_machine: bool) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let oom = OomBoard::default();
        tokio::spawn(Ledger::new(launcher, owns_machine, oom.clone(), sender.clone()).run(receiver));
        Self { events: sender, oom }
    }

    /// Makes a container and answers with the pid of its first process.
    pub async fn create(
        &self,
        id: String,
        spec: Box<Spec>,
        pids_of: PidsOf,
        stdio: StdioRequest,
    ) -> Result<u32, Refusal> {
        self.ask(|reply| Event::Create { id, spec, pids_of, stdio, reply }).await
    }

    /// Registers an exec.
    pub async fn add_exec(&self, name: ProcessName, process: Box<Process>, stdio: StdioRequest) -> Result<(), Refusal> {
        self.ask(|reply| Event::AddExec { name, process, stdio, reply }).await
    }

    /// Opens a container's gate or runs an exec; answers with the pid.
    pub async fn start_process(&self, name: ProcessName) -> Result<u32, Refusal> {
        self.ask(|reply| Event::Start { name, reply }).await
    }

    /// Signals one process, or with `all` every process of the container.
    pub async fn signal(&self, name: ProcessName, signal: Signal, all: bool) -> Result<(), Refusal> {
        self.ask(|reply| Event::Signal { name, signal, all, reply }).await
    }

    /// Answers when the process has ended.
    pub async fn wait(&self, name: ProcessName) -> Result<Exit, Refusal> {
        self.ask(|reply| Event::Wait { name, reply }).await
    }

    /// Changes the size of a process's terminal.
    pub async fn resize(&self, name: ProcessName, size: Size) -> Result<(), Refusal> {
        self.ask(|reply| Event::Resize { name, size, reply }).await
    }

    /// Forgets an ended exec, or a container that has ended or never started, with all that it holds.
    pub async fn delete(&self, name: ProcessName) -> Result<Deleted, Refusal> {
        self.ask(|reply| Event::Delete { name, reply }).await
    }

    /// Processes of a container.
    pub async fn pids(&self, id: String) -> Result<Vec<u32>, Refusal> {
        self.with(id, |container| container.pids()).await
    }

    /// Counters of a container.
    pub async fn stats(&self, id: String) -> Result<StatsResponse, Refusal> {
        self.with(id, |container| container.stats()).await
    }

    /// Waits until the OOM killer has ended a process of some container that was not told of yet.
    pub async fn next_oom(&self) -> Kills {
        self.oom.next().await
    }

    /// New limits for a container.
    pub async fn update(&self, id: String, resources: LinuxResources) -> Result<(), Refusal> {
        self.with(id, move |container| container.update(&resources)).await
    }

    /// Stops every process of a container where it is (`true`), or lets them go on.
    pub async fn freeze(&self, id: String, frozen: bool) -> Result<(), Refusal> {
        self.with(id.clone(), move |container| container.freeze(frozen)).await?;
        self.ask(|reply| Event::Frozen { id, frozen, reply }).await
    }

    /// Kills everything and answers when nothing lives any more. Nothing can be made after it.
    pub async fn end(&self) -> Result<(), Refusal> {
        self.ask(|reply| Event::EndAll { reply }).await
    }

    /// Does something that may block with a container, beside the table's task.
    async fn with<T: Send + 'static>(
        &self,
        id: String,
        act: impl FnOnce(&dyn Container) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let container: Arc<dyn Container> = self.ask(|reply| Event::Find { id, reply }).await?;
        let done = spawn_blocking(move || act(&*container)).await;
        done.unwrap_or_else(|error| Err(Refusal::failed("reach the container", error)))
    }

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> Event) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let gone = || Refusal::failed("reach the table of containers", "the agent is ending");
        self.events.send(event(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
