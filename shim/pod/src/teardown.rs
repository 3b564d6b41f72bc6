//! The way back: everything a pod has acquired, and how it is given up again, from any point of its life.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    agent::{Agent, POWER_OFF_DEADLINE},
    console::Tail,
    machine::Machine,
    network::{Forwarding, Joined, Late, Watching},
    process::Spawned,
    share::Share,
    state_dir,
};

/// The VMM's time to stop by itself once it was told to.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// The file server's time to end by itself once the VMM has hung up.
const SERVER_DEADLINE: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone: it frees the guest's memory first.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// What a pod holds on the host. Filled step by step by launch; undone in reverse.
#[derive(Default)]
pub(crate) struct Acquired {
    /// The state folder.
    pub state_dir: Option<PathBuf>,
    /// What sends the pod's frames to the machine.
    pub network: Option<Joined>,
    /// What tells the guest of changes there.
    pub watching: Option<Watching>,
    /// What joins its loopback to the guest's.
    pub forwarding: Option<Forwarding>,
    /// The share tree's thread.
    pub share: Option<Share>,
    /// The file server.
    pub server: Option<Arc<Spawned>>,
    /// The machine.
    pub machine: Option<Machine>,
    /// The agent, once it has called.
    pub agent: Option<Agent>,
    /// The guest's console.
    pub console: Option<Tail>,
    /// What the VMM wrote to standard error.
    pub vmm_words: Option<Tail>,
    /// What the file server wrote to standard error.
    pub server_words: Option<Tail>,
}

impl Acquired {
    /// Gives everything up; every step is tried. Tells what could not be undone.
    pub(crate) async fn undo(self, guest_has_work: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let late = match self.watching {
            Some(watching) => watching.end().await,
            None => None,
        };
        if let Some(forwarding) = self.forwarding {
            forwarding.end().await;
        }
        if let Some(machine) = &self.machine {
            if let (Some(agent), true) = (&self.agent, guest_has_work) {
                power_off(agent, machine).await;
            }
            problems.extend(stop_machine(machine).await.err());
        }
        if let Some(server) = &self.server {
            problems.extend(stop_server(server).await.err());
        }
        problems.extend(undo_network(self.network, late).await);
        if let Some(share) = &self.share {
            problems.extend(share.end().await);
        }
        if let Some(state_dir) = &self.state_dir {
            problems.extend(state_dir::remove(state_dir));
        }
        problems
    }
}

/// What sends frames to a machine that is gone.
async fn undo_network(network: Option<Joined>, late: Option<Late>) -> Vec<String> {
    let undo = move || {
        let early = network.map_or(Ok(()), |network| network.undo());
        [early, late.map_or(Ok(()), |late| late.undo())]
    };
    match tokio::task::spawn_blocking(undo).await {
        Ok(undone) => undone.into_iter().filter_map(Result::err).collect(),
        Err(error) => vec![format!("the pod's network: {error}")],
    }
}

/// Lets the guest end its containers and write back what it holds.
async fn power_off(agent: &Agent, machine: &Machine) {
    if machine.gone_already().is_some() {
        return;
    }
    match agent.power_off().await {
        Ok(()) => drop(tokio::time::timeout(POWER_OFF_DEADLINE, machine.gone()).await),
        Err(error) => log::debug!("the agent does not power off: {error}"),
    }
}

async fn stop_machine(machine: &Machine) -> Result<(), String> {
    machine.stop();
    let Some(process) = machine.process() else {
        let _ = tokio::time::timeout(STOP_DEADLINE, machine.gone()).await;
        return Ok(());
    };
    if process.ended_within(STOP_DEADLINE).await {
        process.reap();
        return Ok(());
    }
    log::warn!("the virtual machine monitor does not stop: killing it");
    process.end(KILL_DEADLINE).await
}

async fn stop_server(server: &Spawned) -> Result<(), String> {
    if server.ended_within(SERVER_DEADLINE).await {
        server.reap();
        return Ok(());
    }
    log::debug!("the file server does not end: killing it");
    server.end(KILL_DEADLINE).await
}
