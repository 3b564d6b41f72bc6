//! ExecSync, which is what probes and lifecycle hooks use.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cri::Code;

use super::{super::Case, Subject, pod, same};
use crate::node::Template;

const GROUP: &str = "Pods: exec";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "an exec has its own output, error output and exit code", output),
        Case::new(GROUP, "an exec has the container's environment, user, directory and mounts", as_the_container),
        Case::new(GROUP, "an exec of a missing command fails at once and names it", missing_command),
        Case::new(GROUP, "an exec that takes too long is ended, and the call says so", timeout),
        Case::new(GROUP, "a probe's exit code is what its command returned", probe),
        Case::new(GROUP, "a megabyte of output arrives whole", large_output),
        Case::new(GROUP, "execs run at the same time", together),
        Case::new(GROUP, "an exec in a container that has ended is refused", ended),
        Case::new(GROUP, "an exec in an unknown container is NOT_FOUND", unknown),
        Case::new(GROUP, "an exec that leaves a process behind ends with its command", leaves_a_child),
    ]
}

fn output(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let done = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    same("stdout", done.stdout.as_slice(), b"out\n")?;
    same("stderr", done.stderr.as_slice(), b"err\n")?;
    same("exit code", done.exit_code, 3)?;
    Ok(pod.remove()?)
}

fn as_the_container(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::pause()
        .security(|context| {
            context.run_as_user = Some(cri::v1::Int64Value { value: 1000 });
            context.supplemental_groups = vec![4321];
        })
        .env("COLOUR", "red")
        .with(|config| config.working_dir = "/tmp".to_owned());
    let container = pod.start(template)?;
    let groups = "id -G | tr ' ' '\\n' | grep -c 4321";
    let printed =
        container.sh(&format!("pwd; echo $COLOUR; id -u; {groups}; tr '\\0' ' ' </proc/1/cmdline | head -c 5"))?;
    same("printed", printed.as_str(), "/tmp\nred\n1000\n1\nsh -c")?;
    Ok(pod.remove()?)
}

fn missing_command(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let start = Instant::now();
    let error = container.exec(&["no-such-command"]).expect_err("there is no such command");
    ensure!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    ensure!(error.message().contains("no-such-command"), "{error}");
    ensure!(error.message().contains("executable file not found in $PATH"), "{error}");
    same("the container after it", container.sh("echo fine")?.as_str(), "fine\n")?;
    Ok(pod.remove()?)
}

fn timeout(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let error = container.exec_for(&["sleep", "321"], 1).expect_err("it takes longer");
    same("code", error.code(), Code::DeadlineExceeded)?;
    ensure!(error.message().contains("timeout 1s exceeded"), "{error}");
    let left = container.sh("ps | grep -c '[s]leep 321' || true")?;
    same("processes left", left.trim(), "0")?;
    Ok(pod.remove()?)
}

fn probe(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container =
        pod.start(Template::sh("touch /tmp/healthy; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"))?;
    let healthy = || {
        anyhow::Ok(
            Some(()).filter(|()| container.exec(&["test", "-e", "/tmp/healthy"]).is_ok_and(|d| d.exit_code == 0)),
        )
    };
    crate::node::poll_until(Duration::from_secs(20), healthy)?.expect("the probe passes");
    container.sh("rm /tmp/healthy")?;
    same("exit code", container.exec(&["cat", "/tmp/healthy"])?.exit_code, 1)?;
    for code in [0, 1, 77, 126, 127, 255] {
        same("exit code", container.exec(&["sh", "-c", &format!("exit {code}")])?.exit_code, code)?;
    }
    Ok(pod.remove()?)
}

fn large_output(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let done = container.exec(&["sh", "-c", "yes 0123456789abcde | head -c 1048576"])?;
    same("bytes", done.stdout.len(), 1 << 20)?;
    ensure!(done.stdout.chunks(16).all(|chunk| chunk == b"0123456789abcde\n"), "the bytes are not in order");
    Ok(pod.remove()?)
}

fn together(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    std::thread::scope(|scope| {
        let exec = |n: usize| container.sh(&format!("echo {n}"));
        let execs: Vec<_> = (0..8).map(|n| scope.spawn(move || (n, exec(n)))).collect();
        execs.into_iter().try_for_each(|exec| {
            let (n, printed) = exec.join().expect("no panic");
            same("printed", printed?, format!("{n}\n"))
        })
    })?;
    Ok(pod.remove()?)
}

fn ended(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::command(&["true"]))?;
    container.wait()?;
    let error = container.exec(&["true"]).expect_err("it has ended");
    ensure!(error.message().contains("CONTAINER_EXITED"), "{error}");
    Ok(pod.remove()?)
}

fn unknown(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let request = cri::v1::ExecSyncRequest { container_id: "0123456789".into(), cmd: vec!["true".into()], timeout: 5 };
    let error = pod.node.cri.exec_sync(request).expect_err("there is no such container");
    same("code", error.code(), Code::NotFound)?;
    Ok(pod.remove()?)
}

fn leaves_a_child(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    // Its output is closed, or the call would wait for the child, with any runtime.
    let done = container.exec(&["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo started"])?;
    same("stdout", done.stdout.as_slice(), b"started\n")?;
    same("child", container.sh("ps | grep -c '[s]leep 1000'")?.trim().parse::<u32>()? >= 1, true)?;
    Ok(pod.remove()?)
}
