//! Input, output and terminals.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use containerd_shim_protos::api::Status;

use super::same;
use crate::{
    conformance::{Bundle, Case, Reader, SIGKILL, Stdio, Subject, Task, fifo, process},
    node::{STARTS_WITHIN, poll_until},
};

const GROUP: &str = "Task: stdio";
/// Longest that a container may live after a kill, whoever does not read its output.
const KILL_BOUND: Duration = Duration::from_secs(1);

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("output and errors stay apart, and are whole when delete has answered", apart_and_whole),
        case("eight megabytes of output arrive whole", much_output),
        case("four megabytes of input arrive whole", much_input),
        case("a writer that hangs up may come back: the input goes on", writer_comes_back),
        case("the input ends when its writer has hung up and CloseIO was said", hang_up),
        case("an exec has its own input and output", exec_input),
        case("without pipes output goes nowhere, and the process ends as it would", no_stdio),
        case("output goes on while nobody reads, and the next reader has it", reader_comes_back),
        case("a container that nobody reads from is killed in under a second", kill_of_unread),
        case("a process that nobody reads from holds up no other", unread_beside_read),
        case("a terminal is a terminal, with errors and output in one", terminal),
        case("a terminal has the size that it was given, before and after", resize),
        case("an exec can have a terminal", exec_terminal),
        case("file:// appends to a file", file_target),
        case("binary:// hands the pipes to a program that logs", binary_target),
    ]
}

fn apart_and_whole(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", "echo out; echo err >&2; echo more"])?;
    task.wait("")?;
    task.delete("")?;
    same("output", stdio.whole()?.as_str(), "out\nmore\n")?;
    same("errors", stdio.err.as_ref().map(Reader::whole).transpose()?.as_deref(), Some("err\n"))?;
    task.end_shim()
}

fn much_output(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", "seq 1 1200000"])?;
    let text = stdio.whole()?;
    task.wait("")?;
    let mut wanted = 1_u32;
    for line in text.lines() {
        same("line", line.parse().unwrap_or(0), wanted)?;
        wanted += 1;
    }
    same("lines", wanted - 1, 1_200_000)?;
    task.end()
}

fn much_input(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["sh", "-c", "wc -c"])?)?;
    let mut stdio = Stdio::all(&task.bundle.folder, "init")?;
    task.create(&stdio)?;
    task.start("")?;
    let block = "0123456789abcdef".repeat(4096);
    for _ in 0..64 {
        stdio.type_in(&block)?;
    }
    stdio.drained_and_closed()?;
    task.close_stdin("")?;
    same("count", stdio.whole()?.trim(), "4194304")?;
    task.end()
}

fn cat(subject: &Subject) -> anyhow::Result<(Task, Stdio)> {
    let task = Task::new(subject, Bundle::new(subject, &["cat"])?)?;
    let mut stdio = Stdio::all(&task.bundle.folder, "init")?;
    task.create(&stdio)?;
    task.start("")?;
    stdio.type_in("hello\n")?;
    stdio.until("hello\n")?;
    Ok((task, stdio))
}

fn writer_comes_back(subject: &Subject) -> anyhow::Result<()> {
    let (task, mut stdio) = cat(subject)?;
    stdio.hang_up();
    stdio.come_back()?;
    stdio.type_in("again\n")?;
    stdio.until("again\n")?;
    task.close_stdin("")?;
    same("status", task.status("")?, Status::RUNNING)?;
    stdio.hang_up();
    same("exit status", task.wait("")?.exit_status, 0)?;
    task.close_stdin("")?;
    task.end()
}

fn hang_up(subject: &Subject) -> anyhow::Result<()> {
    let (task, mut stdio) = cat(subject)?;
    stdio.hang_up();
    task.close_stdin("")?;
    same("exit status", task.wait("")?.exit_status, 0)?;
    task.end()
}

fn exec_input(subject: &Subject) -> anyhow::Result<()> {
    let (task, mut of_init) = cat(subject)?;
    let mut of_exec = Stdio::all(&task.bundle.folder, "e1")?;
    task.exec_with("e1", &process(&["cat"]), &of_exec)?;
    task.start("e1")?;
    of_exec.type_in("to the exec\n")?;
    of_init.type_in("to init\n")?;
    same("of the exec", of_exec.until("\n")?.as_str(), "to the exec\n")?;
    of_init.until("to init\n")?;
    of_exec.hang_up();
    task.close_stdin("e1")?;
    same("status of the exec", task.wait("e1")?.exit_status, 0)?;
    task.delete("e1")?;
    same("whole of the exec", of_exec.whole()?.as_str(), "to the exec\n")?;
    task.end()?;
    same("whole of init", of_init.whole()?.as_str(), "hello\nto init\n")
}

fn no_stdio(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sh", "-c", "seq 1 200000; read line; exit 7"])?;
    same("exit status", task.wait("")?.exit_status, 7)?;
    task.end()
}

fn reader_comes_back(subject: &Subject) -> anyhow::Result<()> {
    let words = ["sh", "-c", "while read line; do echo got $line; done"];
    let task = Task::new(subject, Bundle::new(subject, &words)?)?;
    let mut stdio = Stdio::unread(&task.bundle.folder, "init")?;
    // A reader that can go: containerd, before its restart.
    let path = task.bundle.path("init.out");
    let first = fifo::open_reader(&path)?;
    task.create(&stdio)?;
    task.start("")?;
    stdio.type_in("one\n")?;
    same("first reader", fifo::read_line(&first)?.as_str(), "got one\n")?;
    drop(first);
    stdio.type_in("two\nthree\n")?;
    let second = fifo::open_reader(&path)?;
    same("second reader", fifo::read_line(&second)?.as_str(), "got two\n")?;
    same("second reader", fifo::read_line(&second)?.as_str(), "got three\n")?;
    stdio.type_in("four\n")?;
    same("second reader", fifo::read_line(&second)?.as_str(), "got four\n")?;
    task.end()
}

/// A container whose output is full to the brim, and the reader's end, which nobody reads.
fn unread(subject: &Subject, words: &[&str]) -> anyhow::Result<(Task, fs::File)> {
    let task = Task::new(subject, Bundle::new(subject, words)?)?;
    let stdio = Stdio::unread(&task.bundle.folder, "init")?;
    let reader = fifo::open_reader(&task.bundle.path("init.out"))?;
    task.create(&stdio)?;
    task.start("")?;
    Ok((task, reader))
}

fn kill_of_unread(subject: &Subject) -> anyhow::Result<()> {
    let (task, reader) = unread(subject, &["sh", "-c", "yes"])?;
    fifo::wait_until_full(&reader)?;
    let begin = Instant::now();
    task.kill("", SIGKILL)?;
    same("exit status", task.wait("")?.exit_status, 137)?;
    let took = begin.elapsed();
    anyhow::ensure!(took < KILL_BOUND, "the kill took {took:?}");
    drop(reader);
    task.end()
}

fn unread_beside_read(subject: &Subject) -> anyhow::Result<()> {
    let (task, reader) = unread(subject, &["sh", "-c", "yes"])?;
    fifo::wait_until_full(&reader)?;
    let begin = Instant::now();
    same("an exec", task.output_of("e1", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    anyhow::ensure!(begin.elapsed() < Duration::from_secs(10), "the exec took {:?}", begin.elapsed());
    task.kill("", SIGKILL)?;
    drop(reader);
    task.end()
}

fn terminal_of(subject: &Subject, words: &[&str]) -> anyhow::Result<(Task, Stdio)> {
    let mut bundle = Bundle::new(subject, words)?;
    bundle.spec["process"]["terminal"] = true.into();
    let task = Task::new(subject, bundle)?;
    let stdio = Stdio::terminal(&task.bundle.folder, "init")?;
    task.create(&stdio)?;
    Ok((task, stdio))
}

fn terminal(subject: &Subject) -> anyhow::Result<()> {
    let (task, mut stdio) = terminal_of(subject, &["sh", "-c", "tty; echo err >&2; read line; echo got $line"])?;
    same("terminal", task.state("")?.terminal, true)?;
    task.start("")?;
    stdio.until("err\r\n")?;
    stdio.type_in("typed\n")?;
    same("exit status", task.wait("")?.exit_status, 0)?;
    task.delete("")?;
    let text = stdio.whole()?;
    anyhow::ensure!(text.starts_with("/dev/"), "tty says {text:?}");
    anyhow::ensure!(text.contains("typed\r\n") && text.ends_with("got typed\r\n"), "an echo and an answer: {text:?}");
    task.end_shim()
}

fn resize(subject: &Subject) -> anyhow::Result<()> {
    let script = "read line; stty size; read line; stty size; read line";
    let (task, mut stdio) = terminal_of(subject, &["sh", "-c", script])?;
    task.start("")?;
    task.resize("", 111, 33)?;
    stdio.type_in("\n")?;
    stdio.until("33 111\r\n")?;
    task.resize("", 77, 22)?;
    stdio.type_in("\n")?;
    stdio.until("22 77\r\n")?;
    stdio.type_in("\n")?;
    same("exit status", task.wait("")?.exit_status, 0)?;
    task.end()
}

fn exec_terminal(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let mut stdio = Stdio::terminal(&task.bundle.folder, "e1")?;
    task.exec_with("e1", &process(&["sh", "-c", "read line; stty size; tty; exit 2"]), &stdio)?;
    task.start("e1")?;
    task.resize("e1", 90, 30)?;
    stdio.type_in("\n")?;
    same("exit status", task.wait("e1")?.exit_status, 2)?;
    task.delete("e1")?;
    let text = stdio.whole()?;
    anyhow::ensure!(text.contains("30 90\r\n/dev/"), "{text:?}");
    task.end()
}

fn file_target(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["sh", "-c", "echo line; echo error >&2"])?)?;
    let path = task.bundle.path("output.log");
    fs::write(&path, "before\n")?;
    let address = format!("file://{}", path.display());
    let stdio = Stdio::to(&address);
    task.create(&stdio)?;
    task.start("")?;
    task.wait("")?;
    // Before the delete: at a delete runc's shim, on a busy host, drops what it has not written yet.
    let whole = || Ok(Some(fs::read_to_string(&path)?).filter(|text| text.lines().count() >= 3));
    let text = poll_until(STARTS_WITHIN, whole)?.context("the file does not get all lines")?;
    task.delete("")?;
    let mut lines: Vec<_> = text.lines().collect();
    lines[1..].sort_unstable();
    same("lines", lines, vec!["before", "error", "line"])?;
    task.end_shim()
}

/// A logger as containerd's runtime/v2/logging describes it: output on 3, errors on 4, and 5 to be closed when it is ready.
/// It has to bear SIGTERM: at the end it is told to hurry.
const LOGGER: &str = "#!/bin/sh
trap '' TERM
echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\" > \"$2/who\"
cat <&3 5>&- > \"$2/out\" &
cat <&4 5>&- > \"$2/err\" &
exec 5>&-
wait
echo done > \"$2/done\"
";

fn binary_target(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["sh", "-c", "echo line; echo error >&2"])?)?;
    let program = task.bundle.path("logger.sh");
    fs::write(&program, LOGGER)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let folder = task.bundle.folder.display().to_string();
    let address = format!("binary://{}?folder={folder}", program.display());
    let stdio = Stdio::to(&address);
    task.create(&stdio)?;
    task.start("")?;
    task.wait("")?;
    task.delete("")?;
    let read = |name: &str| fs::read_to_string(Path::new(&folder).join(name));
    fifo::wait_for_file(&task.bundle.path("done"))?;
    same("output", read("out")?.as_str(), "line\n")?;
    same("errors", read("err")?.as_str(), "error\n")?;
    same("who", read("who")?, format!("{} {} folder {folder}\n", task.id(), subject.namespace()))?;
    task.end_shim()
}
