//! Stories of a pod, told with a machine inside the test.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;
use vmm_control::Ending;

use super::{
    life::{KILL_DEADLINE, SIGKILL, START_FAILED_STATUS},
    *,
};
use crate::{
    ContainerSpec, ExecSpec, PodNetwork, ProcessStreams, RootFs, StdioWanted,
    double::{Double, Script},
};

struct Stage {
    _root: tempfile::TempDir,
    state_dir: PathBuf,
    double: Double,
}

impl Stage {
    fn new(script: Script) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        Self { state_dir: root.path().join("kata-rs/default/p1"), _root: root, double: Double::with(script) }
    }

    fn spec(&self) -> PodSpec {
        PodSpec {
            id: "p1".into(),
            state_dir: self.state_dir.clone(),
            vcpus: 1,
            memory_mib: 128,
            hostname: if self.double.script.configure_fails { "refused" } else { "web" }.into(),
            sysctls: Default::default(),
            resolv_conf: String::new(),
            network: PodNetwork::None,
            interface_rules: Default::default(),
            extra_cmdline: String::new(),
        }
    }

    async fn launch(&self) -> Result<Pod, PodError> {
        Pod::launch_with(Arc::new(self.double.clone()), self.spec()).await
    }

    fn assert_nothing_left(&self) {
        assert!(!self.state_dir.exists(), "{} is left", self.state_dir.display());
        assert!(!self.state_dir.parent().expect("has one").exists(), "an empty ancestor is left");
    }
}

async fn pod() -> (Stage, Pod) {
    let stage = Stage::new(Script::default());
    let pod = stage.launch().await.expect("launched");
    (stage, pod)
}

fn container(id: &str, args: &[&str], stdio: StdioWanted) -> ContainerSpec {
    let oci = json!({"ociVersion": "1.0.2", "process": {"cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}}, "linux": {}});
    ContainerSpec {
        id: id.into(),
        oci: serde_json::from_value(oci).expect("a spec"),
        rootfs: RootFs::Folder("/".into()),
        stdio,
    }
}

fn exec(id: &str, args: &[&str]) -> ExecSpec {
    let process = json!({"cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}});
    ExecSpec {
        container_id: "c1".into(),
        exec_id: id.into(),
        process: serde_json::from_value(process).expect("a process"),
        stdio: StdioWanted::default(),
    }
}

fn first() -> ProcessId {
    ProcessId::first("c1")
}

async fn create(pod: &Pod, args: &[&str]) -> ProcessStreams {
    pod.create_container(container("c1", args, StdioWanted::default())).await.expect("created").1
}

#[tokio::test]
async fn a_container_lives_and_leaves_nothing() {
    let (stage, pod) = pod().await;
    create(&pod, &["exit", "3"]).await;
    assert_eq!(pod.start(&first()).await.expect("started"), 43);
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 3);
    assert_eq!(pod.wait(&first()).await.expect("told again").status, 3);
    assert_eq!(pod.delete(&first()).await.expect("deleted").status, 3);
    assert_eq!(pod.delete(&first()).await.expect_err("gone").kind, ErrorKind::NotFound);
    pod.stop().await.expect("stopped");
    pod.stop().await.expect("twice is fine");
    stage.assert_nothing_left();
    let seen = stage.double.seen.lock().expect("whole");
    assert_eq!(seen.shares, ["add c1", "remove c1", "end"]);
    assert_eq!(seen.hostname, "web");
    assert!(!seen.powered_off, "a guest without living processes has nothing to lose");
    assert_eq!(seen.specs[0]["root"]["path"], "/run/kata-rs/share/c1/rootfs");
}

#[tokio::test]
async fn bytes_go_in_and_come_out_whole() {
    let (_stage, pod) = pod().await;
    let wanted = StdioWanted { stdin: true, stdout: true, ..Default::default() };
    let (_, streams) = pod.create_container(container("c1", &["cat"], wanted)).await.expect("created");
    pod.start(&first()).await.expect("started");
    let (mut stdin, mut stdout) = (streams.stdin.expect("wanted"), streams.stdout.expect("wanted"));
    assert!(streams.stderr.is_none());
    let text: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let sent = text.clone();
    let copied = tokio::task::spawn_blocking(move || {
        stdin.set_nonblocking(false).expect("a socket");
        stdout.set_nonblocking(false).expect("a socket");
        let writer = std::thread::spawn(move || stdin.write_all(&sent).expect("written"));
        let mut read = Vec::new();
        stdout.read_to_end(&mut read).expect("read");
        writer.join().expect("written");
        read
    });
    assert_eq!(copied.await.expect("copied"), text);
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 0);
}

#[tokio::test]
async fn many_wait_and_all_are_told() {
    let (_stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    let waits: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let pod = pod.clone();
                async move { pod.wait(&first()).await }
            })
        })
        .collect();
    pod.start(&first()).await.expect("started");
    pod.signal(&first(), 15, false).await.expect("sent");
    for wait in waits {
        assert_eq!(wait.await.expect("ran").expect("ended").status, 143);
    }
    assert_eq!(pod.signal(&first(), 15, false).await.expect_err("ended").kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_dead_machine_ends_everything_with_137() {
    let (stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.start(&first()).await.expect("started");
    let waiting = tokio::spawn({
        let pod = pod.clone();
        async move { pod.wait(&first()).await }
    });
    stage.double.crash.notify_one();
    assert_eq!(waiting.await.expect("ran").expect("told").status, 137);
    assert!(pod.gone().await.contains("kernel panic ends so"));
    let late = pod.create_container(container("c2", &["sleep"], StdioWanted::default())).await.expect_err("no machine");
    assert_eq!(late.kind, ErrorKind::Unavailable);
    assert_eq!(pod.delete(&first()).await.expect("needs no guest").status, 137);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_machine_that_dies_in_a_call_is_told_with_its_console() {
    let stage =
        Stage::new(Script { console: "Kernel panic - not syncing: the double fell over\n", ..Script::default() });
    let pod = stage.launch().await.expect("launched");
    create(&pod, &["crash"]).await;
    let error = pod.start(&first()).await.expect_err("died");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("the double fell over"), "{}", error.message);
    assert_eq!(pod.wait(&first()).await.expect("told").status, 137);
}

#[tokio::test]
async fn a_kill_does_not_queue_behind_a_create() {
    let (stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.start(&first()).await.expect("started");
    let hanging = tokio::spawn({
        let pod = pod.clone();
        async move { pod.create_container(container("c2", &["hang"], StdioWanted::default())).await }
    });
    let begun = Instant::now();
    pod.signal(&first(), 9, false).await.expect("sent");
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 137);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!hanging.is_finished());
    pod.stop().await.expect("stopped");
    assert_eq!(hanging.await.expect("ran").expect_err("no machine").kind, ErrorKind::Unavailable);
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_is_silent_to_a_kill_is_given_up_and_its_containers_end() {
    let (stage, pod) = pod().await;
    create(&pod, &["deaf"]).await;
    pod.start(&first()).await.expect("started");
    assert_eq!(pod.signal(&first(), 15, false).await.expect_err("silence").kind, ErrorKind::DeadlineExceeded);
    pod.signal(&first(), SIGKILL, true).await.expect("killed with the machine");
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 137);
    assert!(pod.gone().await.contains("the agent in the guest is silent"), "{}", pod.gone().await);
    assert_eq!(pod.delete(&first()).await.expect("needs no guest").status, 137);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_takes_the_kill_of_a_container_and_never_tells_its_end_is_given_up() {
    let (stage, pod) = pod().await;
    create(&pod, &["undead"]).await;
    pod.start(&first()).await.expect("started");
    pod.signal(&first(), 15, true).await.expect("need not end anything");
    tokio::time::sleep(2 * KILL_DEADLINE).await;
    pod.signal(&first(), SIGKILL, false).await.expect("taken");
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 137);
    assert!(pod.gone().await.contains("container c1 got SIGKILL"), "{}", pod.gone().await);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn an_exec_that_outlives_its_kill_costs_nobody_the_machine() {
    let (stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.start(&first()).await.expect("started");
    pod.add_exec(exec("e1", &["undead"])).await.expect("registered");
    let e1 = ProcessId { container_id: "c1".into(), exec_id: "e1".into() };
    pod.start(&e1).await.expect("started");
    pod.signal(&e1, SIGKILL, false).await.expect("taken");
    tokio::time::sleep(2 * KILL_DEADLINE).await;
    pod.signal(&first(), SIGKILL, true).await.expect("the machine is still there");
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 137);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_container_at_its_gate_in_a_lying_guest_can_be_deleted() {
    let (stage, pod) = pod().await;
    create(&pod, &["undead"]).await;
    assert_eq!(pod.delete(&first()).await.expect("deleted").status, 137);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_container_at_its_gate_in_a_silent_guest_can_be_deleted() {
    let (stage, pod) = pod().await;
    create(&pod, &["deaf"]).await;
    assert_eq!(pod.delete(&first()).await.expect("deleted").status, 137);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_silent_delete_costs_the_machine_only_when_nobody_else_lives_in_it() {
    let (stage, pod) = pod().await;
    create(&pod, &["tombstone"]).await;
    pod.create_container(container("c2", &["sleep"], StdioWanted::default())).await.expect("created");
    pod.start(&first()).await.expect("started");
    assert_eq!(pod.wait(&first()).await.expect("ended").status, 0);
    assert_eq!(pod.delete(&first()).await.expect_err("silence").kind, ErrorKind::DeadlineExceeded);
    pod.signal(&ProcessId::first("c2"), SIGKILL, true).await.expect("the machine is still there");
    assert_eq!(pod.wait(&ProcessId::first("c2")).await.expect("ended").status, 137);
    assert_eq!(pod.delete(&first()).await.expect("nobody is harmed").status, 0);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn an_agent_that_counts_a_million_processes_is_not_believed() {
    let (_stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    assert_eq!(pod.pids("c1").await.expect("told").len(), crate::agent::PIDS_MAX);
}

#[tokio::test]
async fn the_agents_words_on_a_missing_command_pass_through() {
    let (_stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.start(&first()).await.expect("started");
    pod.add_exec(exec("e1", &["missing"])).await.expect("registered");
    let e1 = ProcessId { container_id: "c1".into(), exec_id: "e1".into() };
    let error = pod.start(&e1).await.expect_err("missing");
    assert_eq!(error.message, "exec: \"missing\": executable file not found in $PATH");
    assert_eq!(pod.delete(&e1).await.expect("deleted").status, START_FAILED_STATUS);
    pod.add_exec(exec("e1", &["exit", "5"])).await.expect("the name is free");
    pod.start(&e1).await.expect("started");
    assert_eq!(pod.wait(&e1).await.expect("ended").status, 5);
}

#[tokio::test]
async fn an_exec_that_never_ran_and_a_container_at_its_gate_can_be_deleted() {
    let (_stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.add_exec(exec("e1", &["sleep"])).await.expect("registered");
    let e1 = ProcessId { container_id: "c1".into(), exec_id: "e1".into() };
    assert_eq!(pod.delete(&e1).await.expect("deleted").status, 0);
    assert_eq!(pod.delete(&first()).await.expect("killed and deleted").status, 137);
}

#[tokio::test]
async fn of_fifty_creates_with_one_name_one_wins() {
    let (_stage, pod) = pod().await;
    let creates = (0..50).map(|_| {
        let pod = pod.clone();
        tokio::spawn(async move { pod.create_container(container("c1", &["sleep"], StdioWanted::default())).await })
    });
    let results = futures::future::join_all(creates).await;
    let kinds: Vec<_> = results.into_iter().map(|r| r.expect("ran").map(drop).map_err(|e| e.kind)).collect();
    assert_eq!(kinds.iter().filter(|k| k.is_ok()).count(), 1);
    assert!(kinds.iter().all(|k| matches!(k, Ok(()) | Err(ErrorKind::AlreadyExists))), "{kinds:?}");
}

#[tokio::test]
async fn a_pod_whose_last_handle_is_dropped_stops() {
    let (stage, pod) = pod().await;
    create(&pod, &["sleep"]).await;
    pod.start(&first()).await.expect("started");
    drop(pod);
    let begun = Instant::now();
    while stage.state_dir.exists() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the pod is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(stage.double.seen.lock().expect("whole").powered_off, "a living container is ended by its guest");
}

#[tokio::test]
async fn launches_that_fail_say_why_and_leave_nothing() {
    let silent = Some(b"SSH-2.0-OpenSSH\n".to_vec());
    let other = Some(b"kata-rs-agent 999 9.9\n".to_vec());
    for (script, kind, words) in [
        (Script { hello: silent, ..Script::default() }, ErrorKind::FailedPrecondition, "not a hello of kata-rs-agent"),
        (Script { hello: other, ..Script::default() }, ErrorKind::FailedPrecondition, "speaks protocol 999"),
        (
            Script { hello: Some(vec![b'x'; 4096]), ..Script::default() },
            ErrorKind::Unavailable,
            "no end of line within",
        ),
        (
            Script { ends: Some(Ending::TripleFault), console: "BUG: bad page\n", ..Script::default() },
            ErrorKind::Unavailable,
            "BUG: bad page",
        ),
        (
            Script { server_fails: true, hello: Some(vec![]), ..Script::default() },
            ErrorKind::Internal,
            "cannot start the file server",
        ),
        (Script { configure_fails: true, ..Script::default() }, ErrorKind::Internal, "cannot mount the share"),
        (Script { spawn_fails: true, ..Script::default() }, ErrorKind::Internal, "cannot spawn the double"),
    ] {
        let stage = Stage::new(script);
        let error = stage.launch().await.expect_err(words);
        assert!(
            error.message.contains(words) && error.message.starts_with("pod p1 cannot be launched: "),
            "{}",
            error.message
        );
        assert_eq!(error.kind, kind, "{}", error.message);
        stage.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_guest_on_a_busy_host_is_waited_for_as_long_as_it_moves() {
    let begun = Instant::now();
    let stage = Stage::new(Script { moves_before_hello: 60, ..Script::default() });
    let pod = stage.launch().await.expect("launched");
    assert!(begun.elapsed() > Duration::from_secs(1), "longer than a guest that stands still gets");
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_container_that_is_never_made_is_given_up_when_nothing_moves() {
    let (stage, pod) = pod().await;
    let hanging = pod.create_container(container("c1", &["hang"], StdioWanted::default())).await;
    let error = hanging.expect_err("never answered");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(error.message.contains("did not create the container: nothing moves"), "{}", error.message);
    pod.stop().await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_never_calls_is_given_up() {
    let stage = Stage::new(Script { hello: Some(vec![]), console: "waiting for root device\n", ..Script::default() });
    let error = stage.launch().await.expect_err("silence");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(
        error.message.contains("did not call: nothing moves in the machine")
            && error.message.contains("waiting for root device"),
        "{}",
        error.message
    );
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_running_pods_folder_is_not_taken() {
    let (stage, pod) = pod().await;
    assert_eq!(stage.launch().await.expect_err("taken").kind, ErrorKind::AlreadyExists);
    create(&pod, &["exit", "0"]).await;
    pod.stop().await.expect("the first is as it was");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn a_report_is_the_machines_own() {
    let (_stage, pod) = pod().await;
    assert_eq!(pod.report().await.expect("told").kernel_bytes, 7);
    let names: Vec<_> = pod.launch_marks().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"launch asked"));
    assert!(names.contains(&"agent called") && names.last() == Some(&"pod configured"), "{names:?}");
}

#[test]
fn ids_that_walk_are_refused_before_anything_is_made() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stage = Stage::new(Script::default());
        let spec = PodSpec { id: "../../etc".into(), ..stage.spec() };
        let error = Pod::launch_with(Arc::new(stage.double.clone()), spec).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        stage.assert_nothing_left();
        assert!(Path::new("/etc").exists());
    });
}
