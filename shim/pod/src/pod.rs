//! The handle to a running pod: asks the owner task for leave, acts, and tells the task how it went.
//!
//! Acts that change what exists (create, start, delete) run in tasks of their own, so that a caller who goes away leaves no half of one.

mod cgroup;
mod create;
mod life;

use std::{future::Future, sync::Arc};

use agent_protocol::messages::DescribeResponse;
use tokio::sync::{mpsc, oneshot};
use vmm_control::{Mark, Report};

use crate::{
    ErrorKind, Installation, PodError, PodSpec, ProcessId,
    agent::Agent,
    console::Tail,
    container::{Event, State},
    host_pids::HostPids,
    launch::{Launched, launch},
    launcher::{Launcher, ProcessLauncher},
    machine::Machine,
    moment::mark,
    network::{Waiting, Watching},
    share::Share,
    streams::StreamDoor,
    task::{Order, Task},
};

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
    host_pids: HostPids,
    /// For who starts a container: its network is to be there.
    network: Option<Waiting>,
    memory_mib: u32,
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
        let memory_mib = spec.memory_mib;
        detached(async move { Ok(Self::own(launch(launcher, spec).await?, memory_mib)) }).await
    }

    /// Gives a launched pod its owner.
    fn own(launched: Launched, memory_mib: u32) -> Self {
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
            streams: StreamDoor::new(state, machine.clone()),
            host_pids: HostPids::of_machine(machine.pid()),
            network: acquired.watching.as_ref().map(Watching::waiting),
            memory_mib,
            console: acquired.console.clone(),
            marks,
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(inbox, machine, acquired).run());
        Self { orders, shared: Arc::new(shared) }
    }

    /// Tells a terminal its size.
    pub async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError> {
        self.apply(process, Event::UseAsked).await?;
        let resized = self.shared.agent.resize(process, columns, rows).await;
        self.explained(resized).await
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

    /// The pid that stands on the host for a container: the VMM's, except that further containers of a Kubernetes pod have one of their own each,
    /// so that one can be told to join another one's processes.
    pub fn host_pid(&self, container_id: &str) -> u32 {
        self.shared.host_pids.of(container_id)
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
        self.order(order)?.await.map_err(|_| owner_ended())?
    }

    /// Asks, and leaves the waiting to whoever holds the answer's end.
    fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, PodError>>) -> Order,
    ) -> Result<oneshot::Receiver<Result<T, PodError>>, PodError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).map_err(|_| owner_ended())?;
        Ok(answer)
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

fn owner_ended() -> PodError {
    PodError::new(ErrorKind::Unavailable, "the pod's owner has ended")
}

/// Runs an act in a task of its own, which goes on when the caller goes away.
async fn detached<T: Send + 'static>(
    act: impl Future<Output = Result<T, PodError>> + Send + 'static,
) -> Result<T, PodError> {
    tokio::spawn(act).await.unwrap_or_else(|e| Err(PodError::host("an act of the pod was interrupted", e)))
}

#[cfg(test)]
mod tests;
