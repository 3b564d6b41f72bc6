use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use super::*;

struct Fifo(tempfile::TempDir);

impl Fifo {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), mode).expect("fifo");
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("fifo")
    }

    fn text(&self) -> String {
        self.path().display().to_string()
    }
}

fn open_reader(path: &Path) -> File {
    // Both directions, so that opening does not wait; then the other end goes when the File is made read-only.
    File::options().read(true).open(path).expect("reader")
}

async fn stdout_to(fifo: &Fifo) -> (Stdio, UnixStream) {
    let paths = Paths { stdout: fifo.text(), ..Paths::default() };
    let (ours, process) = UnixStream::pair().expect("pair");
    let opened = open(&paths).await.expect("opened");
    let streams = ProcessStreams { stdout: Some(ours), ..ProcessStreams::default() };
    let mut stdio = opened.connect(streams).expect("connected");
    stdio.begin().expect("no input to open");
    (stdio, process)
}

async fn stdin_from(fifo: &Fifo) -> (Stdio, UnixStream) {
    let paths = Paths { stdin: fifo.text(), ..Paths::default() };
    let (ours, process) = UnixStream::pair().expect("pair");
    let opened = open(&paths).await.expect("opened");
    let streams = ProcessStreams { stdin: Some(ours), ..ProcessStreams::default() };
    let mut stdio = opened.connect(streams).expect("connected");
    stdio.begin().expect("opened");
    (stdio, process)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place.wrapping_mul(31) >> 3) as u8).collect()
}

async fn open(paths: &Paths) -> Result<Opened, Refusal> {
    Opened::open(paths, Owner { namespace: "ns", id: "c" }).await
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("thread")
}

#[tokio::test]
async fn output_arrives_whole_and_in_order_at_a_slow_reader() {
    const LENGTH: usize = 8 << 20;
    let fifo = Fifo::new();
    let (stdio, mut process) = stdout_to(&fifo).await;
    let path = fifo.path();
    let reader = tokio::task::spawn_blocking(move || {
        let mut file = open_reader(&path);
        let (mut all, mut step) = (Vec::new(), vec![0; 10_007]);
        loop {
            match file.read(&mut step).expect("read") {
                0 => return all,
                length => all.extend_from_slice(&step[..length]),
            }
            if all.len() % 64 == 0 {
                std::thread::yield_now();
            }
        }
    });
    let writer = in_thread(move || process.write_all(&pattern(LENGTH)).map(|()| drop(process)));
    writer.await.expect("written");
    stdio.drain().await;
    assert!(reader.await.expect("read") == pattern(LENGTH));
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_the_process_and_no_memory() {
    let fifo = Fifo::new();
    let (_stdio, process) = stdout_to(&fifo).await;
    process.set_nonblocking(true).expect("set");
    let _reader = File::options().read(true).write(true).open(fifo.path()).expect("reader");
    let (mut accepted, mut refused_in_a_row) = (0_usize, 0);
    while refused_in_a_row < 100 {
        match (&process).write(&[7; 4096]) {
            Ok(length) => {
                accepted += length;
                refused_in_a_row = 0;
            }
            Err(_) => refused_in_a_row += 1,
        }
        tokio::task::yield_now().await;
    }
    assert!(accepted < 2 << 20, "{accepted} bytes went into a fifo that holds 64 KiB");
}

#[tokio::test]
async fn a_reader_that_goes_and_comes_back_does_not_end_the_output() {
    let fifo = Fifo::new();
    let (stdio, mut process) = stdout_to(&fifo).await;
    drop(open_reader(&fifo.path()));
    process.write_all(b"while nobody read").expect("written");
    drop(process);
    let path = fifo.path();
    let file = open_reader(&path);
    stdio.drain().await;
    let text = in_thread(move || std::io::read_to_string(file)).await.expect("read");
    assert_eq!(text, "while nobody read");
}

// containerd opens its end on a thread that may be late: what a short exec had said was lost, and the reader waited for ever.
#[tokio::test]
async fn a_reader_that_comes_after_the_end_gets_everything_and_its_end() {
    let fifo = Fifo::new();
    let (stdio, mut process) = stdout_to(&fifo).await;
    process.write_all(b"said and gone").expect("written");
    drop(process);
    let draining = tokio::spawn(stdio.drain());
    tokio::task::yield_now().await;
    let path = fifo.path();
    let reading = in_thread(move || std::io::read_to_string(open_reader(&path)));
    let text = timeout(Duration::from_secs(5), reading).await.expect("it ends").expect("read");
    assert_eq!(text, "said and gone");
    draining.await.expect("no panic");
}

// The daemon's runtime has four threads for all work that blocks.
#[test]
fn readers_that_do_not_come_keep_no_thread_of_the_runtime() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().expect("built");
    runtime.block_on(async {
        let fifos = [Fifo::new(), Fifo::new()];
        let waiting = [stdout_to(&fifos[0]).await, stdout_to(&fifos[1]).await];
        timeout(Duration::from_secs(5), in_thread(|| ())).await.expect("other work goes on");
        drop(waiting);
    });
}

#[tokio::test]
async fn the_reader_of_a_process_that_never_began_is_not_waited_for() {
    let fifo = Fifo::new();
    let paths = Paths { stdout: fifo.text(), ..Paths::default() };
    let (ours, process) = UnixStream::pair().expect("pair");
    let streams = ProcessStreams { stdout: Some(ours), ..ProcessStreams::default() };
    let stdio = open(&paths).await.expect("opened").connect(streams).expect("connected");
    drop(process);
    timeout(READER_COMES_WITHIN / 2, stdio.drain()).await.expect("at once");
}

#[tokio::test]
async fn a_fifo_that_is_removed_before_its_reader_comes_holds_up_nobody() {
    let fifo = Fifo::new();
    let (stdio, process) = stdout_to(&fifo).await;
    drop(process);
    drop(fifo);
    timeout(Duration::from_secs(5), stdio.drain()).await.expect("given up");
}

#[tokio::test]
async fn output_that_nobody_will_read_does_not_hold_up_the_end() {
    let fifo = Fifo::new();
    let (stdio, process) = stdout_to(&fifo).await;
    process.set_nonblocking(true).expect("set");
    for _ in 0..1000 {
        let _ = (&process).write(&[7; 4096]);
        tokio::task::yield_now().await;
    }
    drop(process);
    timeout(SILENCE_MAX, stdio.drain()).await.expect("a full fifo without a reader is given up at once");
}

#[tokio::test]
async fn a_descendant_that_keeps_the_output_open_does_not_hold_up_the_end() {
    let fifo = Fifo::new();
    let (stdio, _process) = stdout_to(&fifo).await;
    let _reader = File::options().read(true).write(true).open(fifo.path()).expect("reader");
    timeout(SILENCE_MAX * 2, stdio.drain()).await.expect("given up");
}

#[tokio::test]
async fn input_arrives_whole_and_ends_after_close_io_only() {
    const LENGTH: usize = 4 << 20;
    let fifo = Fifo::new();
    let (mut stdio, mut process) = stdin_from(&fifo).await;
    let path = fifo.path();
    in_thread({
        let path = path.clone();
        move || File::options().write(true).open(path).expect("writer").write_all(b"first;").expect("written")
    })
    .await;
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        process.read_to_end(&mut all).map(|_| all)
    });
    in_thread(move || {
        File::options().write(true).open(path).expect("writer").write_all(&pattern(LENGTH)).expect("written")
    })
    .await;
    assert!(!reader.is_finished(), "the input goes on while a client may come back");
    stdio.close_stdin();
    let all = reader.await.expect("thread").expect("read");
    assert!(all.starts_with(b"first;") && all[6..] == pattern(LENGTH));
}

#[tokio::test]
async fn a_terminal_is_not_hung_up_at_the_end_of_its_input() {
    let fifo = Fifo::new();
    let paths = Paths { stdin: fifo.text(), terminal: true, ..Paths::default() };
    let (ours, process) = UnixStream::pair().expect("pair");
    let streams = ProcessStreams { stdin: Some(ours), ..ProcessStreams::default() };
    let mut stdio = open(&paths).await.expect("opened").connect(streams).expect("connected");
    stdio.begin().expect("opened");
    let path = fifo.path();
    in_thread(move || File::options().write(true).open(path).expect("writer").write_all(b"exit\n").expect("written"))
        .await;
    stdio.close_stdin();
    process.set_nonblocking(true).expect("set");
    let mut text = [0; 5];
    while (&process).read(&mut text).is_err() {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((&process).read(&mut text).expect_err("open").kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_file_gets_everything_appended() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("logs/out");
    let paths = Paths { stdout: format!("file://{}", file.display()), ..Paths::default() };
    for word in [b"one,", b"two;"] {
        let (ours, mut process) = UnixStream::pair().expect("pair");
        let streams = ProcessStreams { stdout: Some(ours), ..ProcessStreams::default() };
        let stdio = open(&paths).await.expect("opened").connect(streams).expect("connected");
        process.write_all(word).expect("written");
        drop(process);
        stdio.drain().await;
    }
    assert_eq!(std::fs::read_to_string(file).expect("read"), "one,two;");
}

#[tokio::test]
async fn paths_that_cannot_be_used_are_refused_by_name() {
    for (path, word) in [
        ("binary:///nowhere/logger", "/nowhere/logger"),
        ("npipe:///x", "npipe://"),
        ("/nowhere/fifo", "/nowhere/fifo"),
        ("/dev/null", "not a fifo"),
        ("file:///dev/null", "neither a file nor a fifo"),
        ("file:///dev", "/dev"),
    ] {
        let refusal = open(&Paths { stdout: path.into(), ..Paths::default() }).await.err().expect(path);
        assert_eq!(refusal.kind, pod::ErrorKind::InvalidArgument, "{path}");
        assert!(refusal.message.contains(word) && refusal.message.contains("stdout"), "{}", refusal.message);
        let refusal = open(&Paths { stdin: path.into(), ..Paths::default() }).await.err().expect(path);
        assert!(refusal.message.contains("stdin"), "{}", refusal.message);
    }
}

#[tokio::test]
async fn a_fifo_named_as_a_file_waits_for_nobody() {
    let fifo = Fifo::new();
    let paths = Paths { stdout: format!("file://{}", fifo.text()), ..Paths::default() };
    let (ours, mut process) = UnixStream::pair().expect("pair");
    let opened = timeout(Duration::from_secs(5), open(&paths)).await.expect("it waits for a reader").expect("opened");
    let streams = ProcessStreams { stdout: Some(ours), ..ProcessStreams::default() };
    let stdio = opened.connect(streams).expect("connected");
    process.write_all(b"into a fifo").expect("written");
    drop(process);
    let file = open_reader(&fifo.path());
    stdio.drain().await;
    assert_eq!(in_thread(move || std::io::read_to_string(file)).await.expect("read"), "into a fifo");
}

/// By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
pub(super) fn write_program(path: &std::path::Path, text: &str) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(path).arg(text);
    assert!(shell.status().expect("sh runs").success());
}

/// A process whose output goes to a shell script, which is ready at once.
async fn stdout_to_script(lines: &str) -> (Stdio, UnixStream, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("folder");
    let script = dir.path().join("logger");
    write_program(&script, &format!("#!/bin/sh\nexec 5>&-\n{lines}\n"));
    let paths = Paths { stdout: format!("binary://{}", script.display()), ..Paths::default() };
    let (ours, process) = UnixStream::pair().expect("pair");
    let streams = ProcessStreams { stdout: Some(ours), ..ProcessStreams::default() };
    (open(&paths).await.expect("opened").connect(streams).expect("connected"), process, dir)
}

async fn written_until_refused(process: &UnixStream) -> (usize, io::ErrorKind) {
    process.set_nonblocking(true).expect("set");
    let (mut accepted, mut refused_in_a_row) = (0_usize, 0);
    loop {
        match (&*process).write(&[7; 4096]) {
            Ok(length) => (accepted, refused_in_a_row) = (accepted + length, 0),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock || refused_in_a_row > 100 => {
                return (accepted, error.kind());
            }
            Err(_) => refused_in_a_row += 1,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_logger_that_does_not_read_holds_up_its_process_and_no_memory() {
    let (_stdio, process, _dir) = stdout_to_script("exec sleep 600").await;
    let (accepted, why) = written_until_refused(&process).await;
    assert_eq!(why, io::ErrorKind::WouldBlock);
    assert!(accepted < 2 << 20, "{accepted} bytes went into a pipe that holds 64 KiB");
}

#[tokio::test]
async fn a_logger_that_dies_ends_the_output_and_holds_up_no_end() {
    let (stdio, process, _dir) = stdout_to_script("exit 1").await;
    let (_, why) = written_until_refused(&process).await;
    assert_eq!(why, io::ErrorKind::BrokenPipe);
    timeout(SILENCE_MAX * 5, stdio.drain()).await.expect("there is nothing to wait for");
}

#[tokio::test]
async fn nothing_is_read_before_the_process_starts() {
    let fifo = Fifo::new();
    let paths = Paths { stdin: fifo.text(), ..Paths::default() };
    let (ours, _process) = UnixStream::pair().expect("pair");
    let streams = ProcessStreams { stdin: Some(ours), ..ProcessStreams::default() };
    let mut stdio = open(&paths).await.expect("opened").connect(streams).expect("connected");
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let try_to_write = || rustix::fs::open(fifo.path(), flags, rustix::fs::Mode::empty());
    assert_eq!(try_to_write().expect_err("no reader"), rustix::io::Errno::NXIO);
    stdio.begin().expect("opened");
    assert!(try_to_write().is_ok());
}

#[test]
fn a_terminal_has_no_stderr() {
    let paths = Paths { stdin: "i".into(), stdout: "o".into(), stderr: "e".into(), terminal: true };
    let wanted = paths.wanted((80, 24));
    assert!(wanted.stdin && wanted.stdout && !wanted.stderr);
    assert_eq!(wanted.terminal, Some((80, 24)));
    assert!(!Paths::default().wanted((0, 0)).stdout);
}

#[tokio::test]
async fn an_exit_is_told_once_the_reader_has_taken_what_is_left() {
    let fifo = Fifo::new();
    let (stdio, mut process) = stdout_to(&fifo).await;
    process.write_all(b"last words").expect("written");
    drop(process);
    let mut reader = open_reader(&fifo.path());
    let waiting = tokio::spawn(unread::taken(stdio.unread()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "the words are still in the fifo");
    let mut words = [0; 10];
    in_thread(move || reader.read_exact(&mut words)).await.expect("read");
    tokio::time::timeout(Duration::from_millis(100), waiting).await.expect("at once").expect("no panic");
}

#[tokio::test]
async fn an_exit_is_told_soon_when_nobody_reads() {
    let fifo = Fifo::new();
    let (stdio, mut process) = stdout_to(&fifo).await;
    process.write_all(b"for nobody").expect("written");
    tokio::time::timeout(Duration::from_millis(800), unread::taken(stdio.unread())).await.expect("given up");
}
