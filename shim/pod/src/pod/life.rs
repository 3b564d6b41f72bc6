//! A process's way from its start to the moment it is forgotten.

use std::time::{Duration, SystemTime};

use super::{Pod, detached};
use crate::{
    ErrorKind, Exit, PodError, ProcessId,
    container::{Event, State},
    task::Order,
};

/// Exit status of a process that could not be started, as a shell tells a command that is not found.
pub(super) const START_FAILED_STATUS: u32 = 127;
/// Exit status when the agent does not know its own process any more.
const LOST_STATUS: u32 = 255;
/// How long the end of a container may take to be told after its SIGKILL. Freeing a large memory, or waiting for a disk, takes seconds on a
/// busy host; an agent that tells nothing then is broken, or lies. (Tests have less of it.)
pub(super) const KILL_DEADLINE: Duration =
    if cfg!(test) { Duration::from_millis(700) } else { Duration::from_secs(30) };
pub(super) const SIGKILL: u32 = 9;

impl Pod {
    /// Opens the gate (container) or runs the exec. Returns the guest's pid.
    pub async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        let (pod, process) = (self.clone(), process.clone());
        detached(async move {
            pod.apply(&process, Event::StartAsked).await?;
            if !process.is_exec() {
                pod.network_settled().await;
            }
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
                    pod.start_failed(&process).await;
                    Err(pod.explain(error).await)
                }
            }
        })
        .await
    }

    /// Resolves when the guest has what was in the pod's network until now: a container begins with its network.
    pub(crate) async fn network_settled(&self) {
        if let Some(network) = &self.shared.network {
            network.settle().await;
        }
    }

    /// Ends what did not start. An exec that did not start never was. A container's first process was there, at its gate: how it ended (it may
    /// have been killed meanwhile) is told like any end.
    async fn start_failed(&self, process: &ProcessId) {
        if !process.is_exec() && tokio::time::timeout(KILL_DEADLINE, self.wait(process)).await.is_ok() {
            return;
        }
        let exit = Exit { status: START_FAILED_STATUS, at: SystemTime::now(), oom_killed: false };
        let _ = self.apply(process, Event::StartFailed(exit)).await;
    }

    /// Sends a signal to a process, or to all of its container. A guest that does not answer to the SIGKILL of a container, or takes it and never
    /// tells the end, is given up, and the machine's end is the container's.
    pub async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        self.apply(process, Event::UseAsked).await?;
        if signal == SIGKILL && !process.is_exec() {
            return self.kill_container(process, all).await;
        }
        let sent = self.shared.agent.signal(process, signal, all).await;
        self.explained(sent).await
    }

    /// Kills a container's first process, whose end is expected from then on.
    async fn kill_container(&self, process: &ProcessId, all: bool) -> Result<(), PodError> {
        let sent = self.shared.agent.signal(process, SIGKILL, all).await;
        if self.given_up(process, &sent).await {
            return Ok(());
        }
        if sent.is_ok() {
            self.expect_end(process)?;
        }
        self.explained(sent).await
    }

    /// Gives the machine up when a killed container's end is not told in time: its kernel knows no process that survives SIGKILL for long, so
    /// the agent lies or is broken, and nothing but the machine's end could end the container. Holds no handle: a pod that goes needs no watch.
    fn expect_end(&self, process: &ProcessId) -> Result<(), PodError> {
        let ended = self.order(|reply| Order::Wait(process.clone(), reply))?;
        let (machine, process) = (self.shared.machine.clone(), process.clone());
        tokio::spawn(async move {
            if tokio::time::timeout(KILL_DEADLINE, ended).await.is_err() {
                machine.condemn(format!(
                    "{process} got SIGKILL, and the agent in the guest has not told its end in {KILL_DEADLINE:?}"
                ));
            }
        });
        Ok(())
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
        self.kill_container(process, true).await?;
        self.wait(process).await.map(drop)
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
        if process.is_exec() {
            return Ok(());
        }
        self.shared.share.remove(&process.container_id).await?;
        self.shared.host_pids.take(&process.container_id);
        Ok(())
    }

    /// Waits for a process's end in the background, without keeping the pod.
    pub(super) fn begin_wait(&self, process: &ProcessId) {
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
}
