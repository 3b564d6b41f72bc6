//! The launch of a pod, as phases that consume each other and can each unwind themselves.
//!
//! ```text
//!  Prepared            folder, record, sockets
//!     | boot           share thread begins; the VMM is spawned at once; both come up side by side
//!  Booting             the guest boots while the file server starts: nobody waits for anybody but the agent's call
//!     | greet          hello, raced with the machine's end, the file server's failure and a deadline
//!  Greeted
//!     | configure      host name, shared folder, clock, entropy
//!  Launched
//! ```
//! The boot order is for speed: nine tenths of it is the guest kernel, so the VMM's first message lies in its socket before it is spawned, and the
//! file server's one connection waits in the listener's queue before there is a server.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    sync::Arc,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixStream as AsyncStream;
use vmm_control::Mark;

use crate::{
    ErrorKind, PodError, PodSpec,
    agent::Agent,
    console::{Tail, pipe_pair},
    ids::check_id,
    launcher::{Carried, Launcher, MachineEnds},
    machine::Machine,
    process::Spawned,
    record::{Entry, Record},
    share::{ServerReady, ServerStart},
    state_dir::{SHARE_SOCKET, StateDir, VSOCK_SOCKET},
    teardown::Acquired,
};

/// After a failed boot, how long the file server's start is waited for, so that it can be undone.
const SERVER_START_DEADLINE: Duration = Duration::from_secs(2);

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

/// A moment, now.
pub(crate) fn mark(name: &str) -> Mark {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = u64::try_from(now.tv_sec).unwrap_or_default().saturating_mul(1_000_000_000)
        + u64::try_from(now.tv_nsec).unwrap_or_default();
    Mark { name: name.to_owned(), monotonic_nanos: nanos }
}

/// Folder, record and sockets are there; nothing runs.
struct Prepared {
    common: Common,
    carried: Carried,
    sockets: Sockets,
}

/// Both ends of everything.
struct Sockets {
    control: UnixStream,
    call: UnixStream,
    theirs: MachineEnds,
    server_listener: OwnedFd,
    server_stderr: OwnedFd,
}

impl Prepared {
    fn make(pod: PodSpec) -> Result<Self, PodError> {
        check_id("pod", &pod.id)?;
        let asked = mark("launch asked");
        let state = Arc::new(StateDir::make(&pod.state_dir)?);
        let mut acquired = Acquired { state_dir: Some(pod.state_dir.clone()), ..Acquired::default() };
        let made = Self::fill(&state, &mut acquired);
        let (carried, sockets) = made.map_err(|error| {
            let left = crate::state_dir::remove(&pod.state_dir);
            PodError::host(format!("cannot prepare {}", pod.state_dir.display()), error)
                .with_tail("left behind", &left.join("\n"))
        })?;
        let mut common = Common { pod, acquired, state, marks: vec![asked] };
        common.mark("state folder ready");
        Ok(Self { common, carried, sockets })
    }

    fn fill(state: &StateDir, acquired: &mut Acquired) -> io::Result<(Carried, Sockets)> {
        let record = Record::create(state.path())?;
        let token = new_token()?;
        record.write(&Entry::Token(token.clone()))?;
        let (console, console_end) = pipe_pair()?;
        let (vmm_words, stderr) = pipe_pair()?;
        let (server_words, server_stderr) = pipe_pair()?;
        acquired.console = Some(Tail::follow("console", log::Level::Debug, console)?);
        acquired.vmm_words = Some(Tail::follow("vmm", log::Level::Warn, vmm_words)?);
        acquired.server_words = Some(Tail::follow("file server", log::Level::Warn, server_words)?);
        let (control, control_end) = UnixStream::pair()?;
        let (call, call_end) = UnixStream::pair()?;
        let (server_listener, share) = server_connection(state)?;
        let theirs = MachineEnds {
            control: control_end.into(),
            call: call_end.into(),
            hybrid: hybrid_listener(state)?.into(),
            console: console_end,
            share: share.into(),
            stderr,
        };
        Ok((
            Carried { record, token },
            Sockets { control, call, theirs, server_listener: server_listener.into(), server_stderr },
        ))
    }

    async fn boot(self, launcher: Arc<dyn Launcher>) -> Result<Booting, PodError> {
        let Self { mut common, carried, sockets } = self;
        let Sockets { mut control, call, theirs, server_listener, server_stderr } = sockets;
        let server = ServerStart { listener: server_listener, stderr: server_stderr, carried: carried.clone() };
        let pod = common.pod.clone();
        let starter = Arc::clone(&launcher);
        // The machine first: it takes longest.
        let starting = tokio::task::spawn_blocking(move || {
            let process = starter.start(&pod, &mut control, theirs, &carried)?;
            Ok((process, control))
        });
        let shared = launcher.share(common.state.path(), server);
        let started = starting.await.unwrap_or_else(|e| Err(PodError::host("the launch was interrupted", e)));
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
struct Booting {
    common: Common,
    call: AsyncStream,
    ready: Option<ServerReady>,
}

impl Booting {
    async fn greet(self) -> Result<Greeted, PodError> {
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

/// The agent has called.
struct Greeted {
    common: Common,
    agent: Agent,
}

impl Greeted {
    async fn configure(self) -> Result<Launched, PodError> {
        let Self { mut common, agent } = self;
        if let Err(error) = agent.configure_pod(&common.pod).await {
            return Err(common.unwind(error).await);
        }
        common.mark("pod configured");
        Ok(Launched { acquired: common.acquired, state: common.state, marks: common.marks })
    }
}

/// The socket through which the host connects into the guest.
fn hybrid_listener(state: &StateDir) -> io::Result<UnixListener> {
    let path = state.short_path(VSOCK_SOCKET);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A listener with one connection waiting in it, and the other end of that connection; without a name that anybody else could use.
pub(crate) fn server_connection(state: &StateDir) -> io::Result<(UnixListener, UnixStream)> {
    let path = state.short_path(SHARE_SOCKET);
    let listener = UnixListener::bind(&path)?;
    let connected = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, connected?))
}

fn new_token() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
