//! The ttrpc service: each request is parsed, becomes one message to its owner, and its answer one status.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_protocol::{messages as m, service::Agent};
use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use protobuf::MessageField;
use serde_json::from_slice;
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};
use ttrpc::r#async::TtrpcContext;

use crate::{
    call::Farewell,
    configure::Configuration,
    containers::{Containers, PidsOf, ProcessName},
    describe::describe,
    home::Home,
    launch::{Launcher, StdioRequest},
    network::{Network, Places},
    process::Exit,
    reaper::Reaper,
    refusal::{Refusal, Source},
    runtime::{Runtime, Size},
    shared_memory,
    streams::Streams,
    sys,
};

/// Longest wait for killed processes and for the file systems at the end; the host kills the machine soon after anyway.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// The agent's service; clones share one table of containers.
#[derive(Clone)]
pub struct Service {
    containers: Containers,
    streams: Streams,
    home: Arc<Home>,
    farewell: Farewell,
    /// Held while the network is changed: one change does not see half of another.
    network: Arc<Mutex<()>>,
}

type Answer<T> = ttrpc::Result<T>;

impl Service {
    /// Starts the table of containers and the reaper. Call inside the runtime; once in a process that owns its machine.
    pub fn start(home: Home, runtime: Arc<dyn Runtime>) -> std::io::Result<Self> {
        let children = Reaper::listen()?;
        let reaper = Reaper::new(home.family);
        tokio::spawn(reaper.clone().run(children));
        let streams = Streams::default();
        let launcher = Launcher { runtime, streams: streams.clone(), reaper };
        let containers = Containers::start(launcher, home.owns_machine);
        let (home, farewell, network) = (Arc::new(home), Farewell::default(), Arc::default());
        Ok(Self { containers, streams, home, farewell, network })
    }

    /// Where stdio connections are to be introduced.
    pub fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Set by PowerOff.
    pub fn farewell(&self) -> Farewell {
        self.farewell.clone()
    }

    /// Containers see it where their specification binds it.
    async fn size_shared_memory(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes == 0 || !self.home.owns_machine {
            return Ok(());
        }
        let sized = spawn_blocking(move || shared_memory::set_size(bytes)).await;
        let failed = |error: Source| Refusal::failed(format!("give the pod {bytes} bytes of shared memory"), error);
        sized.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))
    }

    /// The change goes on when who asked for it does not wait any more.
    async fn change_network(&self, wanted: Network) -> Result<(), Refusal> {
        let turn = self.network.clone().lock_owned().await;
        let failed = |error: Source| Refusal::failed("change the pod's network", error);
        let changed = spawn_blocking(move || {
            let _turn = turn;
            let places = Places::of_the_machine();
            wanted.let_go_of_others(&places)?;
            wanted.apply(&places)
        });
        changed.await.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))
    }

    /// Kills everything and writes back what the file systems hold, within a deadline each.
    pub async fn end(&self) {
        match timeout(END_DEADLINE, self.containers.end()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("containers may be left over: {}", crate::refusal::with_sources(&error)),
            Err(_late) => log::warn!("processes live {} s after they were killed", END_DEADLINE.as_secs()),
        }
        if self.home.owns_machine && timeout(END_DEADLINE, spawn_blocking(rustix::fs::sync)).await.is_err() {
            log::warn!(
                "file systems are not written back after {} s: is the file server gone?",
                END_DEADLINE.as_secs()
            );
        }
    }
}

#[async_trait]
impl Agent for Service {
    async fn configure_pod(
        &self,
        _: &TtrpcContext,
        request: m::ConfigurePodRequest,
    ) -> Answer<m::ConfigurePodResponse> {
        let home = self.home.clone();
        let configured = spawn_blocking(move || Configuration::parse(request, &home)?.apply(&home)).await;
        match configured {
            Ok(Ok(())) => Ok(m::ConfigurePodResponse::new()),
            Ok(Err(error)) if error.is_invalid() => Err(Refusal::invalid("the pod's configuration", error).into()),
            Ok(Err(error)) => Err(Refusal::failed("configure the pod", error).into()),
            Err(error) => Err(Refusal::failed("configure the pod", error).into()),
        }
    }

    async fn update_network(&self, _: &TtrpcContext, request: m::UpdateNetworkRequest) -> Answer<m::Empty> {
        let wanted = Network::parse(&request.network).map_err(|error| Refusal::invalid("the pod's network", error))?;
        if !self.home.owns_machine {
            let source = "this agent is a guest of a process whose network is not a pod's".into();
            return Err(Refusal::Unsupported { what: "a change of the network".to_owned(), source }.into());
        }
        self.change_network(wanted).await?;
        Ok(m::Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: m::CreateContainerRequest,
    ) -> Answer<m::CreateContainerResponse> {
        let spec: Spec = from_slice(&request.oci_spec).map_err(|error| Refusal::invalid("config.json", error))?;
        let stdio = stdio(&request.stdio, request.columns, request.rows)?;
        self.size_shared_memory(request.shared_memory_bytes).await?;
        let pids_of = pids_of(request.pids_of, request.pids_of_pod)?;
        let pid = self.containers.create(request.container_id, Box::new(spec), pids_of, stdio).await?;
        Ok(m::CreateContainerResponse { pid, ..Default::default() })
    }

    async fn add_exec(&self, _: &TtrpcContext, request: m::AddExecRequest) -> Answer<m::Empty> {
        let process: Process =
            from_slice(&request.oci_process).map_err(|error| Refusal::invalid("the process", error))?;
        let stdio = stdio(&request.stdio, request.columns, request.rows)?;
        self.containers.add_exec(name(request.process)?, Box::new(process), stdio).await?;
        Ok(m::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: m::StartRequest) -> Answer<m::StartResponse> {
        let pid = self.containers.start_process(name(request.process)?).await?;
        Ok(m::StartResponse { pid, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: m::SignalRequest) -> Answer<m::Empty> {
        let signal = sys::signal(request.signal).ok_or_else(|| {
            Refusal::invalid(format!("signal {}", request.signal), "signals have the numbers 1 to 64")
        })?;
        self.containers.signal(name(request.process)?, signal, request.all).await?;
        Ok(m::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: m::WaitRequest) -> Answer<m::WaitResponse> {
        let exit = self.containers.wait(name(request.process)?).await?;
        Ok(m::WaitResponse {
            exit_status: exit.status,
            exited_at_nanos: nanos(exit),
            oom_killed: exit.oom_killed,
            ..Default::default()
        })
    }

    async fn resize(&self, _: &TtrpcContext, request: m::ResizeRequest) -> Answer<m::Empty> {
        let size = size(request.columns, request.rows)?;
        self.containers.resize(name(request.process)?, size).await?;
        Ok(m::Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: m::DeleteRequest) -> Answer<m::DeleteResponse> {
        let deleted = self.containers.delete(name(request.process)?).await?;
        Ok(m::DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.status,
            exited_at_nanos: nanos(deleted.exit),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: m::ContainerRequest) -> Answer<m::PidsResponse> {
        let pids = self.containers.pids(request.container_id).await?;
        Ok(m::PidsResponse { pids, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: m::ContainerRequest) -> Answer<m::StatsResponse> {
        Ok(self.containers.stats(request.container_id).await?)
    }

    async fn next_oom(&self, _: &TtrpcContext, _: m::Empty) -> Answer<m::OomEvent> {
        let kills = self.containers.next_oom().await;
        Ok(m::OomEvent { container_id: kills.container, kills: kills.count, ..Default::default() })
    }

    async fn update(&self, _: &TtrpcContext, request: m::UpdateRequest) -> Answer<m::Empty> {
        let resources: LinuxResources =
            from_slice(&request.oci_resources).map_err(|error| Refusal::invalid("the resources", error))?;
        self.containers.update(request.container_id, resources).await?;
        Ok(m::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: m::ContainerRequest) -> Answer<m::Empty> {
        self.containers.freeze(request.container_id, true).await?;
        Ok(m::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: m::ContainerRequest) -> Answer<m::Empty> {
        self.containers.freeze(request.container_id, false).await?;
        Ok(m::Empty::new())
    }

    async fn describe(&self, _: &TtrpcContext, _: m::Empty) -> Answer<m::DescribeResponse> {
        Ok(describe())
    }

    async fn power_off(&self, _: &TtrpcContext, _: m::Empty) -> Answer<m::Empty> {
        self.end().await;
        self.farewell.say();
        Ok(m::Empty::new())
    }
}

fn name(process: MessageField<m::ProcessId>) -> Result<ProcessName, Refusal> {
    let process = process.into_option().unwrap_or_default();
    if process.container_id.is_empty() {
        return Err(Refusal::invalid("a process without a container id", "name its container"));
    }
    Ok(ProcessName { container: process.container_id, exec: process.exec_id })
}

fn pids_of(container: String, pod: bool) -> Result<PidsOf, Refusal> {
    match (container.is_empty(), pod) {
        (true, false) => Ok(PidsOf::Itself),
        (true, true) => Ok(PidsOf::Pod),
        (false, false) => Ok(PidsOf::Container(container)),
        (false, true) => Err(Refusal::invalid("the pid namespace", "it is the pod's or a container's, not both")),
    }
}

fn stdio(stdio: &m::Stdio, columns: u32, rows: u32) -> Result<StdioRequest, Refusal> {
    let (stdin, stdout, stderr) = (stdio.stdin, stdio.stdout, stdio.stderr);
    Ok(StdioRequest { stdin, stdout, stderr, size: size(columns, rows)? })
}

fn size(columns: u32, rows: u32) -> Result<Size, Refusal> {
    let narrow = |number: u32| u16::try_from(number).map_err(|error| Refusal::invalid("the terminal's size", error));
    Ok(Size { columns: narrow(columns)?, rows: narrow(rows)? })
}

fn nanos(exit: Exit) -> u64 {
    let since = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The other way round, for the host's side of tests.
pub fn time_of_nanos(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}
