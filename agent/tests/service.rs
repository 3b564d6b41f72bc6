//! The real service, over a socketpair, with ordinary processes in place of containers: unprivileged, on any machine.
#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

mod host;

use std::io::{Read, Write};

use agent_protocol::messages as m;
use host::{Host, PATIENCE, code, process, read_all, soon, spec};
use protobuf::MessageField;
use tokio::{task::spawn_blocking, time::timeout};
use ttrpc::Code;

#[tokio::test]
async fn a_container_runs_after_its_start_and_tells_its_status() {
    let host = Host::new();
    let pid = host.create("c1", "exit 42", m::Stdio::new()).await.unwrap();
    let waiting = host.wait("c1", "");
    assert_eq!(host.start("c1", "").await.unwrap(), pid);
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap().exit_status, 42);
    let deleted = host.delete("c1", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 42));
    assert_eq!(code(host.start("c1", "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn all_three_streams_carry_their_bytes() {
    let host = Host::new();
    let (mut stdin, stdout, stderr) = (host.connect(1), host.connect(2), host.connect(3));
    let stdio = m::Stdio { stdin: 1, stdout: 2, stderr: 3, ..Default::default() };
    host.create("c1", "cat; echo done >&2", stdio).await.unwrap();
    host.start("c1", "").await.unwrap();
    stdin.write_all(b"to be echoed").unwrap();
    drop(stdin);
    assert_eq!(read_all(stdout).await.unwrap(), b"to be echoed");
    assert_eq!(read_all(stderr).await.unwrap(), b"done\n");
    assert_eq!(host.status("c1", "").await, 0);
}

#[tokio::test]
async fn output_written_just_before_the_end_arrives_though_the_container_is_deleted() {
    let host = Host::new();
    let stdout = host.connect(2);
    host.create("c1", "head -c 3000000 /dev/zero", m::Stdio { stdout: 2, ..Default::default() }).await.unwrap();
    host.start("c1", "").await.unwrap();
    let got = read_all(stdout);
    assert_eq!(host.status("c1", "").await, 0);
    host.delete("c1", "").await.unwrap();
    assert_eq!(got.await.unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn a_terminal_has_its_size_and_can_be_resized() {
    let host = Host::new();
    let (mut keys, screen) = (host.connect(1), host.connect(2));
    let request = m::CreateContainerRequest {
        container_id: "c1".into(),
        oci_spec: spec(&["/bin/sh", "-c", "stty size; read line; stty size"], true),
        stdio: MessageField::some(m::Stdio { stdin: 1, stdout: 2, ..Default::default() }),
        columns: 80,
        rows: 25,
        ..Default::default()
    };
    host.client.create_container(soon(), &request).await.unwrap();
    host.start("c1", "").await.unwrap();
    let request = m::ResizeRequest { process: process("c1", ""), columns: 132, rows: 43, ..Default::default() };
    let mut screen = screen;
    let first = spawn_blocking(move || {
        let mut line = [0; 7];
        screen.read_exact(&mut line).unwrap();
        (screen, line)
    });
    let (screen, line) = timeout(PATIENCE, first).await.unwrap().unwrap();
    assert_eq!(&line, b"25 80\r\n");
    host.client.resize(soon(), &request).await.unwrap();
    keys.write_all(b"\n").unwrap();
    assert!(read_all(screen).await.unwrap().ends_with(b"43 132\r\n"));
    assert_eq!(host.status("c1", "").await, 0);
}

#[tokio::test]
async fn a_kill_ends_a_process_and_a_second_one_finds_nobody() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    host.signal("c1", "", 9).await.unwrap();
    assert_eq!(host.status("c1", "").await, 137);
    assert_eq!(code(host.signal("c1", "", 9).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn every_waiter_is_released_and_a_late_one_answered_at_once() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    let waiters: Vec<_> = (0..5).map(|_| host.wait("c1", "")).collect();
    tokio::task::yield_now().await;
    host.signal("c1", "", 15).await.unwrap();
    for waiter in waiters {
        assert_eq!(timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap().exit_status, 143);
    }
    assert_eq!(host.status("c1", "").await, 143);
}

#[tokio::test]
async fn an_exec_has_a_life_of_its_own() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    host.add_exec("c1", "e1", &["/bin/sh", "-c", "exit 7"]).await.unwrap();
    assert_eq!(code(host.signal("c1", "e1", 9).await), Code::FAILED_PRECONDITION);
    host.start("c1", "e1").await.unwrap();
    assert_eq!(host.status("c1", "e1").await, 7);
    assert_eq!(host.delete("c1", "e1").await.unwrap().exit_status, 7);
    assert_eq!(code(host.delete("c1", "e1").await), Code::NOT_FOUND);
    host.signal("c1", "", 9).await.unwrap();
    assert_eq!(host.status("c1", "").await, 137);
}

#[tokio::test]
async fn an_exec_of_a_missing_program_fails_at_start_with_a_shells_status() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    host.add_exec("c1", "e1", &["/nonexistent"]).await.unwrap();
    let error = host.start("c1", "e1").await.expect_err("there is no such program").to_string();
    assert!(error.contains("/nonexistent"), "{error}");
    assert_eq!(host.status("c1", "e1").await, 127);
    host.delete("c1", "e1").await.unwrap();
    host.signal("c1", "", 9).await.unwrap();
}

#[tokio::test]
async fn names_are_unique_until_deleted() {
    let host = Host::new();
    host.run("c1", "exit 0").await;
    assert_eq!(code(host.create("c1", "exit 0", m::Stdio::new()).await), Code::ALREADY_EXISTS);
    host.status("c1", "").await;
    host.delete("c1", "").await.unwrap();
    host.run("c1", "exit 3").await;
    assert_eq!(host.status("c1", "").await, 3);
}

#[tokio::test]
async fn a_running_container_is_not_deleted_and_a_created_one_is() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    assert_eq!(code(host.delete("c1", "").await), Code::FAILED_PRECONDITION);
    host.signal("c1", "", 9).await.unwrap();
    host.create("c2", "exit 0", m::Stdio::new()).await.unwrap();
    assert_eq!(host.delete("c2", "").await.unwrap().exit_status, 137);
}

#[tokio::test]
async fn a_kill_is_not_behind_a_create_that_waits_for_its_streams() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    let client = host.client.clone();
    let request = m::CreateContainerRequest {
        container_id: "c2".into(),
        oci_spec: spec(&["/bin/true"], false),
        stdio: MessageField::some(m::Stdio { stdout: 99, ..Default::default() }),
        ..Default::default()
    };
    let stuck = tokio::spawn(async move { client.create_container(soon(), &request).await });
    host.signal("c1", "", 9).await.unwrap();
    assert_eq!(host.status("c1", "").await, 137);
    assert!(!stuck.is_finished(), "stream 99 was never connected");
    assert_eq!(code(host.start("c2", "").await), Code::FAILED_PRECONDITION);
    let _late = host.connect(99);
    stuck.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_paused_container_runs_no_exec() {
    let host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    host.add_exec("c1", "e1", &["/bin/true"]).await.unwrap();
    let container = m::ContainerRequest { container_id: "c1".into(), ..Default::default() };
    host.client.pause(soon(), &container).await.unwrap();
    assert_eq!(code(host.start("c1", "e1").await), Code::FAILED_PRECONDITION);
    host.client.resume(soon(), &container).await.unwrap();
    host.start("c1", "e1").await.unwrap();
    assert_eq!(host.status("c1", "e1").await, 0);
    host.signal("c1", "", 9).await.unwrap();
}

#[tokio::test]
async fn nonsense_is_refused_with_its_own_code() {
    let host = Host::new();
    assert_eq!(code(host.start("", "").await), Code::INVALID_ARGUMENT);
    assert_eq!(code(host.start("nobody", "").await), Code::NOT_FOUND);
    assert_eq!(code(host.signal("nobody", "", 65).await), Code::INVALID_ARGUMENT);
    let request = m::CreateContainerRequest { container_id: "c1".into(), oci_spec: b"{".into(), ..Default::default() };
    assert_eq!(code(host.client.create_container(soon(), &request).await), Code::INVALID_ARGUMENT);
    host.run("c1", "exec sleep 1000").await;
    let update = m::UpdateRequest { container_id: "c1".into(), oci_resources: b"{}".into(), ..Default::default() };
    assert_eq!(code(host.client.update(soon(), &update).await), Code::UNIMPLEMENTED);
    host.signal("c1", "", 9).await.unwrap();
}

#[tokio::test]
async fn power_off_kills_answers_and_hangs_up() {
    let mut host = Host::new();
    host.run("c1", "exec sleep 1000").await;
    let waiting = host.wait("c1", "");
    host.client.power_off(soon(), &m::Empty::new()).await.unwrap();
    timeout(PATIENCE, host.served.take().unwrap()).await.unwrap().unwrap().unwrap();
    if let Ok(ended) = timeout(PATIENCE, waiting).await.unwrap().unwrap() {
        assert_eq!(ended.exit_status, 137);
    }
}

#[tokio::test]
async fn the_service_ends_when_the_host_hangs_up() {
    let mut host = Host::new();
    host.client.describe(soon(), &m::Empty::new()).await.unwrap();
    let served = host.served.take().unwrap();
    drop(host);
    timeout(PATIENCE, served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_network_that_cannot_be_is_refused_by_its_field() {
    let host = Host::new();
    let interface = m::NetworkInterface { name: "eth0".into(), mac: vec![2; 5], ..Default::default() };
    let network = MessageField::some(m::Network { interfaces: vec![interface], ..Default::default() });
    let update = m::UpdateNetworkRequest { network: network.clone(), ..Default::default() };
    let refused = host.client.update_network(soon(), &update).await;
    assert!(format!("{refused:?}").contains("MAC of an interface"), "{refused:?}");
    assert_eq!(code(refused), Code::INVALID_ARGUMENT);
    let configure = m::ConfigurePodRequest { network, ..Default::default() };
    assert_eq!(code(host.client.configure_pod(soon(), &configure).await), Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn who_does_not_own_the_machine_does_not_change_its_network() {
    let host = Host::new();
    assert_eq!(code(host.client.update_network(soon(), &m::UpdateNetworkRequest::new()).await), Code::UNIMPLEMENTED);
}
