use std::process::Command;

use tokio::io::AsyncWriteExt;
use vmm_control::{BootFailure, Ending, FromMachine, frame};

use super::{conversation::WORDS_CHARS_MAX, *};

async fn send(to: &mut UnixStream, message: &FromMachine) {
    to.write_all(&frame::encode(message).expect("small")).await.expect("sent");
}

#[tokio::test]
async fn the_first_word_on_the_end_counts() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    assert_eq!(machine.gone_already(), None);
    send(&mut theirs, &FromMachine::Ended(Ending::TripleFault)).await;
    drop(theirs);
    assert_eq!(&*machine.gone().await, "the guest kernel crashed (triple fault)");
}

#[tokio::test]
async fn a_machine_that_cannot_be_built_says_why() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    send(&mut theirs, &FromMachine::Failed(BootFailure { step: "kernel".into(), message: "not an ELF".into() })).await;
    assert_eq!(&*machine.gone().await, "the machine cannot be built (kernel): not an ELF");
    assert_eq!(machine.report().await.expect_err("gone").kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn the_words_of_a_vmm_that_was_taken_over_are_fit_to_be_shown() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    let message = format!("{}\x1b]0;owned\x07", "x".repeat(100_000));
    send(&mut theirs, &FromMachine::Ended(Ending::DeviceFault { device: "\x1b[2J".into(), message })).await;
    let sentence = machine.gone().await;
    assert!(!sentence.contains(char::is_control), "{sentence:?}");
    assert!(sentence.len() < 2 * WORDS_CHARS_MAX, "{} bytes", sentence.len());
}

#[tokio::test]
async fn noise_on_the_control_socket_is_an_end() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    theirs.write_all(&u32::MAX.to_be_bytes()).await.expect("sent");
    assert!(machine.gone().await.contains("over the limit"));
}

#[tokio::test]
async fn a_killed_vmm_is_told_by_its_signal_and_reaped() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
    let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
    let machine = Machine::converse(ours, Some(Arc::clone(&process)));
    process.kill();
    drop(theirs);
    assert!(machine.gone().await.contains("signal: 9"), "{}", machine.gone().await);
    assert!(!std::path::Path::new(&format!("/proc/{}", machine.pid())).exists());
}

#[tokio::test]
async fn the_last_message_counts_even_when_the_end_of_the_process_is_heard_first() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new("true").spawn().expect("spawned");
    let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
    send(&mut theirs, &FromMachine::Ended(Ending::GuestReset)).await;
    process.ended().await.expect("ended");
    let machine = Machine::converse(ours, Some(process));
    assert!(machine.gone().await.contains("switched the machine off"));
}

#[tokio::test]
async fn a_dead_vmm_is_gone_at_once_whoever_else_holds_its_socket() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new("false").spawn().expect("spawned");
    let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
    process.ended().await.expect("ended");
    let machine = Machine::converse(ours, Some(process));
    let gone = tokio::time::timeout(Duration::from_millis(500), machine.gone()).await.expect("at once");
    assert_eq!(&*gone, "the virtual machine monitor died (exit status: 1)");
}

#[tokio::test]
async fn a_vmm_that_hangs_up_and_lives_is_killed_at_once() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
    let machine = Machine::converse(ours, Some(Arc::new(Spawned::hold("vmm", child).expect("held"))));
    drop(theirs);
    let gone = tokio::time::timeout(Duration::from_millis(500), machine.gone()).await.expect("at once");
    assert!(gone.contains("signal: 9"), "{gone}");
}

#[tokio::test]
async fn a_message_that_comes_in_pieces_is_one_message() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    for byte in frame::encode(&FromMachine::Ended(Ending::TripleFault)).expect("small") {
        theirs.write_all(&[byte]).await.expect("sent");
        tokio::task::yield_now().await;
    }
    assert_eq!(&*machine.gone().await, "the guest kernel crashed (triple fault)");
}

#[tokio::test]
async fn a_machine_does_not_outlive_its_file_server() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    let child = Command::new("true").spawn().expect("spawned");
    machine.depend_on(Arc::new(Spawned::hold("file server", child).expect("held")));
    assert!(machine.gone().await.starts_with("the file server died (exit status: 0)"));
}

#[tokio::test]
async fn a_file_server_that_ends_after_its_machine_leaves_no_zombie() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let machine = Machine::converse(ours, None);
    drop(theirs);
    machine.gone().await;
    let server = Arc::new(Spawned::hold("file server", Command::new("true").spawn().expect("spawned")).expect("held"));
    machine.depend_on(Arc::clone(&server));
    let begun = std::time::Instant::now();
    while std::path::Path::new(&format!("/proc/{}", server.pid())).exists() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_condemned_machine_is_killed_for_the_reason_given() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
    let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
    let machine = Machine::converse(ours, Some(Arc::clone(&process)));
    machine.condemn("the agent went silent".into());
    assert_eq!(&*machine.gone().await, "the agent went silent");
    assert!(process.ended_within(Duration::from_secs(5)).await);
}
