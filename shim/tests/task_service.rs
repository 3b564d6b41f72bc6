//! The Task service over a real socket with real clients, in front of a pod that is not there.

mod fake_pod;

use std::{
    fs::File,
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};

use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, ExecProcessRequest, PauseRequest,
        PidsRequest, ResumeRequest, ShutdownRequest, StateRequest, StateResponse, StatsRequest, Status,
    },
    events::task::TaskExit,
    shim_async::TaskClient,
};
use fake_pod::{FakePod, Shim, VMM_PID, code, connect, delete, kill, process, quick, start};
use pod::ErrorKind;
use protobuf::Message;
use shim::{machine::PodFront, refusal::Refusal};
use tokio::{sync::oneshot, time::timeout};
use ttrpc::Code;

#[tokio::test]
async fn a_container_lives_and_containerd_hears_of_it_in_order() {
    let shim = Shim::start().await;
    shim.run("c").await;
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
    shim.pod.end(&process("c", ""), 5);
    assert_eq!(shim.wait("c", "").await, 5);
    let state = shim.state("c", "").await.expect("state");
    assert_eq!((state.status.enum_value(), state.exit_status, state.pid), (Ok(Status::STOPPED), 5, VMM_PID));
    let deleted = shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    assert_eq!((deleted.exit_status, deleted.pid), (5, VMM_PID));
    assert_eq!(shim.topics(4).await, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert_eq!(code(shim.state("c", "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn a_container_that_ends_before_its_start_is_answered_is_still_told_in_order() {
    let shim = Shim::start().await;
    *shim.pod.hasty.lock().expect("lock") = true;
    shim.run("c").await;
    assert_eq!(shim.wait("c", "").await, 3);
    assert_eq!(shim.topics(3).await, ["/tasks/create", "/tasks/start", "/tasks/exit"]);
}

#[tokio::test]
async fn both_names_of_the_service_reach_the_same_containers() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let client = connect(&shim.socket()).await;
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let state = StateRequest { id: "c".into(), ..StateRequest::default() };
        let request = ttrpc::Request {
            service: service.into(),
            method: "State".into(),
            payload: state.write_to_bytes().expect("bytes"),
            ..ttrpc::Request::default()
        };
        let response = client.request(request).await.expect("answered");
        let state = StateResponse::parse_from_bytes(&response.payload).expect("state");
        assert_eq!((state.id.as_str(), state.pid), ("c", VMM_PID), "{service}");
    }
}

#[tokio::test]
async fn an_exec_lives_beside_its_container() {
    let shim = Shim::start().await;
    assert_eq!(code(shim.add_exec("c", "e").await), Code::NOT_FOUND);
    shim.task.create(quick(), &shim.create_request("c")).await.expect("created");
    assert_eq!(code(shim.add_exec("c", "e").await), Code::FAILED_PRECONDITION);
    shim.task.start(quick(), &start("c", "")).await.expect("started");
    shim.add_exec("c", "e").await.expect("added");
    assert_eq!(code(shim.add_exec("c", "e").await), Code::ALREADY_EXISTS);
    shim.task.start(quick(), &start("c", "e")).await.expect("started");
    shim.pod.end(&process("c", "e"), 2);
    assert_eq!(shim.wait("c", "e").await, 2);
    shim.task.delete(quick(), &delete("c", "e")).await.expect("deleted");
    let topics = shim.topics(5).await;
    assert_eq!(
        topics[2..],
        ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"],
        "an exec's end deletes no task"
    );
    let exit = TaskExit::parse_from_bytes(&shim.heard.events.lock().expect("lock")[4].1).expect("parsed");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c", "e"));
}

#[tokio::test]
async fn an_exec_that_cannot_run_fails_alone_and_can_be_deleted() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.add_exec("c", "missing").await.expect("added");
    assert_eq!(code(shim.task.start(quick(), &start("c", "missing")).await), Code::NOT_FOUND);
    shim.task.delete(quick(), &delete("c", "missing")).await.expect("deleted");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
}

#[tokio::test]
async fn signals_pass_while_another_start_hangs_and_fail_once_it_is_over() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let (_open, gate) = oneshot::channel();
    *shim.pod.gate.lock().expect("lock") = Some(gate);
    shim.task.create(quick(), &shim.create_request("slow")).await.expect("created");
    let hanging = TaskClient::new(connect(&shim.socket()).await);
    let hanging = tokio::spawn(async move { hanging.start(quick(), &start("slow", "")).await });
    shim.task.kill(quick(), &kill("c", 15)).await.expect("a signal waits for nobody");
    shim.task.kill(quick(), &kill("c", 9)).await.expect("killed");
    assert_eq!(shim.wait("c", "").await, 137);
    assert_eq!(code(shim.task.kill(quick(), &kill("c", 9)).await), Code::NOT_FOUND);
    assert_eq!(code(shim.task.kill(quick(), &kill("nobody", 9)).await), Code::NOT_FOUND);
    hanging.abort();
}

#[tokio::test]
async fn a_request_runs_to_its_end_when_containerd_hangs_up() {
    let shim = Shim::start().await;
    shim.task.create(quick(), &shim.create_request("c")).await.expect("created");
    let (open, gate) = oneshot::channel();
    *shim.pod.gate.lock().expect("lock") = Some(gate);
    let client = TaskClient::new(connect(&shim.socket()).await);
    let call = tokio::spawn(async move { client.start(quick(), &start("c", "")).await });
    while shim.pod.gate.lock().expect("lock").is_some() {
        tokio::task::yield_now().await;
    }
    call.abort();
    let _ = call.await;
    open.send(()).expect("the start still waits");
    assert_eq!(shim.topics(2).await, ["/tasks/create", "/tasks/start"]);
}

#[tokio::test]
async fn what_runs_is_not_deleted_and_names_are_taken_once() {
    let shim = Shim::start().await;
    shim.run("c").await;
    assert_eq!(code(shim.task.delete(quick(), &delete("c", "")).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(shim.task.create(quick(), &shim.create_request("c")).await), Code::ALREADY_EXISTS);
    assert_eq!(code(shim.task.start(quick(), &start("c", "")).await), Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted_or_killed() {
    let shim = Shim::start().await;
    shim.task.create(quick(), &shim.create_request("a")).await.expect("created");
    assert_eq!(shim.task.delete(quick(), &delete("a", "")).await.expect("deleted").exit_status, 137);
    shim.task.create(quick(), &shim.create_request("b")).await.expect("created");
    shim.task.kill(quick(), &kill("b", 9)).await.expect("killed");
    assert_eq!(shim.wait("b", "").await, 137);
    shim.task.delete(quick(), &delete("b", "")).await.expect("deleted");
}

#[tokio::test]
async fn pausing_shows_in_the_state_and_in_the_events() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.task.pause(quick(), &PauseRequest { id: "c".into(), ..PauseRequest::default() }).await.expect("paused");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::PAUSED));
    shim.task.resume(quick(), &ResumeRequest { id: "c".into(), ..ResumeRequest::default() }).await.expect("resumed");
    assert_eq!(shim.state("c", "").await.expect("state").status.enum_value(), Ok(Status::RUNNING));
    assert_eq!(shim.topics(4).await[2..], ["/tasks/paused", "/tasks/resumed"]);
}

#[tokio::test]
async fn figures_pids_and_connect_answer_for_what_is_there() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let stats =
        shim.task.stats(quick(), &StatsRequest { id: "c".into(), ..StatsRequest::default() }).await.expect("stats");
    let host = if pod::host_cgroup::unified() { "v2" } else { "v1" };
    assert_eq!(stats.stats.type_url, format!("io.containerd.cgroups.{host}.Metrics"));
    let pids = shim.task.pids(quick(), &PidsRequest { id: "c".into(), ..PidsRequest::default() }).await.expect("pids");
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [11, 12]);
    let request = ConnectRequest { id: "c".into(), ..ConnectRequest::default() };
    let connected = shim.task.connect(quick(), &request).await.expect("connected");
    assert_eq!((connected.shim_pid, connected.task_pid), (std::process::id(), VMM_PID));
    let request = ConnectRequest { id: "nobody".into(), ..ConnectRequest::default() };
    assert_eq!(code(shim.task.connect(quick(), &request).await), Code::NOT_FOUND);
    let request = CheckpointTaskRequest { id: "c".into(), ..CheckpointTaskRequest::default() };
    assert_eq!(code(shim.task.checkpoint(quick(), &request).await), Code::UNIMPLEMENTED);
}

fn ten_bytes(mut reader: &File) -> [u8; 10] {
    let mut bytes = [0; 10];
    reader.read_exact(&mut bytes).expect("read");
    bytes
}

#[tokio::test]
async fn delete_waits_until_the_output_is_where_it_belongs() {
    let shim = Shim::start().await;
    let reader = shim.run_with_output("c").await;
    let id = process("c", "");
    shim.pod.far_stdout(&id).write_all(b"last words").expect("written");
    shim.pod.end(&id, 0);
    assert_eq!(shim.wait("c", "").await, 0);
    shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    assert_eq!(&ten_bytes(&reader), b"last words");
}

#[tokio::test]
async fn a_second_delete_waits_for_the_output_too() {
    let shim = Shim::start().await;
    let reader = shim.run_with_output("c").await;
    let id = process("c", "");
    let mut output = shim.pod.far_stdout(&id);
    shim.pod.end(&id, 4);
    assert_eq!(shim.wait("c", "").await, 4);
    let mut deletes = Vec::new();
    for _ in 0..2 {
        let client = TaskClient::new(connect(&shim.socket()).await);
        deletes.push(tokio::spawn(async move { client.delete(quick(), &delete("c", "")).await }));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(deletes.iter().all(|delete| !delete.is_finished()), "told before the output was there");
    output.write_all(b"last words").expect("written");
    drop(output);
    for delete in deletes {
        assert_eq!(delete.await.expect("ran").expect("deleted").exit_status, 4);
    }
    assert_eq!(&ten_bytes(&reader), b"last words");
}

#[tokio::test]
async fn close_io_ends_the_input_after_what_is_in_it() {
    let shim = Shim::start().await;
    let request = CreateTaskRequest { stdin: shim.fifo("in"), ..shim.create_request("c") };
    shim.task.create(quick(), &request).await.expect("created");
    shim.task.start(quick(), &start("c", "")).await.expect("started");
    let mut far = {
        let mut far = shim.pod.far_ends.lock().expect("lock");
        far.get_mut(&process("c", "")).expect("process").stdin.take().expect("stdin")
    };
    std::fs::write(&request.stdin, "all of it").expect("written");
    let close = CloseIORequest { id: "c".into(), stdin: true, ..CloseIORequest::default() };
    shim.task.close_io(quick(), &close).await.expect("closed");
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        far.read_to_string(&mut text).map(|_| text)
    });
    let text = timeout(Duration::from_secs(10), text).await.expect("in time").expect("thread").expect("read");
    assert_eq!(text, "all of it");
}

#[tokio::test]
async fn an_exec_whose_start_is_answered_after_its_containers_delete_is_not_heard_of() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.add_exec("c", "e").await.expect("added");
    let (answer, gate) = oneshot::channel();
    *shim.pod.gate.lock().expect("lock") = Some(gate);
    let client = TaskClient::new(connect(&shim.socket()).await);
    let starting = tokio::spawn(async move { client.start(quick(), &start("c", "e")).await });
    while shim.pod.gate.lock().expect("lock").is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shim.pod.end(&process("c", ""), 0);
    assert_eq!(shim.wait("c", "").await, 0);
    shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    answer.send(()).expect("the start waits");
    let _ = starting.await.expect("ran");
    shim.run("next").await;
    let topics = shim.topics(7).await;
    assert_eq!(topics[3..], ["/tasks/exit", "/tasks/delete", "/tasks/create", "/tasks/start"]);
}

#[tokio::test]
async fn shutdown_is_followed_after_the_last_container_only() {
    let shim = Shim::start().await;
    shim.run("c").await;
    let shutdown = ShutdownRequest { id: "c".into(), now: true, ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(!*shim.pod.stopped.borrow() && shim.socket().exists());
    shim.task.kill(quick(), &kill("c", 9)).await.expect("killed");
    assert_eq!(shim.wait("c", "").await, 137);
    shim.task.delete(quick(), &delete("c", "")).await.expect("deleted");
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
    assert!(*shim.pod.stopped.borrow() && !shim.socket().exists());
}

#[tokio::test]
async fn an_exec_that_was_never_started_ends_with_the_machine() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.add_exec("c", "e").await.expect("added");
    let waiting = shim.wait("c", "e");
    shim.pod.gone.notify_one();
    assert_eq!(timeout(Duration::from_secs(10), waiting).await.expect("released"), 137);
}

#[tokio::test]
async fn a_machine_that_does_not_boot_says_why_and_leaves_no_container() {
    let sentence = "the guest kernel panicked";
    let failing = async move { Err(Refusal::new(ErrorKind::Unavailable, sentence)) };
    let shim = Shim::start_with(Arc::default(), failing).await;
    let outcome = shim.task.create(quick(), &shim.create_request("c")).await;
    let ttrpc::Error::RpcStatus(status) = outcome.expect_err("refused") else { panic!("a status") };
    assert_eq!((status.code(), status.message()), (Code::UNAVAILABLE, sentence));
    assert_eq!(code(shim.task.delete(quick(), &delete("c", "")).await), Code::NOT_FOUND);
    assert!(shim.topics(0).await.is_empty());
}

#[tokio::test]
async fn a_pod_that_still_boots_can_be_shut_down() {
    let shim = Shim::start_with(Arc::default(), std::future::pending()).await;
    let creating = TaskClient::new(connect(&shim.socket()).await);
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
    assert_eq!(code(creating.create(quick(), &shim.create_request("c")).await), Code::UNAVAILABLE);
}

#[tokio::test]
async fn a_boot_under_way_is_stopped_like_a_pod_that_is_up() {
    let pod = Arc::new(FakePod::default());
    let front: Arc<dyn PodFront> = Arc::clone(&pod) as _;
    let slow = async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(front)
    };
    let shim = Shim::start_with(pod, slow).await;
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(*shim.pod.stopped.borrow(), "a boot that is dropped goes on taking what nobody undoes");
}

#[tokio::test]
async fn a_second_shutdown_leaves_the_socket_of_the_next_daemon_alone() {
    let shim = Shim::start().await;
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(!shim.socket().exists());
    let _next = std::os::unix::net::UnixListener::bind(shim.socket()).expect("the name is free");
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(shim.socket().exists(), "the next daemon cannot be reached any more");
}

#[tokio::test]
async fn bad_input_is_an_invalid_argument_with_its_object_named() {
    let shim = Shim::start().await;
    let request = CreateTaskRequest { id: "../c".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    let request = CreateTaskRequest { bundle: "/nowhere".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    let request = CreateTaskRequest { stdout: "/nowhere/fifo".into(), ..shim.create_request("c") };
    assert_eq!(code(shim.task.create(quick(), &request).await), Code::INVALID_ARGUMENT);
    std::fs::write(shim.dir.path().join("config.json"), "{ broken").expect("written");
    assert_eq!(code(shim.task.create(quick(), &shim.create_request("c")).await), Code::INVALID_ARGUMENT);
    assert_eq!(code(shim.state("c", "").await), Code::NOT_FOUND, "nothing is left of a refused container");
    let request = ExecProcessRequest { id: "c".into(), exec_id: "e".into(), ..ExecProcessRequest::default() };
    assert_eq!(code(shim.task.exec(quick(), &request).await), Code::INVALID_ARGUMENT);
}

async fn creating(shim: &Shim, id: &str, nanos: i64) -> tokio::task::JoinHandle<ttrpc::Result<()>> {
    let (client, request) = (TaskClient::new(connect(&shim.socket()).await), shim.create_request(id));
    let context = ttrpc::context::with_duration(Duration::from_nanos(nanos.unsigned_abs()));
    let call = tokio::spawn(async move { client.create(context, &request).await.map(drop) });
    while shim.pod.create_gate.lock().expect("lock").is_some() {
        tokio::task::yield_now().await;
    }
    call
}

#[tokio::test]
async fn a_create_whose_time_was_over_leaves_nothing() {
    let shim = Shim::start().await;
    let (open, gate) = oneshot::channel();
    *shim.pod.create_gate.lock().expect("lock") = Some(gate);
    let call = creating(&shim, "c", 100_000_000).await;
    call.await.expect("ran").expect_err("its time is over");
    let connect = ConnectRequest { id: "c".into(), ..ConnectRequest::default() };
    shim.task.connect(quick(), &connect).await.expect("it is still being made");
    open.send(()).expect("the creation still waits");
    assert_eq!(shim.topics(3).await, ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
    assert_eq!(code(shim.task.connect(quick(), &connect).await), Code::NOT_FOUND);
    shim.run("c").await;
}

#[tokio::test]
async fn a_delete_waits_for_what_is_being_made_and_then_nothing_is_left() {
    let shim = Shim::start().await;
    let (open, gate) = oneshot::channel();
    *shim.pod.create_gate.lock().expect("lock") = Some(gate);
    let call = creating(&shim, "c", 10_000_000_000).await;
    let client = TaskClient::new(connect(&shim.socket()).await);
    let deleting = tokio::spawn(async move { client.delete(quick(), &delete("c", "")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!deleting.is_finished());
    open.send(()).expect("the creation still waits");
    assert_eq!(code(deleting.await.expect("ran")), Code::NOT_FOUND);
    assert_eq!(code(call.await.expect("ran")), Code::UNAVAILABLE);
    assert!(shim.topics(0).await.is_empty(), "it has never been");
    assert!(shim.pod.exits.lock().expect("lock").is_empty(), "the guest has it no more");
}

#[tokio::test]
async fn a_shutdown_during_a_create_that_comes_to_nothing_is_followed_after_it() {
    let shim = Shim::start().await;
    let (open, gate) = oneshot::channel();
    *shim.pod.create_gate.lock().expect("lock") = Some(gate);
    let call = creating(&shim, "c", 50_000_000).await;
    let shutdown = ShutdownRequest { id: "c".into(), ..ShutdownRequest::default() };
    shim.task.shutdown(quick(), &shutdown).await.expect("answered");
    assert!(!*shim.pod.stopped.borrow());
    call.await.expect("ran").expect_err("its time is over");
    open.send(()).expect("the creation still waits");
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("ended");
}
