//! The launch of a pod, as phases that consume each other and can each unwind themselves.
//!
//! ```text
//!  Prepared            folder, record, sockets
//!     | boot           share thread begins; the network is joined and the VMM spawned at once; both come up side by side
//!  Booting             the guest boots while the file server starts: nobody waits for anybody but the agent's call
//!     | greet          hello, raced with the machine's end, the file server's failure and a deadline
//!  Greeted
//!     | configure      host name, network, shared folder, clock, entropy
//!  Launched
//! ```
//! The boot order is for speed: nine tenths of it is the guest kernel, so the VMM's first message lies in its socket before it is spawned, and the
//! file server's one connection waits in the listener's queue before there is a server.

mod boot;
mod prepare;

use std::sync::Arc;

use agent_protocol::messages::Network;
use vmm_control::Mark;

use self::prepare::Prepared;
#[cfg(test)]
pub(crate) use self::prepare::server_connection;
use crate::{
    PodError, PodNetwork, PodSpec,
    agent::Agent,
    launcher::Launcher,
    moment::mark,
    network::{Forwarding, Watch},
    state_dir::StateDir,
    teardown::Acquired,
};

/// A pod that runs, before it has an owner.
pub(crate) struct Launched {
    /// All that it holds.
    pub acquired: Acquired,
    /// Its state folder.
    pub state: Arc<StateDir>,
    /// Moments of the launch on CLOCK_MONOTONIC.
    pub marks: Vec<Mark>,
}

/// Launches a pod: all phases in a row.
pub(crate) async fn launch(launcher: Arc<dyn Launcher>, pod: PodSpec) -> Result<Launched, PodError> {
    let prepared = Prepared::make(pod)?;
    let booting = prepared.boot(launcher).await?;
    let greeted = booting.greet().await?;
    greeted.configure().await
}

/// What every phase carries along.
struct Common {
    pod: PodSpec,
    acquired: Acquired,
    state: Arc<StateDir>,
    /// What the guest is told of its network.
    network: Network,
    /// Hears of what changes there.
    watch: Option<Watch>,
    marks: Vec<Mark>,
}

impl Common {
    fn mark(&mut self, name: &str) {
        self.marks.push(mark(name));
    }

    /// Undoes everything, then tells the error with what guest and programs said last.
    async fn unwind(self, error: PodError) -> PodError {
        let Self { pod, mut acquired, .. } = self;
        let tails = [
            ("the guest's console", acquired.console.take()),
            ("the virtual machine monitor", acquired.vmm_words.take()),
            ("the file server", acquired.server_words.take()),
        ];
        let problems = acquired.undo(false).await;
        let mut error = error;
        for (who, tail) in tails {
            if let Some(tail) = tail {
                error = error.with_tail(&format!("last words of {who}"), &tail.text().await);
            }
        }
        error.message = format!("pod {} cannot be launched: {}", pod.id, error.message);
        error.with_tail("left behind", &problems.join("\n"))
    }
}

/// The agent has called.
struct Greeted {
    common: Common,
    agent: Agent,
}

impl Greeted {
    async fn configure(self) -> Result<Launched, PodError> {
        let Self { mut common, agent } = self;
        if let Err(error) = agent.configure_pod(&common.pod, std::mem::take(&mut common.network)).await {
            return Err(common.unwind(error).await);
        }
        common.mark("pod configured");
        let machine = common.acquired.machine.clone().expect("set by boot");
        let rules = common.pod.interface_rules;
        common.acquired.watching = common.watch.take().map(|watch| watch.begin(machine.clone(), agent, rules));
        if let PodNetwork::Namespace(path) = &common.pod.network {
            let forwarding = Forwarding::begin(path.clone(), Arc::clone(&common.state), machine);
            common.acquired.forwarding = Some(forwarding);
        }
        Ok(Launched { acquired: common.acquired, state: common.state, marks: common.marks })
    }
}
