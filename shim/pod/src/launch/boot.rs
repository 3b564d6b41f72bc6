//! The second phase: machine and file server come up side by side, until the agent has called.

use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};

use tokio::{net::UnixStream as AsyncStream, runtime::Handle};

use super::{
    Common, Greeted,
    prepare::{Prepared, Sockets},
};
use crate::{
    ErrorKind, PodError,
    agent::Agent,
    launcher::Launcher,
    machine::Machine,
    moment::mark,
    network,
    process::Spawned,
    share::{ServerReady, ServerStart},
};

/// After a failed boot, how long the file server's start is waited for, so that it can be undone.
const SERVER_START_DEADLINE: Duration = Duration::from_secs(2);

impl Prepared {
    /// Starts both.
    pub(super) async fn boot(self, launcher: Arc<dyn Launcher>) -> Result<Booting, PodError> {
        let Self { mut common, carried, sockets } = self;
        let Sockets { mut control, call, mut theirs, server_listener, server_stderr } = sockets;
        let server = ServerStart { listener: server_listener, stderr: server_stderr, carried: carried.clone() };
        let pod = common.pod.clone();
        let (starter, runtime) = (Arc::clone(&launcher), Handle::current());
        // The machine first: it takes longest.
        let starting = tokio::task::spawn_blocking(move || {
            let network = network::attach(&pod.network, pod.vcpus, pod.interface_rules, &carried.record)?;
            (theirs.networks, theirs.network_places) = (network.devices, network.places);
            let joined = (network.network, network.joined, network.watch, mark("network joined"));
            let start = || {
                let _entered = runtime.enter();
                starter.start(&pod, &mut control, theirs, &carried)
            };
            let process = match &network.namespace {
                Some(namespace) => namespace.within(start),
                None => start(),
            };
            Ok((joined, process.map(|process| (process, control))))
        });
        let shared = launcher.share(common.state.path(), server);
        let started = starting.await.unwrap_or_else(|e| Err(PodError::host("the launch was interrupted", e)));
        let started = started.and_then(|((network, joined, watch, mark), started)| {
            common.network = network;
            common.watch = watch;
            common.acquired.network = joined;
            common.marks.push(mark);
            started
        });
        let ready = match shared {
            Ok((share, ready)) => {
                common.acquired.share = Some(share);
                Some(ready)
            }
            Err(_) => None,
        };
        let connected = started.and_then(|(process, control)| {
            let connect = |socket: UnixStream| {
                socket.set_nonblocking(true)?;
                AsyncStream::from_std(socket)
            };
            let watched = connect(control).and_then(|control| Ok((control, connect(call)?)));
            let (control, call) = watched.map_err(|e| PodError::host("cannot watch the machine's sockets", e))?;
            Ok((Machine::converse(control, process), call))
        });
        match (connected, ready) {
            (Ok((machine, call)), ready @ Some(_)) => {
                common.mark("vmm spawned");
                common.acquired.machine = Some(machine);
                Ok(Booting { common, call, ready })
            }
            (Ok((machine, _)), None) => {
                common.acquired.machine = Some(machine);
                let error = PodError::new(
                    ErrorKind::Internal,
                    "cannot start the thread of the share tree: is the host out of threads?",
                );
                Err(common.unwind(error).await)
            }
            (Err(error), ready) => Err(Booting::give_up(common, ready, error).await),
        }
    }
}

/// The guest boots, the file server starts.
pub(super) struct Booting {
    common: Common,
    call: AsyncStream,
    ready: Option<ServerReady>,
}

impl Booting {
    /// Waits for both.
    pub(super) async fn greet(self) -> Result<Greeted, PodError> {
        let Self { mut common, call, mut ready } = self;
        let machine = common.acquired.machine.clone().expect("set by boot");
        let greeting = Agent::greet(call, machine);
        tokio::pin!(greeting);
        let mut agent = None;
        while agent.is_none() || ready.is_some() {
            tokio::select! {
                server = server_ready(&mut ready) => match server {
                    Ok(server) => {
                        common.acquired.server = server.map(Arc::new);
                        common.mark("file server started");
                    }
                    Err(error) => return Err(common.unwind(error).await),
                },
                greeted = &mut greeting, if agent.is_none() => match greeted {
                    Ok(greeted) => {
                        common.mark("agent called");
                        agent = Some(greeted);
                    }
                    Err(error) => return Err(Self::give_up(common, ready, error).await),
                },
            }
        }
        common.acquired.agent = agent.clone();
        Ok(Greeted { common, agent: agent.expect("the loop ends with one") })
    }

    /// Unwinds with a file server that may still be starting.
    async fn give_up(mut common: Common, mut ready: Option<ServerReady>, error: PodError) -> PodError {
        if ready.is_some()
            && let Ok(Ok(server)) = tokio::time::timeout(SERVER_START_DEADLINE, server_ready(&mut ready)).await
        {
            common.acquired.server = server.map(Arc::new);
        }
        common.unwind(error).await
    }
}

/// The file server's start; pending once it is known.
async fn server_ready(ready: &mut Option<ServerReady>) -> Result<Option<Spawned>, PodError> {
    let Some(waiting) = ready else { return std::future::pending().await };
    let answer = waiting.await;
    *ready = None;
    answer.unwrap_or_else(|_| {
        Err(PodError::new(ErrorKind::Internal, "the thread of the share tree ended early: this is a bug"))
    })
}
