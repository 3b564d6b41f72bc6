use std::{fs, io::Write, path::PathBuf};

use super::*;
use crate::stdio::{target::Target, tests::write_program};

/// A folder with a logger in it, which gets the folder as its second word.
struct Script(tempfile::TempDir);

impl Script {
    fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("logger");
        write_program(&path, &format!("#!/bin/sh\ndir=$2\n{lines}\n"));
        Self(dir)
    }

    fn program(&self, scheme: &str) -> Program {
        let dir = self.0.path().display();
        let Ok(Target::Program(program)) = Target::parse("stdout", &format!("{scheme}://{dir}/logger?dir={dir}"))
        else {
            panic!("a program")
        };
        program
    }

    async fn start(&self, scheme: &str) -> Result<(Logger, LoggerPipes), Refusal> {
        Logger::start(&self.program(scheme), Owner { namespace: "ns", id: "c" }).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("read")
    }
}

fn write(end: &OwnedFd, text: &str) {
    fs::File::from(end.try_clone().expect("a copy")).write_all(text.as_bytes()).expect("written");
}

#[tokio::test]
async fn a_logger_reads_both_outputs_and_knows_whose_they_are() {
    let script = Script::new(
        "echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1 $(env | grep -c =)\" > $dir/who\nexec 5>&-\ncat <&3 > $dir/out &\ncat <&4 > $dir/err\nwait\nsleep 0.2\necho end >> $dir/out",
    );
    let (logger, pipes) = script.start("binary").await.expect("ready");
    write(&pipes.output, "said\n");
    write(&pipes.errors, "complained\n");
    drop(pipes);
    logger.end().await;
    assert_eq!((script.text("out").as_str(), script.text("err").as_str()), ("said\nend\n", "complained\n"));
    assert!(script.text("who").starts_with("ns/c dir"), "{}", script.text("who"));
}

#[tokio::test]
async fn nothing_begins_before_the_logger_is_ready() {
    let script = Script::new("read word < $dir/gate\nexec 5>&-\ncat <&3 > /dev/null");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, script.file("gate"), mode).expect("fifo");
    let starting = script.start("binary");
    tokio::pin!(starting);
    assert!(timeout(Duration::from_millis(300), &mut starting).await.is_err(), "it is not ready yet");
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(script.file("gate"))
        .expect("gate")
        .write_all(b"go\n")
        .expect("said");
    let (logger, pipes) = timeout(Duration::from_secs(10), starting).await.expect("in time").expect("ready");
    drop(pipes);
    logger.end().await;
}

#[tokio::test]
async fn the_second_version_must_say_so_before_it_closes() {
    let silent = Script::new("exec 5>&-\ncat <&3 > /dev/null");
    let refusal = silent.start("binary-v2").await.err().expect("refused");
    assert_eq!(refusal.kind, ErrorKind::FailedPrecondition);
    assert!(refusal.message.contains("logger"), "{}", refusal.message);
    let honest = Script::new("printf x >&5\nexec 5>&-\ncat <&3 > /dev/null");
    assert!(honest.start("binary-v2").await.is_ok());
}

#[tokio::test]
async fn a_logger_that_cannot_be_started_is_an_invalid_argument() {
    let program = Program { path: "/nowhere/logger".into(), words: Vec::new(), must_say: false };
    let refusal = Logger::start(&program, Owner { namespace: "ns", id: "c" }).await.err().expect("refused");
    assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
    assert!(refusal.message.contains("/nowhere/logger"), "{}", refusal.message);
}

#[tokio::test]
async fn a_logger_that_does_not_end_is_ended() {
    let script = Script::new("trap '' TERM\necho $$ > $dir/pid\nexec 5>&-\nwhile :; do sleep 0.05; done");
    let (logger, pipes) = script.start("binary").await.expect("ready");
    drop(pipes);
    logger.end_within(Duration::from_millis(50), Duration::from_millis(50)).await;
    let process = PathBuf::from("/proc").join(script.text("pid").trim());
    assert!(!process.exists(), "it still runs");
}
