//! A host that talks to the real service over a socketpair.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test binary uses its part, and a failed step fails its test"
)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use agent::{call, home::Home, plain::PlainProcesses, runtime::Runtime, service::Service, streams::Streams};
use agent_protocol::{messages as m, service::AgentClient, stream_header};
use protobuf::MessageField;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use ttrpc::{Code, asynchronous::Client, asynchronous::transport::Socket, context};

/// What a host has: the client, and a way to connect streams.
pub struct Host {
    pub client: AgentClient,
    streams: Streams,
    pub served: Option<JoinHandle<Result<(), call::CallError>>>,
    _run: tempfile::TempDir,
}

/// Longest that any step of these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

impl Host {
    /// With ordinary processes.
    pub fn new() -> Self {
        Self::with(Arc::new(PlainProcesses))
    }

    pub fn with(runtime: Arc<dyn Runtime>) -> Self {
        let run = tempfile::tempdir().unwrap();
        let home = Home::guest_of_process(run.path().to_owned());
        let service = Service::start(home, runtime).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let streams = service.streams();
        let served = Some(tokio::spawn(call::serve(service, theirs.into())));
        ours.set_nonblocking(true).unwrap();
        let socket = Socket::new(tokio::net::UnixStream::from_std(ours).unwrap());
        Self { client: AgentClient::new(Client::new(socket)), streams, served, _run: run }
    }

    pub fn connect(&self, number: u64) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&stream_header(number)).unwrap();
        tokio::spawn(self.streams.clone().introduce(theirs.into()));
        ours
    }

    pub async fn create(&self, id: &str, script: &str, stdio: m::Stdio) -> ttrpc::Result<u32> {
        self.create_from(id, spec(&["/bin/sh", "-c", script], false), stdio).await
    }

    pub async fn create_from(&self, id: &str, oci_spec: Vec<u8>, stdio: m::Stdio) -> ttrpc::Result<u32> {
        let stdio = MessageField::some(stdio);
        let request = m::CreateContainerRequest { container_id: id.into(), oci_spec, stdio, ..Default::default() };
        self.client.create_container(soon(), &request).await.map(|created| created.pid)
    }

    pub async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = m::StartRequest { process: process(id, exec), ..Default::default() };
        self.client.start(soon(), &request).await.map(|started| started.pid)
    }

    pub async fn run(&self, id: &str, script: &str) -> u32 {
        self.create(id, script, m::Stdio::new()).await.unwrap();
        self.start(id, "").await.unwrap()
    }

    pub async fn add_exec(&self, id: &str, exec: &str, program: &[&str]) -> ttrpc::Result<m::Empty> {
        let oci_process =
            serde_json::to_vec(&serde_json::json!({ "args": program, "user": { "uid": 0, "gid": 0 }, "cwd": "/" }))
                .unwrap();
        let request = m::AddExecRequest { process: process(id, exec), oci_process, ..Default::default() };
        self.client.add_exec(soon(), &request).await
    }

    pub async fn signal(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<m::Empty> {
        let request = m::SignalRequest { process: process(id, exec), signal, ..Default::default() };
        self.client.signal(soon(), &request).await
    }

    pub fn wait(&self, id: &str, exec: &str) -> JoinHandle<ttrpc::Result<m::WaitResponse>> {
        let client = self.client.clone();
        let request = m::WaitRequest { process: process(id, exec), ..Default::default() };
        tokio::spawn(async move { client.wait(context::with_timeout(0), &request).await })
    }

    pub async fn status(&self, id: &str, exec: &str) -> u32 {
        timeout(PATIENCE, self.wait(id, exec)).await.unwrap().unwrap().unwrap().exit_status
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<m::DeleteResponse> {
        let request = m::DeleteRequest { process: process(id, exec), ..Default::default() };
        self.client.delete(soon(), &request).await
    }
}

pub fn soon() -> context::Context {
    context::with_timeout(i64::try_from(PATIENCE.as_nanos()).unwrap())
}

pub fn process(id: &str, exec: &str) -> MessageField<m::ProcessId> {
    MessageField::some(m::ProcessId { container_id: id.into(), exec_id: exec.into(), ..Default::default() })
}

pub fn spec(args: &[&str], terminal: bool) -> Vec<u8> {
    let process = serde_json::json!({ "args": args, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "terminal": terminal, "env": ["PATH=/usr/bin:/bin"] });
    let spec = serde_json::json!({ "ociVersion": "1.2.0", "process": process, "root": { "path": "/" } });
    serde_json::to_vec(&spec).unwrap()
}

pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result.expect_err("refused") {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("a status, not {other}"),
    }
}

pub fn read_all(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}
