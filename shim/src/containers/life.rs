//! A process's way from its start to the moment it is forgotten.

use std::sync::Arc;

use pod::{ErrorKind, Exit, PodError, ProcessId};

use super::{
    Containers,
    process::{Process, first, killed_now, name, never_ran},
};
use crate::{
    events::Event,
    hooks::{self, Hooks},
    lifecycle::Lifecycle,
    lock::held,
    machine::PodFront,
    refusal::Refusal,
    stdio::{Stdio, unread},
};

const SIGKILL: u32 = 9;

impl Containers {
    /// Starts a container or an exec.
    ///
    /// # Errors
    /// It was started before, or it cannot run: the guest's own sentence.
    pub async fn start(self: &Arc<Self>, id: &ProcessId) -> Result<u32, Refusal> {
        let process = self.table.find(id)?;
        held(&process.life).request_start()?;
        match self.start_in_guest(&process).await {
            Ok(pod) => {
                // Who deletes it waits for its hooks, if it has any.
                let _undeleted = match process.hooks {
                    Some(_) => Some(process.deleted.lock().await),
                    None => None,
                };
                self.announce(&process, Lifecycle::started);
                if !id.exec_id.is_empty() {
                    self.watch(Arc::clone(&process), pod);
                }
                let machine = self.pid();
                if let Err(refusal) =
                    hooks::in_turn(process.hooks.clone(), move |hooks| hooks.after_start(machine)).await
                {
                    log::warn!("{refusal}; {} goes on", name(id));
                }
                Ok(process.pid)
            }
            Err(refusal) if id.exec_id.is_empty() => {
                self.announce(&process, Lifecycle::start_failed);
                Err(refusal)
            }
            Err(refusal) => {
                self.announce(&process, |life| life.start_refused(never_ran()));
                Err(refusal)
            }
        }
    }

    async fn start_in_guest(&self, process: &Process) -> Result<Arc<dyn PodFront>, Refusal> {
        if let Some(stdio) = held(&process.stdio).as_mut() {
            stdio.begin()?;
        }
        let pod = self.machine.pod().await?;
        pod.start(&process.id).await?;
        Ok(pod)
    }

    /// Sends a signal. Waits for nothing that is under way.
    ///
    /// # Errors
    /// There is no such process, or it has ended.
    pub async fn signal(&self, id: &ProcessId, signal: u32, all: bool) -> Result<(), Refusal> {
        let process = self.table.find(id)?;
        held(&process.life).check_signal()?;
        Ok(self.machine.pod().await?.signal(id, signal, all).await?)
    }

    /// Waits for a process to end.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn wait(&self, id: &ProcessId) -> Result<Exit, Refusal> {
        let process = self.table.find(id)?;
        let mut exit = process.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.ok_or_else(|| Refusal::not_found(name(id)))
    }

    /// Forgets a process that does not run, once its output is where it belongs. Who comes while another deletes it waits, and is told the same.
    ///
    /// # Errors
    /// It runs, or the pod cannot let go of it; it can be tried again then.
    pub async fn delete(&self, id: &ProcessId) -> Result<Exit, Refusal> {
        let process = self.table.find_to_delete(id).await?;
        let mut deleted = process.deleted.lock().await;
        let ended = {
            let life = held(&process.life);
            life.check_delete()?;
            life.exit()
        };
        if let (true, Some(exit)) = (*deleted, ended) {
            return Ok(exit);
        }
        let stdio = held(&process.stdio).take();
        if let Some(stdio) = stdio.filter(|_| ended.is_some()) {
            process.last_words(stdio).await;
        }
        let exit = self.delete_in_guest(id).await?.or(ended).unwrap_or_else(killed_now);
        self.announce(&process, |life| life.ended(exit));
        let exit = held(&process.life).exit().unwrap_or(exit);
        hooks::in_turn(process.hooks.clone(), Hooks::after_stop).await?;
        *deleted = true;
        if self.forget(id) && id.exec_id.is_empty() {
            self.publisher.publish(Event::Deleted(id.container_id.clone(), process.pid, exit));
        }
        Ok(exit)
    }

    /// Ends a container that nobody wants any more, and forgets it, in whatever state it is; what it still has to say is for nobody.
    ///
    /// # Errors
    /// There is no such container, or the pod cannot let go of it; it can be tried again then.
    pub async fn give_up(&self, container_id: &str) -> Result<(), Refusal> {
        let id = first(container_id);
        let process = self.table.find_to_delete(&id).await?;
        if let Err(refusal) = self.signal(&id, SIGKILL, true).await {
            log::debug!("{} is not killed: {refusal}", name(&id));
        }
        if !self.machine.is_stopped() {
            self.wait(&id).await?;
        }
        // A delete that waits for the output goes on as well.
        process.given_up.send_replace(true);
        self.delete(&id).await.map(drop)
    }

    // Nothing, where nothing is left of it.
    async fn delete_in_guest(&self, id: &ProcessId) -> Result<Option<Exit>, Refusal> {
        if self.machine.is_stopped() {
            return Ok(None);
        }
        match self.machine.pod().await?.delete(id).await {
            Ok(exit) => Ok(Some(exit)),
            Err(PodError { kind: ErrorKind::NotFound, .. }) => Ok(None),
            Err(_) if self.machine.is_stopped() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells its end once it comes.
    pub(super) fn watch(self: &Arc<Self>, process: Arc<Process>, pod: Arc<dyn PodFront>) {
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            let exit = pod.wait(&process.id).await.unwrap_or_else(|error| {
                log::debug!("no exit status of {}: {error}", name(&process.id));
                killed_now()
            });
            let exit = containers.blame_host(exit);
            let outputs = held(&process.stdio).as_ref().map(Stdio::unread);
            unread::taken(outputs.unwrap_or_default()).await;
            containers.announce(&process, |life| life.ended(exit));
        });
    }

    // With a container its execs are forgotten, and whoever waits for one is told. False when someone else did it.
    fn forget(&self, id: &ProcessId) -> bool {
        let Some(execs) = self.table.forget(id) else { return false };
        for exec in execs {
            self.announce(&exec, |life| life.forgotten(killed_now()));
        }
        true
    }
}
