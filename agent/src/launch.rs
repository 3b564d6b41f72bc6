//! From a request to a process with its stdio connected: the asynchronous steps around the blocking runtime.
//!
//! ```text
//!   (its turn) -> claim streams -> pipes -> (expect a child) -> Runtime, on a thread of its own -> claim its status -> pumps
//! ```
//! If a step fails, everything before it is dropped, and with the streams the host sees their ends.

use std::{io, os::fd::OwnedFd, pin::Pin, sync::Arc};

use oci_spec::runtime::{Process, Spec};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    birth::{Birth, on_a_thread},
    reaper::Reaper,
    refusal::Refusal,
    runtime::{Container, ProcessStdio, Runtime, Shared, Size, Spawned},
    socket::Socket,
    stdio::{self, Master},
    streams::{ClaimError, Streams},
};

/// Stdio as a request names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdioRequest {
    /// Stream of descriptor 0, or what is typed.
    pub stdin: u64,
    /// Stream of descriptor 1, or what is shown.
    pub stdout: u64,
    /// Stream of descriptor 2.
    pub stderr: u64,
    /// Size of the terminal, where the process has one.
    pub size: Size,
}

/// What a launch needs; clones share it.
#[derive(Clone)]
pub struct Launcher {
    /// Makes the processes.
    pub runtime: Arc<dyn Runtime>,
    /// Where stdio comes from.
    pub streams: Streams,
    /// Where statuses come from.
    pub reaper: Reaper,
}

/// A further process to run.
pub struct Exec {
    /// In which container.
    pub container: Arc<dyn Container>,
    /// What.
    pub process: Box<Process>,
    /// With which stdio.
    pub stdio: StdioRequest,
    /// How to give it up.
    pub birth: Birth,
    /// Turns of the container's births.
    pub turns: Arc<Semaphore>,
}

/// A process that exists, with its pumps running.
pub struct Launched {
    /// Its pid here.
    pub pid: u32,
    /// Its terminal, for resizing.
    pub master: Option<Master>,
    /// Its status, once reaped.
    pub exit: oneshot::Receiver<u32>,
}

/// Moves bytes until its source ends.
type Pump = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Our ends of a process's stdio before it exists.
enum Plumbing {
    Pipes(Vec<Pump>),
    Terminal { keys: Option<Socket>, display: Option<Socket> },
}

impl Launcher {
    /// Makes a container.
    pub async fn create(
        &self,
        id: String,
        spec: Box<Spec>,
        shared: Shared,
        stdio: StdioRequest,
    ) -> Result<(Launched, Arc<dyn Container>), Refusal> {
        let terminal = spec.process().as_ref().and_then(Process::terminal).unwrap_or(false);
        let (plumbing, theirs) = self.plumb(stdio, terminal).await?;
        let expectation = self.reaper.expect();
        let runtime = self.runtime.clone();
        let made = on_a_thread(move || runtime.create(&id, &spec, &shared, theirs)).await;
        let (spawned, container) = made.map_err(|error| Refusal::failed("make a container", error))??;
        let exit = expectation.claim(spawned.pid);
        Ok((connect(spawned, plumbing, exit)?, container))
    }

    /// Runs a further process of a container.
    pub async fn exec(&self, exec: Exec) -> Result<Launched, Refusal> {
        let Exec { container, process, stdio, birth, turns } = exec;
        let turn = birth.turn(turns).await.inspect_err(|_| self.forget(stdio))?;
        let (plumbing, theirs) = self.plumb(stdio, process.terminal().unwrap_or(false)).await?;
        let expectation = self.reaper.expect();
        let made = on_a_thread(move || container.exec(&process, theirs, &birth)).await;
        drop(turn);
        let spawned = made.map_err(|error| Refusal::failed("run a process", error))??;
        let exit = expectation.claim(spawned.pid);
        connect(spawned, plumbing, exit)
    }

    /// Closes the streams of a process that will never run.
    pub fn forget(&self, stdio: StdioRequest) {
        for number in [stdio.stdin, stdio.stdout, stdio.stderr] {
            self.streams.forget(number);
        }
    }

    async fn plumb(&self, stdio: StdioRequest, terminal: bool) -> Result<(Plumbing, ProcessStdio), Refusal> {
        let stdin = self.claim(stdio.stdin).await?;
        let stdout = self.claim(stdio.stdout).await?;
        if terminal {
            let plumbing = Plumbing::Terminal { keys: stdin, display: stdout };
            return Ok((plumbing, ProcessStdio::Terminal(stdio.size)));
        }
        let stderr = self.claim(stdio.stderr).await?;
        pipes(stdin, stdout, stderr).map_err(|error| Refusal::failed("make pipes for stdio", error))
    }

    async fn claim(&self, number: u64) -> Result<Option<Socket>, Refusal> {
        self.streams.claim(number).await.map_err(|error: ClaimError| Refusal::invalid("stdio", error))
    }
}

fn pipes(
    stdin: Option<Socket>,
    stdout: Option<Socket>,
    stderr: Option<Socket>,
) -> io::Result<(Plumbing, ProcessStdio)> {
    let mut pumps = Vec::new();
    let stdin = match stdin {
        Some(stream) => Some(piped(stdio::input(stream)?, &mut pumps)),
        None => None,
    };
    let stdout = output(stdout, &mut pumps)?;
    let stderr = output(stderr, &mut pumps)?;
    Ok((Plumbing::Pipes(pumps), ProcessStdio::Descriptors { stdin, stdout, stderr }))
}

fn output(stream: Option<Socket>, pumps: &mut Vec<Pump>) -> io::Result<Option<OwnedFd>> {
    stream.map(|stream| Ok(piped(stdio::output(stream)?, pumps))).transpose()
}

fn piped((theirs, pump): (OwnedFd, impl Future<Output = ()> + Send + 'static), pumps: &mut Vec<Pump>) -> OwnedFd {
    pumps.push(Box::pin(pump));
    theirs
}

/// Starts the pumps. They end with their sources, so nobody holds on to them.
fn connect(spawned: Spawned, plumbing: Plumbing, exit: oneshot::Receiver<u32>) -> Result<Launched, Refusal> {
    let master = match plumbing {
        Plumbing::Pipes(pumps) => {
            pumps.into_iter().for_each(|pump| drop(tokio::spawn(pump)));
            None
        }
        Plumbing::Terminal { keys, display } => {
            let fd = spawned.master.ok_or_else(|| Refusal::failed("use the terminal", "it was not handed over"))?;
            let master = stdio::master(fd).map_err(|error| Refusal::failed("use the terminal", error))?;
            if let Some(keys) = keys {
                tokio::spawn(stdio::terminal_input(keys, master.clone()));
            }
            tokio::spawn(stdio::terminal_output(master.clone(), display));
            Some(master)
        }
    };
    Ok(Launched { pid: spawned.pid, master, exit })
}
