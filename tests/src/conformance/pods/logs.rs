//! The log files that `kubectl logs` reads.

use std::fs;

use anyhow::ensure;
use cri::v1;

use super::{super::Case, Subject, pod, same};
use crate::node::{LogLine, Template};

const GROUP: &str = "Pods: logs";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "each line has a time, its stream, and whether it is whole", format),
        Case::new(GROUP, "a line longer than 16 KiB comes in parts that make the whole", long_line),
        Case::new(GROUP, "a log is followed while the container runs", follow),
        Case::new(GROUP, "a log that was rotated goes on in a new file", reopen),
        Case::new(GROUP, "ten thousand lines arrive in order", many_lines),
        Case::new(GROUP, "a terminal's output is one stream", terminal),
    ]
}

fn format(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::sh("echo one; sleep 0.1; echo two words >&2; sleep 0.1; printf three"))?;
    container.wait()?;
    let log = container.log()?;
    let stream =
        |name: &str| log.iter().filter(|line| line.stream == name).map(|line| line.text.clone()).collect::<Vec<_>>();
    same("stdout", stream("stdout"), vec!["one".to_owned(), "three".to_owned()])?;
    same("stderr", stream("stderr"), vec!["two words".to_owned()])?;
    let times: Vec<_> = log.iter().map(|line| line.time.clone()).collect();
    ensure!(times.is_sorted(), "times: {times:?}");
    ensure!(times.iter().all(|time| time.len() >= 20 && time.contains('T')), "times: {times:?}");
    Ok(pod.remove()?)
}

fn long_line(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::python("print('x' * 40000)"))?;
    container.wait()?;
    let log = container.log()?;
    let whole: String = log.iter().map(|line| line.text.as_str()).collect();
    same("length", whole.len(), 40000)?;
    let tags: Vec<_> = log.iter().map(|line: &LogLine| line.full).collect();
    same("the last part alone is a line's end", tags, vec![false, false, true])?;
    Ok(pod.remove()?)
}

fn follow(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container =
        pod.start(Template::sh("trap 'exit 0' TERM; n=0; while :; do echo line $n; n=$((n+1)); sleep 0.05; done"))?;
    container.wait_for_output("line 3\n")?;
    same("state", container.status()?.state(), v1::ContainerState::ContainerRunning)?;
    container.wait_for_output("line 6\n")?;
    Ok(pod.remove()?)
}

fn reopen(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container =
        pod.start(Template::sh("trap 'exit 0' TERM; n=0; while :; do echo line $n; n=$((n+1)); sleep 0.05; done"))?;
    container.wait_for_output("line 2\n")?;
    let rotated = container.log_path().with_extension("rotated");
    fs::rename(container.log_path(), &rotated)?;
    pod.node.cri.reopen_container_log(v1::ReopenContainerLogRequest { container_id: container.id.clone() })?;
    container.wait_for_output("line ")?;
    container.stop(10)?;
    let lines =
        |text: String| text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).collect::<Vec<_>>();
    let (old, new) = (lines(fs::read_to_string(rotated)?), lines(fs::read_to_string(container.log_path())?));
    let all: Vec<_> = old.into_iter().chain(new).collect();
    same("both files together", &all, &(0..all.len() as u32).collect())?;
    Ok(pod.remove()?)
}

fn many_lines(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    // It ends when all has arrived: of what is on its way at the exit, runc's shim on a busy host drops all but 32 KiB.
    let line = "trap 'exit 0' TERM; seq 1 10000; while :; do sleep 0.05; done";
    let container = pod.start(Template::sh(line))?;
    container.wait_for_output("\n10000\n")?;
    container.stop(10)?;
    let expected: String = (1..=10000).map(|n| format!("{n}\n")).collect();
    let printed = container.whole_output()?;
    ensure!(printed == expected, "{} bytes, not in order or not all", printed.len());
    Ok(pod.remove()?)
}

fn terminal(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::sh("tty; echo err >&2").with(|config| config.tty = true);
    let container = pod.start(template)?;
    container.wait()?;
    let log = container.log()?;
    same("streams", log.iter().all(|line| line.stream == "stdout"), true)?;
    // A terminal ends a line with a carriage return, too.
    let text: Vec<_> = log.iter().map(|line| line.text.trim_end_matches('\r')).collect();
    same("lines", text, vec!["/dev/pts/0", "err"])?;
    Ok(pod.remove()?)
}
