//! Connections to the loopback of the pod's namespace reach the guest's loopback, as `kubectl port-forward` needs it.
//!
//! ```text
//!   containerd ──connects──> 127.0.0.1:PORT in the pod's namespace        the guest
//!                              │ the kernel asks our program                127.0.0.1:PORT or [::1]:PORT
//!                              └─> our listener ─> this task ══ vsock ══> agent ─┘
//! ```
//! containerd enters the pod's network namespace on the host and connects to the port there; the server is in the machine. A program that the kernel asks
//! for each new connection ([`program`]) leads those to any port of 127.0.0.0/8 and ::1 to one listener a family. The agent connects to the same
//! port of the guest's loopback; where it is refused, so is the client, though only after its handshake: the connection is reset.
//!
//! # What is not taken
//! Connections to other addresses, and what is not TCP. A port on which somebody serves in the namespace itself is theirs: those that are there when the pod
//! starts are never led here, and of the others the first connection that the guest refuses finds them. Such a port stays theirs.
//!
//! # What is left when everybody dies
//! Nothing: the kernel forgets the program with the descriptor of its link, which nobody else has.
//!
//! Nobody waits for it in a launch: who forwards a port needs a container first.

mod others;
mod program;
mod steering;
mod sys;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_protocol::forward::{FORWARDS_MAX, Forward, JOINED};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream, UnixStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::timeout,
};

use self::steering::Steering;
use super::namespace::Namespace;
use crate::{
    PodError,
    machine::Machine,
    state_dir::{StateDir, VSOCK_SOCKET},
    streams,
};

/// Longest wait for the guest to join a connection: more than the agent gives the server.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// Buffer of each direction.
const BUFFER_BYTES: usize = 16 << 10;
/// How long nothing is accepted when the host has no descriptor or memory for it.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// Connections are joined until this is ended or dropped.
#[derive(Debug)]
pub(crate) struct Forwarding {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Forwarding {
    /// Joins the loopback of the namespace at `path` to that of the machine. Where the host cannot, it says so, and the pod goes without.
    pub(crate) fn begin(path: PathBuf, state: Arc<StateDir>, machine: Machine) -> Self {
        let (end, ended) = oneshot::channel::<()>();
        let over = async move {
            tokio::select! {
                _ = machine.gone() => {}
                _ = ended => {}
            }
        };
        let task = tokio::spawn(async move {
            let door = spawn_blocking(move || Door::open(&path, state)).await.map_err(interrupted);
            match door.flatten() {
                Ok(door) => door.forward(over).await,
                Err(error) => log::debug!("ports of the pod cannot be forwarded: {}", error.message),
            }
        });
        Self { task, end }
    }

    /// Ends all of it; nothing of it holds the namespace when this returns.
    pub(crate) async fn end(self) {
        drop(self.end);
        let _ = self.task.await;
    }
}

fn interrupted(error: tokio::task::JoinError) -> PodError {
    PodError::host("joining the pod's loopback was interrupted", error)
}

/// The pod's loopback on the host, and the way into its machine.
#[derive(Debug)]
struct Door {
    namespace: Namespace,
    steering: Steering,
    state: Arc<StateDir>,
}

impl Door {
    fn open(path: &Path, state: Arc<StateDir>) -> Result<Self, PodError> {
        let namespace = Namespace::open(path)?;
        let steering = Steering::begin(&namespace)?;
        Ok(Self { namespace, steering, state })
    }

    /// Joins connections until it is over; none is left then.
    async fn forward(self, over: impl Future<Output = ()>) {
        let door = Arc::new(self);
        let mut connections = JoinSet::new();
        tokio::select! {
            Err(error) = door.serve(&mut connections) => log::warn!("ports of the pod cannot be forwarded any more: {}", error.message),
            () = over => {}
        }
        connections.shutdown().await;
    }

    /// Takes connections, up to [`FORWARDS_MAX`] at a time; more wait in the kernel's queue.
    async fn serve(self: &Arc<Self>, connections: &mut JoinSet<()>) -> Result<(), PodError> {
        let taken = |listener: &std::net::TcpListener| TcpListener::from_std(listener.try_clone()?);
        let listeners: io::Result<Vec<TcpListener>> = self.steering.listeners.iter().map(taken).collect();
        let listeners = listeners.map_err(|e| PodError::host("cannot listen on the pod's loopback", e))?;
        loop {
            tokio::select! {
                accepted = accept(&listeners), if connections.len() < FORWARDS_MAX => match accepted {
                    Ok(client) => drop(connections.spawn(Arc::clone(self).join(client))),
                    Err(error) => {
                        log::debug!("a connection to the pod's loopback is not accepted: {error}");
                        tokio::time::sleep(SHORTAGE_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Joins a connection to the guest, or to somebody else, or resets it.
    async fn join(self: Arc<Self>, mut client: TcpStream) {
        let joined = async {
            let asked = client.local_addr()?;
            let forward = Forward::to(asked.ip(), asked.port());
            match timeout(JOIN_DEADLINE, self.reach(forward)).await {
                Ok(Ok(mut guest)) => copy(&mut client, &mut guest).await,
                Ok(Err(refused)) => match self.somebody_else(asked).await {
                    Some(mut server) => copy(&mut client, &mut server).await,
                    None => Err(refused),
                },
                Err(late) => Err(late.into()),
            }
        };
        if let Err(error) = joined.await {
            log::debug!("a connection to the pod's loopback is reset: {error}");
            // So its client sees a failure, not the end of an answer.
            let _ = client.set_zero_linger();
        }
    }

    async fn reach(&self, forward: Forward) -> io::Result<UnixStream> {
        let mut guest = streams::connect(self.state.short_path(VSOCK_SOCKET), forward.number()).await?;
        match guest.read_u8().await {
            Ok(JOINED) => Ok(guest),
            _ => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nobody serves port {} in the guest", forward.port),
            )),
        }
    }

    /// A server in the namespace itself. Its port is left to it from now on.
    async fn somebody_else(self: &Arc<Self>, asked: SocketAddr) -> Option<TcpStream> {
        let door = Arc::clone(self);
        let found = spawn_blocking(move || {
            door.namespace.within(|| {
                let look = || {
                    if door.steering.own_ports().any(|own| own == asked.port())
                        || !others::ports()?.contains(&asked.port())
                    {
                        return Ok(None);
                    }
                    door.steering.leave(asked.port())?;
                    let server = std::net::TcpStream::connect(asked)?;
                    server.set_nonblocking(true)?;
                    Ok(Some(server))
                };
                look().map_err(|error: io::Error| PodError::host("cannot look who else listens there", error))
            })
        });
        found.await.ok()?.ok()?.and_then(|server| TcpStream::from_std(server).ok())
    }
}

async fn copy<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &mut TcpStream,
    server: &mut T,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(client, server, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
}

/// The next connection of any listener.
async fn accept(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    let waiting = listeners.iter().map(|listener| Box::pin(listener.accept()));
    futures::future::select_all(waiting).await.0.map(|(client, _)| client)
}
