//! The sandbox service over a real socket with real clients, in front of a pod that is not there: calls in containerd's own order, and in
//! every other.

mod fake_pod;

use std::{sync::Arc, time::Duration};

use containerd_shim_protos::{
    api::{ConnectRequest, ShutdownRequest, Status},
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    sandbox_api::{
        CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
        WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::SandboxClient,
    shim_async::TaskClient,
};
use fake_pod::{FakePod, Shim, VMM_PID, code, connect, delete, quick};
use pod::ErrorKind;
use protobuf::{Message, well_known_types::any::Any};
use shim::{refusal::Refusal, sandbox_config::PodSandboxConfig};
use tokio::{task::JoinHandle, time::timeout};
use ttrpc::Code;

/// The name of the pod of the fake shim.
const ID: &str = "c";

fn create(shim: &Shim) -> CreateSandboxRequest {
    let bundle_path = shim.dir.path().display().to_string();
    CreateSandboxRequest { sandbox_id: ID.into(), bundle_path, ..CreateSandboxRequest::default() }
}

async fn start(shim: &Shim) -> ttrpc::Result<StartSandboxResponse> {
    let request = StartSandboxRequest { sandbox_id: ID.into(), ..StartSandboxRequest::default() };
    shim.sandbox.start_sandbox(quick(), &request).await
}

async fn status(shim: &Shim) -> ttrpc::Result<SandboxStatusResponse> {
    let request = SandboxStatusRequest { sandbox_id: ID.into(), verbose: true, ..SandboxStatusRequest::default() };
    shim.sandbox.sandbox_status(quick(), &request).await
}

async fn stop(shim: &Shim, timeout_secs: u32) -> ttrpc::Result<()> {
    let request = StopSandboxRequest { sandbox_id: ID.into(), timeout_secs, ..StopSandboxRequest::default() };
    shim.sandbox.stop_sandbox(quick(), &request).await.map(drop)
}

async fn ping(shim: &Shim) -> ttrpc::Result<()> {
    let request = PingRequest { sandbox_id: ID.into(), ..PingRequest::default() };
    shim.sandbox.ping_sandbox(quick(), &request).await.map(drop)
}

async fn shut_down(shim: &Shim) -> ttrpc::Result<()> {
    let request = ShutdownSandboxRequest { sandbox_id: ID.into(), ..ShutdownSandboxRequest::default() };
    shim.sandbox.shutdown_sandbox(quick(), &request).await.map(drop)
}

async fn waiting(shim: &Shim) -> JoinHandle<ttrpc::Result<WaitSandboxResponse>> {
    let client = SandboxClient::new(connect(&shim.socket()).await);
    let request = WaitSandboxRequest { sandbox_id: ID.into(), ..WaitSandboxRequest::default() };
    tokio::spawn(async move { client.wait_sandbox(quick(), &request).await })
}

async fn ready() -> Shim {
    let (shim, _requests) = Shim::start_awaited().await;
    shim.sandbox.create_sandbox(quick(), &create(&shim)).await.expect("created");
    start(&shim).await.expect("started");
    shim
}

async fn exit_of(waiter: JoinHandle<ttrpc::Result<WaitSandboxResponse>>) -> u32 {
    let exit = timeout(Duration::from_secs(10), waiter).await.expect("released").expect("ran").expect("answered");
    assert!(exit.exited_at.seconds > 0);
    exit.exit_status
}

#[tokio::test]
async fn a_sandbox_lives_as_containerd_asks() {
    let (shim, mut requests) = Shim::start_awaited().await;
    let config = PodSandboxConfig { hostname: "web-0".into(), ..PodSandboxConfig::default() };
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: config.write_to_bytes().expect("bytes"),
        ..Any::default()
    };
    let request = CreateSandboxRequest { options: Some(options).into(), ..create(&shim) };
    shim.sandbox.create_sandbox(quick(), &request).await.expect("created");
    assert_eq!(requests.recv().await.expect("asked").hostname.as_deref(), Some("web-0"));
    assert_eq!(status(&shim).await.expect("status").state, "SANDBOX_NOTREADY");

    let started = start(&shim).await.expect("started");
    assert_eq!(started.pid, VMM_PID);
    let waiter = waiting(&shim).await;
    let now = status(&shim).await.expect("status");
    assert_eq!((now.state.as_str(), now.pid, now.sandbox_id.as_str()), ("SANDBOX_READY", VMM_PID, ID));
    assert_eq!(now.created_at, started.created_at);
    let info: serde_json::Value = serde_json::from_str(&now.info["info"]).expect("containerd parses it");
    assert_eq!(info["pid"], VMM_PID);
    ping(&shim).await.expect("alive");
    let platform = shim
        .sandbox
        .platform(quick(), &PlatformRequest { sandbox_id: ID.into(), ..PlatformRequest::default() })
        .await
        .expect("platform");
    assert_eq!((platform.platform.os.as_str(), platform.platform.architecture.as_str()), ("linux", "amd64"));

    stop(&shim, 0).await.expect("stopped");
    assert!(*shim.pod.stopped.borrow());
    assert_eq!(exit_of(waiter).await, 0);
    let after = status(&shim).await.expect("status");
    assert_eq!((after.state.as_str(), after.pid), ("SANDBOX_NOTREADY", 0));
    assert!(after.exited_at.seconds > 0);
    shut_down(&shim).await.expect("shut down");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
    assert!(!shim.socket().exists());
    assert!(shim.topics(0).await.is_empty(), "a sandbox has no events of its own");
}

#[tokio::test]
async fn containers_come_and_go_in_a_sandbox_that_stays() {
    let shim = ready().await;
    shim.run("one").await;
    shim.pod.end(&fake_pod::process("one", ""), 3);
    assert_eq!(shim.wait("one", "").await, 3);
    shim.task.delete(quick(), &delete("one", "")).await.expect("deleted");
    let shutdown = ShutdownRequest { id: "one".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    ping(&shim).await.expect("the sandbox outlives its last container");
    shim.run("two").await;
    assert_eq!(shim.state("two", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
    assert_eq!(shim.topics(6).await[..4], ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

#[tokio::test]
async fn what_runs_when_a_sandbox_is_stopped_has_ended_and_can_be_deleted() {
    let shim = ready().await;
    shim.run("one").await;
    stop(&shim, 0).await.expect("stopped");
    assert_eq!(shim.wait("one", "").await, 137);
    assert_eq!(shim.task.delete(quick(), &delete("one", "")).await.expect("deleted").exit_status, 137);
}

#[tokio::test]
async fn a_stop_with_time_asks_containers_to_end_first() {
    let shim = ready().await;
    shim.run("one").await;
    let pod = Arc::clone(&shim.pod);
    let obedient = tokio::spawn(async move {
        let id = fake_pod::process("one", "");
        while !pod.signals.lock().expect("lock").contains(&(id.clone(), 15, false)) {
            tokio::task::yield_now().await;
        }
        pod.end(&id, 0);
    });
    stop(&shim, 8).await.expect("stopped");
    obedient.await.expect("asked");
    assert_eq!(shim.wait("one", "").await, 0, "it ended by itself");
}

#[tokio::test]
async fn a_containerd_that_was_restarted_finds_the_sandbox_again() {
    let shim = ready().await;
    let again = TaskClient::new(connect(&shim.socket()).await);
    let connect = ConnectRequest { id: ID.into(), ..ConnectRequest::default() };
    assert_eq!(again.connect(quick(), &connect).await.expect("it would be forgotten").task_pid, VMM_PID);
    let stranger = ConnectRequest { id: "other".into(), ..ConnectRequest::default() };
    assert_eq!(code(again.connect(quick(), &stranger).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn calls_before_create_and_for_others_find_nothing() {
    let (shim, _requests) = Shim::start_awaited().await;
    let connect = ConnectRequest { id: ID.into(), ..ConnectRequest::default() };
    assert_eq!(code(shim.task.connect(quick(), &connect).await), Code::NOT_FOUND);
    assert_eq!(code(start(&shim).await), Code::NOT_FOUND);
    assert_eq!(code(status(&shim).await), Code::NOT_FOUND);
    assert_eq!(code(stop(&shim, 0).await), Code::NOT_FOUND);
    assert_eq!(code(ping(&shim).await), Code::NOT_FOUND);
    assert_eq!(code(waiting(&shim).await.await.expect("ran")), Code::NOT_FOUND);
    let metrics = SandboxMetricsRequest { sandbox_id: ID.into(), ..SandboxMetricsRequest::default() };
    assert_eq!(code(shim.sandbox.sandbox_metrics(quick(), &metrics).await), Code::NOT_FOUND);
    let platform = PlatformRequest { sandbox_id: "other".into(), ..PlatformRequest::default() };
    assert_eq!(code(shim.sandbox.platform(quick(), &platform).await), Code::NOT_FOUND);
    let request = CreateSandboxRequest { sandbox_id: "other".into(), ..create(&shim) };
    assert_eq!(code(shim.sandbox.create_sandbox(quick(), &request).await), Code::INVALID_ARGUMENT);
    let request = ShutdownSandboxRequest { sandbox_id: "other".into(), ..ShutdownSandboxRequest::default() };
    assert_eq!(code(shim.sandbox.shutdown_sandbox(quick(), &request).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn double_calls_are_answered_as_containerd_expects() {
    let shim = ready().await;
    assert_eq!(code(shim.sandbox.create_sandbox(quick(), &create(&shim)).await), Code::ALREADY_EXISTS);
    assert_eq!(code(start(&shim).await), Code::FAILED_PRECONDITION);
    stop(&shim, 0).await.expect("stopped");
    stop(&shim, 5).await.expect("a second stop is no error");
    assert_eq!(code(start(&shim).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(ping(&shim).await), Code::UNAVAILABLE);
    shut_down(&shim).await.expect("shut down");
    shut_down(&shim).await.expect("nor is a second shutdown");
}

#[tokio::test]
async fn a_machine_that_dies_is_a_failed_sandbox_and_never_a_success() {
    let shim = ready().await;
    let waiter = waiting(&shim).await;
    shim.pod.gone.notify_one();
    assert_eq!(exit_of(waiter).await, 137);
    assert_eq!(status(&shim).await.expect("status").state, "SANDBOX_NOTREADY");
    stop(&shim, 0).await.expect("a stop of what has ended is no error");
    assert_eq!(exit_of(waiting(&shim).await).await, 137, "and changes nothing");
}

#[tokio::test]
async fn a_machine_that_does_not_boot_says_so_at_start_and_can_be_cleaned_up() {
    let sentence = "the guest kernel panicked";
    let failing = async move { Err(Refusal::new(ErrorKind::Unavailable, sentence)) };
    let (shim, _requests) = Shim::start_awaited_with(Arc::new(FakePod::default()), failing).await;
    shim.sandbox.create_sandbox(quick(), &create(&shim)).await.expect("created");
    let ttrpc::Error::RpcStatus(status) = start(&shim).await.expect_err("refused") else { panic!("a status") };
    assert_eq!((status.code(), status.message()), (Code::UNAVAILABLE, sentence));
    shut_down(&shim).await.expect("shut down");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
}

#[tokio::test]
async fn a_sandbox_shows_its_containers_what_a_pause_container_would() {
    let shim = ready().await;
    shim.run("one").await;
    let specs = shim.pod.specs.lock().expect("lock");
    let mounts = specs["one"].mounts().clone().unwrap_or_default();
    let places: Vec<_> = mounts.iter().map(|mount| mount.destination().display().to_string()).collect();
    assert_eq!(places, ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/shm"]);
}

#[tokio::test]
async fn a_bundle_that_is_not_there_is_an_invalid_argument() {
    let (shim, _requests) = Shim::start_awaited().await;
    for bundle_path in ["", "relative", "/nowhere"] {
        let request = CreateSandboxRequest { bundle_path: bundle_path.into(), ..create(&shim) };
        assert_eq!(code(shim.sandbox.create_sandbox(quick(), &request).await), Code::INVALID_ARGUMENT);
    }
}

#[tokio::test]
async fn refused_options_leave_a_shim_that_can_be_shut_down() {
    let (shim, mut requests) = Shim::start_awaited().await;
    let options = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: vec![0xff; 9], ..Any::default() };
    let request = CreateSandboxRequest { options: Some(options).into(), ..create(&shim) };
    assert_eq!(code(shim.sandbox.create_sandbox(quick(), &request).await), Code::INVALID_ARGUMENT);
    assert!(requests.try_recv().is_err(), "nothing boots");
    shut_down(&shim).await.expect("containerd does so when its creation fails");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
}

#[tokio::test]
async fn figures_of_a_sandbox_are_those_of_its_containers() {
    let shim = ready().await;
    shim.run("one").await;
    shim.run("two").await;
    let request = SandboxMetricsRequest { sandbox_id: ID.into(), ..SandboxMetricsRequest::default() };
    let metric = shim.sandbox.sandbox_metrics(quick(), &request).await.expect("figures").metrics.unwrap_or_default();
    assert_eq!(metric.id, ID);
    // In the host's form, as a container's.
    let memory = match metric.data.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            v1::Metrics::parse_from_bytes(&metric.data.value).expect("figures").memory.usage.usage
        }
        _ => v2::Metrics::parse_from_bytes(&metric.data.value).expect("figures").memory.usage,
    };
    assert_eq!(memory, 2 * 99);
}

#[tokio::test]
async fn a_first_container_asks_for_the_pod_where_no_sandbox_has() {
    let (shim, mut requests) = Shim::start_awaited().await;
    shim.run(ID).await;
    assert!(requests.try_recv().is_ok());
    assert_eq!(code(ping(&shim).await), Code::NOT_FOUND, "it is no sandbox of this service");
    assert_eq!(code(shim.sandbox.create_sandbox(quick(), &create(&shim)).await), Code::ALREADY_EXISTS);
}
