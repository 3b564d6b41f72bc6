//! The handle to a running pod: asks the owner task for leave, acts, and tells the task how it went.
//!
//! Acts that change what exists (create, start, delete) run in tasks of their own, so that a caller who goes away leaves no half of one.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use agent_protocol::messages::{AddExecRequest, CreateContainerRequest, DescribeResponse, StatsResponse};
use oci_spec::runtime::LinuxResources;
use tokio::sync::{mpsc, oneshot};
use vmm_control::{Mark, Report};

use crate::{
    ContainerSpec, ErrorKind, ExecSpec, Exit, Installation, PodError, PodSpec, ProcessId, ProcessStreams,
    agent::{Agent, wire},
    console::Tail,
    container::{Event, State},
    ids::check_id,
    launch::{Launched, launch, mark},
    launcher::{Launcher, ProcessLauncher},
    machine::Machine,
    share::Share,
    streams::StreamDoor,
    task::{Order, Task},
    translate::{Translation, translate},
};

/// Exit status of a process that could not be started, as a shell tells a command that is not found.
const START_FAILED_STATUS: u32 = 127;
/// Exit status when the agent does not know its own process any more.
const LOST_STATUS: u32 = 255;
/// How long a container at its gate may take to die before it is deleted.
const GATE_KILL_DEADLINE: Duration = Duration::from_secs(10);
const SIGKILL: u32 = 9;

/// A handle to a running pod. When the last one is dropped, the pod is stopped.
#[derive(Clone)]
pub struct Pod {
    orders: mpsc::UnboundedSender<Order>,
    shared: Arc<Shared>,
}

/// What acts need; the state itself is the task's.
struct Shared {
    agent: Agent,
    machine: Machine,
    share: Share,
    streams: StreamDoor,
    console: Option<Tail>,
    marks: Vec<Mark>,
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod").field("vmm_pid", &self.vmm_pid()).finish_non_exhaustive()
    }
}

impl Pod {
    /// Boots the machine and greets the agent. On failure everything is undone before this returns.
    pub async fn launch(installation: &Installation, spec: PodSpec) -> Result<Self, PodError> {
        let begun = mark("files opened");
        let launcher = ProcessLauncher::new(installation)?;
        let mut pod = Self::launch_with(Arc::new(launcher), spec).await?;
        if let Some(shared) = Arc::get_mut(&mut pod.shared) {
            shared.marks.insert(0, begun);
        }
        Ok(pod)
    }

    pub(crate) async fn launch_with(launcher: Arc<dyn Launcher>, spec: PodSpec) -> Result<Self, PodError> {
        detached(async move { launch(launcher, spec).await.map(Self::own) }).await
    }

    /// Gives a launched pod its owner.
    fn own(launched: Launched) -> Self {
        let Launched { acquired, state, marks } = launched;
        let expect = "a launched pod has it";
        let machine = acquired.machine.clone().expect(expect);
        if let Some(server) = &acquired.server {
            machine.depend_on(Arc::clone(server));
        }
        let shared = Shared {
            agent: acquired.agent.clone().expect(expect),
            machine: machine.clone(),
            share: acquired.share.clone().expect(expect),
            streams: StreamDoor::new(state),
            console: acquired.console.clone(),
            marks,
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(inbox, machine, acquired).run());
        Self { orders, shared: Arc::new(shared) }
    }

    /// Makes a container; its first process waits at the gate. The pid is the guest's.
    pub async fn create_container(&self, container: ContainerSpec) -> Result<(u32, ProcessStreams), PodError> {
        let pod = self.clone();
        detached(async move {
            let translation = translate(&container)?;
            translation.warnings.iter().for_each(|warning| log::warn!("container {}: {warning}", container.id));
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
        let ((), (streams, stdio)) =
            tokio::try_join!(self.shared.share.add(translation.storage), self.shared.streams.open(container.stdio))?;
        let request = CreateContainerRequest {
            container_id: container.id.clone(),
            oci_spec,
            stdio: protobuf::MessageField::some(stdio),
            columns: columns.into(),
            rows: rows.into(),
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
                if !process.is_exec()
                    && let Err(left) = self.shared.share.remove(&process.container_id).await
                {
                    log::error!("{left}");
                }
                let _ = self.apply(process, Event::MakeFailed).await;
                Err(self.explain(error).await)
            }
        }
    }

    /// Opens the gate (container) or runs the exec. Returns the guest's pid.
    pub async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        let (pod, process) = (self.clone(), process.clone());
        detached(async move {
            pod.apply(&process, Event::StartAsked).await?;
            match pod.shared.agent.start(&process).await {
                Ok(pid) => {
                    pod.apply(&process, Event::Started).await?;
                    if process.is_exec() {
                        pod.begin_wait(&process);
                    }
                    Ok(pid)
                }
                Err(error) => {
                    // Told to have failed, it must not run after all, however late.
                    if error.kind == ErrorKind::DeadlineExceeded {
                        let killed = pod.shared.agent.signal(&process, SIGKILL, !process.is_exec()).await;
                        pod.given_up(&process, &killed).await;
                    }
                    let exit = Exit { status: START_FAILED_STATUS, at: SystemTime::now(), oom_killed: false };
                    let _ = pod.apply(&process, Event::StartFailed(exit)).await;
                    Err(pod.explain(error).await)
                }
            }
        })
        .await
    }

    /// Sends a signal to a process, or to all of its container. A guest that does not even answer to the SIGKILL of a container is given up, and
    /// the machine's end is the container's.
    pub async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        self.apply(process, Event::UseAsked).await?;
        let sent = self.shared.agent.signal(process, signal, all).await;
        if signal == SIGKILL && self.given_up(process, &sent).await {
            return Ok(());
        }
        self.explained(sent).await
    }

    /// Gives the machine up when its agent is silent where a container must end: nothing else could end it any more, and the pod would never go.
    /// An exec alone is not worth its pod.
    async fn given_up<T>(&self, process: &ProcessId, answer: &Result<T, PodError>) -> bool {
        let silent = matches!(answer, Err(error) if error.kind == ErrorKind::DeadlineExceeded);
        if !silent || process.is_exec() {
            return false;
        }
        self.shared.machine.condemn(format!("the agent in the guest is silent, and {process} has to end"));
        self.shared.machine.gone().await;
        true
    }

    /// Waits for the end of a process, or of the machine (status 137). Any number of callers.
    pub async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError> {
        self.ask(|reply| Order::Wait(process.clone(), reply)).await
    }

    /// Tells a terminal its size.
    pub async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError> {
        self.apply(process, Event::UseAsked).await?;
        let resized = self.shared.agent.resize(process, columns, rows).await;
        self.explained(resized).await
    }

    /// Forgets an ended process, or one that never ran, with all that it holds; a container at its gate is killed first.
    /// The exit of what never ran is 0.
    pub async fn delete(&self, process: &ProcessId) -> Result<Exit, PodError> {
        let (pod, process) = (self.clone(), process.clone());
        detached(async move {
            if !process.is_exec() && pod.look(&process).await? == State::Created {
                pod.end_at_gate(&process).await?;
            }
            let state = pod.apply(&process, Event::DeleteAsked).await?;
            let deleted = pod.give_back(&process).await;
            let event = if deleted.is_ok() { Event::Deleted } else { Event::DeleteFailed };
            let _ = pod.apply(&process, event).await;
            deleted?;
            let never_ran = Exit { status: 0, at: SystemTime::now(), oom_killed: false };
            Ok(match state {
                Some(State::Deleting(Some(exit))) => exit,
                _ => never_ran,
            })
        })
        .await
    }

    async fn end_at_gate(&self, process: &ProcessId) -> Result<(), PodError> {
        let killed = self.shared.agent.signal(process, SIGKILL, true).await;
        if !self.given_up(process, &killed).await {
            killed?;
        }
        let ended = tokio::time::timeout(GATE_KILL_DEADLINE, self.wait(process)).await;
        ended
            .map_err(|_| {
                PodError::new(ErrorKind::DeadlineExceeded, format!("{process} does not die of SIGKILL: stop the pod"))
            })?
            .map(drop)
    }

    /// Both sides give up what a process holds; a dead machine holds nothing.
    async fn give_back(&self, process: &ProcessId) -> Result<(), PodError> {
        let deleted = self.shared.agent.delete(process).await;
        // While others live, it can be tried again later.
        if !self.ask(Order::AnythingAlive).await? {
            self.given_up(process, &deleted).await;
        }
        match deleted {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(_) if self.shared.machine.gone_already().is_some() => {}
            Err(error) => return Err(error),
        }
        if process.is_exec() { Ok(()) } else { self.shared.share.remove(&process.container_id).await }
    }

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

    /// What the guest is: kernel, memory, CPUs, as it reads them itself.
    pub async fn describe(&self) -> Result<DescribeResponse, PodError> {
        let described = self.shared.agent.describe().await;
        self.explained(described).await
    }

    /// Boot marks and counters of the VMM.
    pub async fn report(&self) -> Result<Report, PodError> {
        self.shared.machine.report().await
    }

    /// Moments of the launch as the host's side saw them, on the same clock as the marks of [`Pod::report`].
    pub fn launch_marks(&self) -> &[Mark] {
        &self.shared.marks
    }

    /// Host pid of the VMM, what containerd shows as the task's pid.
    pub fn vmm_pid(&self) -> u32 {
        self.shared.machine.pid()
    }

    /// Resolves when the machine is gone, with a sentence that says how.
    pub async fn gone(&self) -> String {
        self.shared.machine.gone().await.to_string()
    }

    /// The last lines of the guest's console, fit to be shown.
    pub async fn console_tail(&self) -> String {
        match &self.shared.console {
            Some(console) => console.text().await,
            None => String::new(),
        }
    }

    /// Powers off (agent, then VMM stop, then SIGKILL, each with a deadline) and undoes every acquisition. Idempotent; lists what it could not undo.
    pub async fn stop(&self) -> Result<(), PodError> {
        self.ask(Order::Stop).await
    }

    async fn enter(&self, process: &ProcessId) -> Result<(), PodError> {
        self.ask(|reply| Order::Enter(process.clone(), reply)).await
    }

    async fn apply(&self, process: &ProcessId, event: Event) -> Result<Option<State>, PodError> {
        self.ask(|reply| Order::Apply(process.clone(), event, reply)).await
    }

    async fn look(&self, process: &ProcessId) -> Result<State, PodError> {
        self.ask(|reply| Order::Look(process.clone(), reply)).await
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T, PodError>>) -> Order) -> Result<T, PodError> {
        let (reply, answer) = oneshot::channel();
        let ended = || PodError::new(ErrorKind::Unavailable, "the pod's owner has ended");
        self.orders.send(order(reply)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Waits for a process's end in the background, without keeping the pod.
    fn begin_wait(&self, process: &ProcessId) {
        let (agent, machine) = (self.shared.agent.clone(), self.shared.machine.clone());
        let (orders, process) = (self.orders.downgrade(), process.clone());
        tokio::spawn(async move {
            let exit = match agent.wait(&process).await {
                Ok(exit) => exit,
                // The task tells everybody itself.
                Err(_) if machine.gone_already().is_some() => return,
                Err(error) => {
                    log::error!("the agent lost {process}: {error}");
                    Exit { status: LOST_STATUS, at: SystemTime::now(), oom_killed: false }
                }
            };
            let _ = orders.upgrade().map(|orders| orders.send(Order::Exited(process, exit)));
        });
    }

    async fn explained<T>(&self, result: Result<T, PodError>) -> Result<T, PodError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Where the machine is gone or silent, its console tells more.
    async fn explain(&self, mut error: PodError) -> PodError {
        if !matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) {
            return error;
        }
        if let Some(sentence) =
            self.shared.machine.gone_already().filter(|sentence| !error.message.contains(&**sentence))
        {
            error.message = format!("{}: {sentence}", error.message);
        }
        let tail = self.console_tail().await;
        error.with_tail("last words of the guest's console", &tail)
    }
}

/// Runs an act in a task of its own, which goes on when the caller goes away.
async fn detached<T: Send + 'static>(
    act: impl Future<Output = Result<T, PodError>> + Send + 'static,
) -> Result<T, PodError> {
    tokio::spawn(act).await.unwrap_or_else(|e| Err(PodError::host("an act of the pod was interrupted", e)))
}

#[cfg(test)]
mod tests;
