//! The agent, as the host sees it: a hello line, then a ttrpc client on the same connection.
//!
//! Every call is a task of its own, because a call that is dropped while it is being written would close the whole connection, and is raced with
//! the machine's end. What a start waits for is given up when the machine stands still ([`crate::progress`]); every other
//! call but Wait has a deadline. A connection that breaks is the end of the machine: there is only one in its life.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

use agent_protocol::{HELLO_LEN_MAX, Hello, SHARE_MOUNT_POINT, SHARE_TAG, messages as m, service::AgentClient};
use rustix::rand::GetRandomFlags;
use tokio::net::UnixStream;
use ttrpc::{context, proto::Code};

use crate::{
    ErrorKind, Exit, PodError, PodSpec, ProcessId,
    error::guest_text,
    machine::Machine,
    progress::{BOOT_STILL_MAX, CALL_STILL_MAX, WAIT_MAX, standstill},
    streams::read_line,
};

/// Ordinary calls. (Tests have less of it.)
const CALL_DEADLINE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(10) };
/// Switching off; the machine is stopped from outside after that.
pub(crate) const POWER_OFF_DEADLINE: Duration = Duration::from_secs(1);
/// After a connection breaks, how long the machine may take to say why.
const WHY_DEADLINE: Duration = Duration::from_millis(500);
/// Fresh bytes for the guest's random pool; the protocol allows 512.
const ENTROPY_LEN: usize = 64;
/// Most pids of a container that are passed on: as many as a Linux of few CPUs has (pid_max in proc(5)). A lying agent could send millions, each
/// of which costs a message of its own on the way to containerd.
pub(crate) const PIDS_MAX: usize = 32_768;
/// Most of an agent's message that is passed on.
const MESSAGE_CHARS_MAX: usize = 4096;

/// How long an answer is waited for. The machine's end ends every wait.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// So long.
    Within(Duration),
    /// As long as the machine moves: work of a start, which takes what a busy host makes it take.
    WhileItMoves,
    /// For ever: the end of a process.
    ForEver,
}

impl Patience {
    /// The client's own limit, so that a call which nobody waits for any more is forgotten.
    fn context(self) -> context::Context {
        match self {
            Self::Within(deadline) => context::with_duration(deadline),
            Self::WhileItMoves => context::with_duration(WAIT_MAX),
            Self::ForEver => context::Context::default(),
        }
    }

    /// Resolves when it is at its end, with a sentence that says why.
    async fn end(self, machine: &Machine) -> String {
        match self {
            Self::Within(deadline) => {
                tokio::time::sleep(deadline).await;
                format!("{} s are over", deadline.as_secs())
            }
            Self::WhileItMoves => standstill(machine, CALL_STILL_MAX).await,
            Self::ForEver => std::future::pending().await,
        }
    }
}

/// The agent of one pod.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentClient,
    machine: Machine,
}

impl Agent {
    /// Waits for the agent's call, and checks that it is the agent of this version.
    pub(crate) async fn greet(mut call: UnixStream, machine: Machine) -> Result<Self, PodError> {
        let line = tokio::select! {
            biased;
            line = read_line(&mut call, HELLO_LEN_MAX) => line,
            sentence = machine.gone() => return Err(Machine::gone_error(&sentence)),
            why = standstill(&machine, BOOT_STILL_MAX) => return Err(no_answer("call", &why)),
        };
        let line = match line {
            Ok(line) => line,
            Err(error) => return Err(call_broken(&machine, &error.to_string()).await),
        };
        let hello = Hello::parse(&line).map_err(|e| PodError::new(ErrorKind::FailedPrecondition, e.to_string()))?;
        log::debug!("agent {} called", guest_text(hello.agent_version.as_bytes(), HELLO_LEN_MAX));
        let client = AgentClient::new(ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::from(call)));
        Ok(Self { client, machine })
    }

    /// Makes a call, in a task of its own.
    async fn call<T, F>(
        &self,
        what: &str,
        patience: Patience,
        rpc: impl FnOnce(AgentClient, context::Context) -> F,
    ) -> Result<T, PodError>
    where
        T: Send + 'static,
        F: Future<Output = ttrpc::Result<T>> + Send + 'static,
    {
        if let Some(sentence) = self.machine.gone_already() {
            return Err(Machine::gone_error(&sentence));
        }
        let begun = Instant::now();
        let task = tokio::spawn(rpc(self.client.clone(), patience.context()));
        let answer = tokio::select! {
            biased;
            answer = task => answer.map_err(|e| PodError::host(format!("the call to {what} was lost"), e))?,
            sentence = self.machine.gone() => return Err(Machine::gone_error(&sentence)),
            why = patience.end(&self.machine) => return Err(no_answer(what, &why)),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => Err(agent_error(&status)),
            // The client counts the same time, and may be done with it a moment earlier.
            Err(_) if matches!(patience, Patience::Within(deadline) if begun.elapsed() >= deadline) => {
                Err(no_answer(what, &format!("{} s are over", begun.elapsed().as_secs())))
            }
            Err(error) => Err(call_broken(&self.machine, &error.to_string()).await),
        }
    }

    pub(crate) async fn configure_pod(&self, pod: &PodSpec, network: m::Network) -> Result<(), PodError> {
        let request = m::ConfigurePodRequest {
            hostname: pod.hostname.clone(),
            shares: vec![m::Share {
                tag: SHARE_TAG.into(),
                mount_point: SHARE_MOUNT_POINT.into(),
                ..Default::default()
            }],
            sysctls: pod.sysctls.clone().into_iter().collect(),
            host_time_nanos: nanos_since_epoch(SystemTime::now()),
            entropy: entropy()?,
            resolv_conf: pod.resolv_conf.clone(),
            network: protobuf::MessageField::some(network),
            ..Default::default()
        };
        let rpc = |client: AgentClient, context| async move { client.configure_pod(context, &request).await };
        self.call("set up the pod", Patience::WhileItMoves, rpc).await.map(drop)
    }

    pub(crate) async fn update_network(&self, network: m::Network) -> Result<(), PodError> {
        let request = m::UpdateNetworkRequest { network: protobuf::MessageField::some(network), ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.update_network(context, &request).await };
        self.call("change the network", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn create_container(&self, request: m::CreateContainerRequest) -> Result<u32, PodError> {
        let rpc = |client: AgentClient, context| async move { client.create_container(context, &request).await };
        self.call("create the container", Patience::WhileItMoves, rpc).await.map(|made| made.pid)
    }

    pub(crate) async fn add_exec(&self, request: m::AddExecRequest) -> Result<(), PodError> {
        let rpc = |client: AgentClient, context| async move { client.add_exec(context, &request).await };
        self.call("register the exec", Patience::WhileItMoves, rpc).await.map(drop)
    }

    pub(crate) async fn start(&self, process: &ProcessId) -> Result<u32, PodError> {
        let request = m::StartRequest { process: wire(process), ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.start(context, &request).await };
        self.call("start the process", Patience::WhileItMoves, rpc).await.map(|started| started.pid)
    }

    pub(crate) async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), PodError> {
        let request = m::SignalRequest { process: wire(process), signal, all, ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.signal(context, &request).await };
        self.call("signal the process", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    /// Waits for the end of a process, without a deadline.
    pub(crate) async fn wait(&self, process: &ProcessId) -> Result<Exit, PodError> {
        let request = m::WaitRequest { process: wire(process), ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.wait(context, &request).await };
        let ended = self.call("wait for the process", Patience::ForEver, rpc).await?;
        Ok(Exit { status: ended.exit_status & 0xff, at: SystemTime::now(), oom_killed: ended.oom_killed })
    }

    pub(crate) async fn resize(&self, process: &ProcessId, columns: u16, rows: u16) -> Result<(), PodError> {
        let request = m::ResizeRequest {
            process: wire(process),
            columns: columns.into(),
            rows: rows.into(),
            ..Default::default()
        };
        let rpc = |client: AgentClient, context| async move { client.resize(context, &request).await };
        self.call("resize the terminal", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn delete(&self, process: &ProcessId) -> Result<(), PodError> {
        let request = m::DeleteRequest { process: wire(process), ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.delete(context, &request).await };
        self.call("delete the process", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn pids(&self, container_id: &str) -> Result<Vec<u32>, PodError> {
        let request = container(container_id);
        let rpc = |client: AgentClient, context| async move { client.pids(context, &request).await };
        let mut pids = self.call("list the processes", Patience::Within(CALL_DEADLINE), rpc).await?.pids;
        pids.truncate(PIDS_MAX);
        pids.shrink_to_fit();
        Ok(pids)
    }

    pub(crate) async fn stats(&self, container_id: &str) -> Result<m::StatsResponse, PodError> {
        let request = container(container_id);
        let rpc = |client: AgentClient, context| async move { client.stats(context, &request).await };
        self.call("read the statistics", Patience::Within(CALL_DEADLINE), rpc).await
    }

    /// Waits for news of the guest's OOM killer, without a deadline. The name is the guest's word.
    pub(crate) async fn next_oom(&self) -> Result<String, PodError> {
        let rpc = |client: AgentClient, context| async move { client.next_oom(context, &m::Empty::new()).await };
        self.call("tell of kills", Patience::ForEver, rpc).await.map(|event| event.container_id)
    }

    pub(crate) async fn update(&self, container_id: &str, oci_resources: Vec<u8>) -> Result<(), PodError> {
        let request = m::UpdateRequest { container_id: container_id.to_owned(), oci_resources, ..Default::default() };
        let rpc = |client: AgentClient, context| async move { client.update(context, &request).await };
        self.call("change the limits", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn pause(&self, container_id: &str) -> Result<(), PodError> {
        let request = container(container_id);
        let rpc = |client: AgentClient, context| async move { client.pause(context, &request).await };
        self.call("pause the container", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn resume(&self, container_id: &str) -> Result<(), PodError> {
        let request = container(container_id);
        let rpc = |client: AgentClient, context| async move { client.resume(context, &request).await };
        self.call("resume the container", Patience::Within(CALL_DEADLINE), rpc).await.map(drop)
    }

    pub(crate) async fn describe(&self) -> Result<m::DescribeResponse, PodError> {
        let rpc = |client: AgentClient, context| async move { client.describe(context, &m::Empty::new()).await };
        self.call("describe the guest", Patience::Within(CALL_DEADLINE), rpc).await
    }

    pub(crate) async fn power_off(&self) -> Result<(), PodError> {
        let rpc = |client: AgentClient, context| async move { client.power_off(context, &m::Empty::new()).await };
        self.call("switch the machine off", Patience::Within(POWER_OFF_DEADLINE), rpc).await.map(drop)
    }
}

/// The agent does not do what it was asked to.
fn no_answer(what: &str, why: &str) -> PodError {
    PodError::new(ErrorKind::DeadlineExceeded, format!("the agent in the guest did not {what}: {why}"))
}

/// The agent's connection broke: usually because the machine is ending, which then tells the better story. If it is not, it is of no use any more.
async fn call_broken(machine: &Machine, cause: &str) -> PodError {
    let sentence = match tokio::time::timeout(WHY_DEADLINE, machine.gone()).await {
        Ok(sentence) => sentence,
        Err(_) => {
            machine.condemn(format!("the connection to the agent in the guest broke: {cause}"));
            machine.gone().await
        }
    };
    Machine::gone_error(&sentence)
}

/// The agent's own words, as they are: fronts show them, and people know them from other runtimes.
fn agent_error(status: &ttrpc::Status) -> PodError {
    let kind = match status.code() {
        Code::NOT_FOUND => ErrorKind::NotFound,
        Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
        Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        Code::FAILED_PRECONDITION => ErrorKind::FailedPrecondition,
        Code::UNIMPLEMENTED => ErrorKind::Unimplemented,
        Code::DEADLINE_EXCEEDED => ErrorKind::DeadlineExceeded,
        Code::UNAVAILABLE => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    PodError::new(kind, guest_text(status.message().as_bytes(), MESSAGE_CHARS_MAX))
}

/// A process's name on the wire.
pub(crate) fn wire(process: &ProcessId) -> protobuf::MessageField<m::ProcessId> {
    protobuf::MessageField::some(m::ProcessId {
        container_id: process.container_id.clone(),
        exec_id: process.exec_id.clone(),
        ..Default::default()
    })
}

fn container(id: &str) -> m::ContainerRequest {
    m::ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn nanos_since_epoch(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn entropy() -> Result<Vec<u8>, PodError> {
    let mut bytes = vec![0u8; ENTROPY_LEN];
    let len = rustix::rand::getrandom(bytes.as_mut_slice(), GetRandomFlags::empty())
        .map_err(|errno| PodError::host("cannot draw random bytes for the guest", std::io::Error::from(errno)))?;
    bytes.truncate(len);
    Ok(bytes)
}
