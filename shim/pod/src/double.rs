//! A machine inside a test: takes the VMM's ends of everything and serves the agent's real service on them. Its containers are wishes in the
//! first argument of the process (see [`Wish`]); its files are a list of the orders that the share got.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::net},
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use agent_protocol::{
    Forward, Hello,
    forward::JOINED,
    messages as m,
    service::{Agent, create_agent},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Notify, oneshot, watch},
};
use ttrpc::r#async::{Server, TtrpcContext, transport};
use vmm_control::{
    CONTROL_FD, ConsoleSpec, Ending, FromMachine, MachineSpec, Report, ToMachine, VsockSpec, descriptors, frame,
};

use crate::{
    PodError, PodSpec,
    launcher::{Launcher, MachineEnds, tell_what_to_boot},
    process::Spawned,
    record::Carried,
    share::{Order, ServerReady, ServerStart, Share},
    streams::read_line,
};

/// How the double behaves before there are containers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// What is said instead of the right hello; `Some(vec![])` is silence.
    pub hello: Option<Vec<u8>>,
    /// So many reports, each of which shows a machine that has moved, come before the hello.
    pub moves_before_hello: u64,
    /// The machine ends so, instead of a hello.
    pub ends: Option<Ending>,
    /// What the console shows.
    pub console: &'static str,
    /// The file server cannot be started.
    pub server_fails: bool,
    /// The agent refuses to set up the pod.
    pub configure_fails: bool,
    /// The spawn fails.
    pub spawn_fails: bool,
}

/// What the double saw, for assertions.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Orders to the share.
    pub shares: Vec<String>,
    /// Host name that the agent was told.
    pub hostname: String,
    /// Network that the agent was told.
    pub network: m::Network,
    /// Queues of each network device that the machine got.
    pub queues: Vec<usize>,
    /// The network namespace in which the machine was started.
    pub namespace: Option<File>,
    /// Guest specs of containers.
    pub specs: Vec<serde_json::Value>,
    /// The guest was told to power off.
    pub powered_off: bool,
}

/// The double: a launcher that starts nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Double {
    pub script: Script,
    pub seen: Arc<Mutex<Seen>>,
    /// Ends the machine, like a panic of the guest.
    pub crash: Arc<Notify>,
    /// The agent was told of a changed network.
    pub network_changed: Arc<Notify>,
}

impl Double {
    pub(crate) fn with(script: Script) -> Self {
        Self { script, ..Self::default() }
    }
}

impl Launcher for Double {
    fn start(
        &self,
        pod: &PodSpec,
        control: &mut net::UnixStream,
        ends: MachineEnds,
        _: &Carried,
    ) -> Result<Option<Arc<Spawned>>, PodError> {
        if self.script.spawn_fails {
            return Err(PodError::host("cannot spawn the double", io::Error::from_raw_os_error(2)));
        }
        tell_what_to_boot(control, some_spec(pod))?;
        self.seen.lock().expect("whole").namespace = File::open("/proc/thread-self/ns/net").ok();
        self.seen.lock().expect("whole").queues = ends.networks.iter().map(|device| device.taps.len()).collect();
        tokio::runtime::Handle::current().spawn(live(self.clone(), ends));
        Ok(None)
    }

    fn share(&self, _: &Path, server: ServerStart) -> io::Result<(Share, ServerReady)> {
        let (orders, inbox) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        let answer = if self.script.server_fails {
            Err(PodError::host("cannot start the file server", io::Error::from_raw_os_error(13)))
        } else {
            Ok(None)
        };
        let _ = ready.send(answer);
        let seen = Arc::clone(&self.seen);
        std::thread::spawn(move || {
            let _server = server;
            while let Ok(order) = inbox.recv() {
                let mut seen = seen.lock().expect("whole");
                match order {
                    Order::Add(plan, reply) => {
                        seen.shares.push(format!("add {}", plan.container_id));
                        let _ = reply.send(Ok(()));
                    }
                    Order::Remove(id, reply) => {
                        seen.shares.push(format!("remove {id}"));
                        let _ = reply.send(Ok(()));
                    }
                    Order::End(reply) => {
                        seen.shares.push("end".to_owned());
                        return drop(reply.send(Vec::new()));
                    }
                }
            }
        });
        Ok((Share::ordered_by(orders), is_ready))
    }
}

fn some_spec(pod: &PodSpec) -> MachineSpec {
    MachineSpec {
        kvm: CONTROL_FD + 1,
        vcpus: pod.vcpus,
        memory_mib: pod.memory_mib,
        kernels: vec![],
        extra_cmdline: String::new(),
        disks: vec![],
        vsock: VsockSpec { cid: 3, hybrid: 5, calls: vec![] },
        shares: vec![],
        networks: vec![],
        network_places: 0,
        console: ConsoleSpec { output: 6 },
    }
}

fn stream(fd: OwnedFd) -> UnixStream {
    let stream = net::UnixStream::from(fd);
    stream.set_nonblocking(true).expect("a socket");
    UnixStream::from_std(stream).expect("in a runtime")
}

/// The machine's life.
async fn live(double: Double, ends: MachineEnds) {
    let MachineEnds { control, call, hybrid, console, share: _share, networks, network_places, stderr: _stderr } = ends;
    let mut networks: Vec<Option<Vec<OwnedFd>>> = networks.into_iter().map(|device| Some(device.taps)).collect();
    networks.extend((0..network_places).map(|_| None));
    let mut control = stream(control);
    assert!(matches!(hear(&mut control).await, Some(ToMachine::Boot(_))), "the first message is Boot");
    std::fs::File::from(console).write_all(double.script.console.as_bytes()).expect("room in the pipe");
    if let Some(ending) = double.script.ends.clone() {
        return say(&mut control, &FromMachine::Ended(ending)).await;
    }
    for step in 0..double.script.moves_before_hello {
        assert_eq!(hear(&mut control).await, Some(ToMachine::Report));
        say(&mut control, &FromMachine::Report(Report { memory_touched_bytes: step, ..Report::default() })).await;
    }
    let mut call = stream(call);
    let hello = double.script.hello.clone().unwrap_or_else(|| Hello::ours("0.0.0-double").to_line().into_bytes());
    call.write_all(&hello).await.expect("the pod listens");
    let agent = Arc::new(FakeAgent {
        seen: Arc::clone(&double.seen),
        crash: Arc::clone(&double.crash),
        network_changed: Arc::clone(&double.network_changed),
        ..FakeAgent::default()
    });
    tokio::spawn(accept_streams(net::UnixListener::from(hybrid), Arc::clone(&agent)));
    let calls = futures::stream::iter([Ok::<_, io::Error>(call)]);
    let calls = futures::StreamExt::chain(calls, futures::stream::pending());
    let mut server = Server::new().add_listener(transport::Listener::new(calls)).register_service(create_agent(agent));
    server.start().await.expect("serving");
    let ending = loop {
        tokio::select! {
            message = hear(&mut control) => match message {
                Some(ToMachine::Stop) => break Ending::Stopped,
                Some(ToMachine::Report) => say(&mut control, &FromMachine::Report(Report { kernel_bytes: 7, ..Report::default() })).await,
                Some(ToMachine::AttachNetwork { place, taps, .. }) => {
                    control.readable().await.expect("the taps come");
                    networks[place] = Some(descriptors::receive(&control, taps).expect("so many"));
                    double.seen.lock().expect("whole").queues.push(taps);
                    say(&mut control, &FromMachine::NetworkChanged { place, failure: None }).await;
                }
                Some(ToMachine::DetachNetwork { place }) => {
                    let failure = networks[place].take().is_none().then(|| "nothing is there".to_owned());
                    say(&mut control, &FromMachine::NetworkChanged { place, failure }).await;
                }
                _ => return server.disconnect().await,
            },
            () = double.crash.notified() => break Ending::GuestReset,
        }
    };
    drop(networks);
    say(&mut control, &FromMachine::Ended(ending)).await;
    server.disconnect().await;
}

async fn hear(control: &mut UnixStream) -> Option<ToMachine> {
    let mut prefix = [0; 4];
    control.read_exact(&mut prefix).await.ok()?;
    let mut body = vec![0; frame::body_len(prefix).ok()?];
    control.read_exact(&mut body).await.ok()?;
    frame::decode(&body).ok()
}

async fn say(control: &mut UnixStream, message: &FromMachine) {
    let _ = control.write_all(&frame::encode(message).expect("small")).await;
}

async fn accept_streams(listener: net::UnixListener, agent: Arc<FakeAgent>) {
    listener.set_nonblocking(true).expect("a socket");
    let listener = UnixListener::from_std(listener).expect("in a runtime");
    while let Ok((mut stream, _)) = listener.accept().await {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            assert_eq!(read_line(&mut stream, 32).await.expect("a line"), "CONNECT 1025\n");
            stream.write_all(b"OK 5000\n").await.expect("answered");
            let number = stream.read_u64().await.expect("a header");
            if Forward::of(number).is_some() {
                return echo(stream).await;
            }
            agent.streams.lock().expect("whole").insert(number, stream);
        });
    }
}

/// Every port of the guest has a server that says what it hears.
async fn echo(mut stream: UnixStream) {
    stream.write_all(&[JOINED]).await.expect("told");
    let (mut heard, mut said) = stream.split();
    tokio::io::copy(&mut heard, &mut said).await.expect("echoed");
}

/// What a process of the double does, from its first argument.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    /// `exit N`: ends with N at once.
    Exit(u32),
    /// `cat`: copies stdin to stdout, then ends with 0.
    Cat,
    /// `sleep`: runs until it is signalled.
    Sleep,
    /// `missing`: cannot be started.
    Missing,
    /// `hang`: making it is never answered.
    Hang,
    /// `crash`: the machine dies when it is started.
    Crash,
    /// `deaf`: signals to it, and its delete, are never answered.
    Deaf,
    /// `undead`: takes every signal, and its end is never told.
    Undead,
    /// `tombstone`: ends at once, and its delete is never answered.
    Tombstone,
}

impl Wish {
    fn of(process: &serde_json::Value) -> Self {
        let arguments: Vec<&str> =
            process["args"].as_array().expect("args").iter().filter_map(|a| a.as_str()).collect();
        match arguments[..] {
            ["exit", status] => Self::Exit(status.parse().expect("a number")),
            ["cat"] => Self::Cat,
            ["sleep"] => Self::Sleep,
            ["missing"] => Self::Missing,
            ["hang"] => Self::Hang,
            ["crash"] => Self::Crash,
            ["deaf"] => Self::Deaf,
            ["undead"] => Self::Undead,
            ["tombstone"] => Self::Tombstone,
            _ => panic!("no such wish: {arguments:?}"),
        }
    }
}

type Key = (String, String);

#[derive(Debug)]
struct FakeProcess {
    wish: Wish,
    stdio: m::Stdio,
    exit: watch::Sender<Option<u32>>,
}

#[derive(Debug, Default)]
struct FakeAgent {
    seen: Arc<Mutex<Seen>>,
    crash: Arc<Notify>,
    network_changed: Arc<Notify>,
    streams: Mutex<BTreeMap<u64, UnixStream>>,
    processes: Mutex<BTreeMap<Key, FakeProcess>>,
}

fn key(process: &m::ProcessId) -> Key {
    (process.container_id.clone(), process.exec_id.clone())
}

fn status<T>(code: ttrpc::Code, message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
}

impl FakeAgent {
    fn add(&self, key: Key, process: &serde_json::Value, stdio: m::Stdio) {
        let process = FakeProcess { wish: Wish::of(process), stdio, exit: watch::channel(None).0 };
        self.processes.lock().expect("whole").insert(key, process);
    }

    /// Waits for ever on behalf of a deaf process.
    async fn deafness(&self, key: &Key) {
        let deaf = |p: &FakeProcess| matches!(p.wish, Wish::Deaf | Wish::Tombstone);
        let deaf = self.processes.lock().expect("whole").get(key).is_some_and(deaf);
        if deaf {
            std::future::pending::<()>().await;
        }
    }

    fn is_undead(&self, key: &Key) -> bool {
        self.processes.lock().expect("whole").get(key).is_some_and(|process| process.wish == Wish::Undead)
    }

    fn exit_of(&self, key: &Key) -> ttrpc::Result<watch::Sender<Option<u32>>> {
        match self.processes.lock().expect("whole").get(key) {
            Some(process) => Ok(process.exit.clone()),
            None => status(ttrpc::Code::NOT_FOUND, "no such process"),
        }
    }
}

#[async_trait::async_trait]
impl Agent for FakeAgent {
    async fn configure_pod(
        &self,
        _: &TtrpcContext,
        request: m::ConfigurePodRequest,
    ) -> ttrpc::Result<m::ConfigurePodResponse> {
        let mut seen = self.seen.lock().expect("whole");
        seen.hostname = request.hostname.clone();
        seen.network = request.network.clone().unwrap_or_default();
        drop(seen);
        if request.hostname == "refused" {
            return status(ttrpc::Code::INTERNAL, "cannot mount the share: No such device");
        }
        Ok(m::ConfigurePodResponse::new())
    }

    async fn update_network(&self, _: &TtrpcContext, request: m::UpdateNetworkRequest) -> ttrpc::Result<m::Empty> {
        self.seen.lock().expect("whole").network = request.network.clone().unwrap_or_default();
        self.network_changed.notify_one();
        Ok(m::Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: m::CreateContainerRequest,
    ) -> ttrpc::Result<m::CreateContainerResponse> {
        let spec: serde_json::Value = serde_json::from_slice(&request.oci_spec).expect("a spec");
        if Wish::of(&spec["process"]) == Wish::Hang {
            std::future::pending::<()>().await;
        }
        self.add(
            (request.container_id.clone(), String::new()),
            &spec["process"],
            request.stdio.clone().unwrap_or_default(),
        );
        self.seen.lock().expect("whole").specs.push(spec);
        Ok(m::CreateContainerResponse { pid: 42, ..Default::default() })
    }

    async fn add_exec(&self, _: &TtrpcContext, request: m::AddExecRequest) -> ttrpc::Result<m::Empty> {
        let process: serde_json::Value = serde_json::from_slice(&request.oci_process).expect("a process");
        self.add(key(&request.process), &process, request.stdio.clone().unwrap_or_default());
        Ok(m::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: m::StartRequest) -> ttrpc::Result<m::StartResponse> {
        let (wish, stdio) = match self.processes.lock().expect("whole").get(&key(&request.process)) {
            Some(process) => (process.wish.clone(), process.stdio.clone()),
            None => return status(ttrpc::Code::NOT_FOUND, "no such process"),
        };
        let exit = self.exit_of(&key(&request.process))?;
        let take = |number| self.streams.lock().expect("whole").remove(&number);
        let (stdin, stdout) = (take(stdio.stdin), take(stdio.stdout));
        match wish {
            Wish::Tombstone => drop(exit.send_replace(Some(0))),
            Wish::Exit(code) => drop(exit.send_replace(Some(code))),
            Wish::Cat => drop(tokio::spawn(async move {
                let (mut stdin, mut stdout) = (stdin.expect("wanted"), stdout.expect("wanted"));
                tokio::io::copy(&mut stdin, &mut stdout).await.expect("copied");
                drop(stdout);
                exit.send_replace(Some(0));
            })),
            Wish::Missing => {
                return status(ttrpc::Code::NOT_FOUND, "exec: \"missing\": executable file not found in $PATH");
            }
            Wish::Crash => {
                self.crash.notify_one();
                std::future::pending::<()>().await;
            }
            Wish::Sleep | Wish::Hang | Wish::Deaf | Wish::Undead => {}
        }
        Ok(m::StartResponse { pid: 43, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: m::SignalRequest) -> ttrpc::Result<m::Empty> {
        let exit = self.exit_of(&key(&request.process))?;
        self.deafness(&key(&request.process)).await;
        if !self.is_undead(&key(&request.process)) {
            exit.send_replace(Some(128 + request.signal));
        }
        Ok(m::Empty::new())
    }

    /// Far more than there can be.
    async fn pids(&self, _: &TtrpcContext, _: m::ContainerRequest) -> ttrpc::Result<m::PidsResponse> {
        Ok(m::PidsResponse { pids: (1..1_000_000).collect(), ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        let mut exit = self.exit_of(&key(&request.process))?.subscribe();
        let status = exit.wait_for(Option::is_some).await.expect("kept").expect("is some");
        Ok(m::WaitResponse { exit_status: status, exited_at_nanos: u64::MAX, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: m::DeleteRequest) -> ttrpc::Result<m::DeleteResponse> {
        self.deafness(&key(&request.process)).await;
        let removed = self.processes.lock().expect("whole").remove(&key(&request.process));
        if removed.is_some() { Ok(m::DeleteResponse::new()) } else { status(ttrpc::Code::NOT_FOUND, "no such process") }
    }

    async fn power_off(&self, _: &TtrpcContext, _: m::Empty) -> ttrpc::Result<m::Empty> {
        self.seen.lock().expect("whole").powered_off = true;
        self.crash.notify_one();
        Ok(m::Empty::new())
    }
}
