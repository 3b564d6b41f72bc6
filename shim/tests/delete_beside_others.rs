//! `shim delete`, the real binary, of one container beside others in a living daemon: this process, which would be killed in its place.

mod fake_pod;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use containerd_shim_protos::api::DeleteResponse;
use fake_pod::{Shim, code, connect, delete, process, quick};
use protobuf::Message;
use tokio::{process::Command, time::timeout};
use ttrpc::Code;

/// containerd gives it so long.
const DELETE_DEADLINE: Duration = Duration::from_secs(5);

/// Deletes a container with the binary, as containerd does when it has lost a shim.
async fn shim_delete(shim: &Shim, id: &str) -> DeleteResponse {
    let output = Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-rs-v2"))
        .args(["-namespace", "ns", "-address", "/c.sock", "-publish-binary", "/bin/true", "-id", id])
        .arg("-socket")
        .arg(shim.socket())
        .arg("delete")
        .current_dir(shim.dir.path())
        .env("KATA_RS_STATE_DIR", shim.dir.path().join("run"))
        .stdin(Stdio::null())
        .output();
    let output = timeout(DELETE_DEADLINE, output).await.expect("in time").expect("ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    DeleteResponse::parse_from_bytes(&output.stdout).expect("an answer")
}

/// Waits until the daemon has forgotten a container.
async fn forgotten(shim: &Shim, id: &str) {
    let begun = Instant::now();
    while shim.state(id, "").await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{id} is still known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_delete_beside_a_drain_that_takes_long_ends_its_container_and_no_other() {
    let shim = Shim::start().await;
    let _reader = shim.run_with_output("c").await;
    shim.run("other").await;
    // Its output is open for ever, so the delete waits.
    let _output = shim.pod.far_stdout(&process("c", ""));
    shim.pod.end(&process("c", ""), 3);
    assert_eq!(shim.wait("c", "").await, 3);
    let client = containerd_shim_protos::shim_async::TaskClient::new(connect(&shim.socket()).await);
    let slow = tokio::spawn(async move { client.delete(quick(), &delete("c", "")).await });
    while !slow.is_finished() && shim.pod.far_ends.lock().expect("lock").is_empty() {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!slow.is_finished(), "the output is not drained");
    assert_eq!(shim_delete(&shim, "c").await.exit_status, 137);
    forgotten(&shim, "c").await;
    shim.state("other", "").await.expect("the other container lives");
    assert!(!*shim.pod.stopped.borrow(), "and so does the pod");
}

#[tokio::test]
async fn a_container_that_takes_long_to_die_is_left_to_its_daemon_which_ends_with_the_last() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim.run("other").await;
    *shim.pod.undead.lock().expect("lock") = true;
    shim_delete(&shim, "other").await;
    shim.state("other", "").await.expect("not dead yet");
    assert!(shim.socket().exists());
    shim.pod.end(&process("other", ""), 137);
    forgotten(&shim, "other").await;
    shim.state("c", "").await.expect("lives");
    *shim.pod.undead.lock().expect("lock") = false;
    shim_delete(&shim, "c").await;
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("nobody is left");
    assert!(*shim.pod.stopped.borrow());
}

#[tokio::test]
async fn a_pod_in_which_nothing_was_ever_made_ends_with_the_delete_of_its_own_container() {
    let shim = Shim::start().await;
    shim_delete(&shim, "c").await;
    timeout(Duration::from_secs(10), shim.service.ended()).await.expect("nobody is left");
}

#[tokio::test]
async fn a_container_that_nobody_knows_changes_nothing() {
    let shim = Shim::start().await;
    shim.run("c").await;
    shim_delete(&shim, "stranger").await;
    shim.state("c", "").await.expect("lives");
    assert_eq!(code(shim.state("stranger", "").await), Code::NOT_FOUND);
}
