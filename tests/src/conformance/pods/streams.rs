//! `kubectl exec -it` and `kubectl attach`: streams that CRI answers with a URL for.

use super::{super::Case, Subject, pod, same};
use crate::node::{Container, Template};

const GROUP: &str = "Pods: streams";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "exec streams output and error output apart, and ends with the exit code", exec_apart),
        Case::new(GROUP, "exec takes input", exec_input),
        Case::new(GROUP, "exec with a terminal is one stream, knows its size, and takes Ctrl-C", exec_terminal),
        Case::new(GROUP, "exec of a missing command ends with the reason", exec_missing),
        Case::new(GROUP, "attach sees what comes from then on, and takes input", attach),
        Case::new(GROUP, "attach, detach and attach again leave the container running", attach_again),
        Case::new(GROUP, "attach to a terminal resizes it", attach_terminal),
        Case::new(GROUP, "input that is given once ends with the one who gives it", stdin_once),
    ]
}

fn exec_apart(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let mut stream = container.exec_stream(&["sh", "-c", "echo out; echo err >&2; exit 7"], false, false)?;
    let code = stream.finish()?;
    same("stdout", stream.stdout.as_slice(), b"out\n")?;
    same("stderr", stream.stderr.as_slice(), b"err\n")?;
    same("exit code", code, 7)?;
    Ok(pod.remove()?)
}

fn exec_input(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let mut stream = container.exec_stream(&["sh"], true, false)?;
    stream.send("echo got $((6 * 7))\n")?;
    stream.expect("got 42\n")?;
    stream.send("exit 3\n")?;
    same("exit code", stream.finish()?, 3)?;
    Ok(pod.remove()?)
}

fn exec_terminal(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let mut stream = container.exec_stream(&["sh"], true, true)?;
    stream.resize(97, 31)?;
    // The size comes on a channel of its own, a moment after the shell is there.
    stream.send("until stty size | grep '31 97'; do sleep 0.05; done; tty; echo err >&2\r")?;
    stream.expect("31 97")?;
    stream.expect("/dev/pts/")?;
    stream.expect("err\r\n")?;
    // Said by the job itself: a Ctrl-C between two commands of the shell may meet neither.
    stream.send("sh -c 'echo before; exec sleep 1000'; echo $((100 + 30))\r")?;
    stream.expect("before\r\n")?;
    stream.send("\u{3}")?;
    stream.send("exit 9\r")?;
    same("exit code", stream.finish()?, 9)?;
    same("stderr", stream.stderr.len(), 0)?;
    Ok(pod.remove()?)
}

fn exec_missing(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let mut stream = container.exec_stream(&["no-such-command"], false, false)?;
    let error = stream.finish().expect_err("there is no such command").to_string();
    anyhow::ensure!(error.contains("no-such-command"), "{error}");
    anyhow::ensure!(error.contains("executable file not found in $PATH"), "{error}");
    Ok(pod.remove()?)
}

/// Answers each line it is given.
fn echo_server(template: Template) -> Template {
    template.with(|config| {
        config.stdin = true;
        config.command =
            ["sh", "-c", "while read line; do echo \"you said $line\"; done; echo no more"].map(str::to_owned).to_vec();
    })
}

fn talk(container: &Container, word: &str, end: &str) -> anyhow::Result<()> {
    let mut stream = container.attach(true, container.config.tty)?;
    stream.send(&format!("{word}{end}"))?;
    stream.expect(&format!("you said {word}"))?;
    Ok(())
}

fn attach(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(echo_server(Template::pause()))?;
    talk(&container, "hello", "\n")?;
    // What an attached client sees is in the log, too.
    container.wait_for_output("you said hello\n")?;
    Ok(pod.remove()?)
}

fn attach_again(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(echo_server(Template::pause()))?;
    for word in ["one", "two", "three"] {
        talk(&container, word, "\n")?;
    }
    same("state", container.status()?.state(), cri::v1::ContainerState::ContainerRunning)?;
    same("log", container.wait_for_output("three\n")?.as_str(), "you said one\nyou said two\nyou said three\n")?;
    Ok(pod.remove()?)
}

fn attach_terminal(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::command(&["sh"]).with(|config| {
        config.tty = true;
        config.stdin = true;
    }))?;
    let mut stream = container.attach(true, true)?;
    stream.resize(88, 22)?;
    stream.send("until stty size | grep '22 88'; do sleep 0.05; done; echo $((40 + 2)) done\r")?;
    stream.expect("42 done")?;
    stream.send("exit 4\r")?;
    same("exit code", container.wait()?.exit_code, 4)?;
    Ok(pod.remove()?)
}

fn stdin_once(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = echo_server(Template::pause()).with(|config| config.stdin_once = true);
    let container = pod.start(template)?;
    talk(&container, "first and last", "\n")?;
    // The client is gone, so the container reads the end of its input, and ends.
    let status = container.wait()?;
    same("end", (status.exit_code, status.reason.as_str()), (0, "Completed"))?;
    same("log", container.whole_output()?.as_str(), "you said first and last\nno more\n")?;
    Ok(pod.remove()?)
}
