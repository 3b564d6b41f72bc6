//! A container's life as `kubectl describe` tells it: states, exit codes, reasons, times.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cri::{Code, v1};

use super::{super::Case, Subject, pod, same};
use crate::node::Template;

const GROUP: &str = "Pods: containers";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "a container is created, runs, ends and is removed, and its status says so", life),
        Case::new(GROUP, "exit code 0 is Completed, another is Error", reasons),
        Case::new(GROUP, "a process killed by a signal has exit code 128 and the signal", killed_by_signal),
        Case::new(GROUP, "a container that ends at SIGTERM has its own exit code", stop_gracefully),
        Case::new(GROUP, "a container that ignores SIGTERM is killed when the grace is over", stop_with_force),
        Case::new(GROUP, "a grace of 0 kills at once", stop_at_once),
        Case::new(GROUP, "stopping a container twice is stopping it once", stop_twice),
        Case::new(GROUP, "removing a container twice is removing it once", remove_twice),
        Case::new(GROUP, "removing a running container kills it", remove_running),
        Case::new(GROUP, "a created container is removed without ever running", never_started),
        Case::new(GROUP, "starting a container twice is refused", start_twice),
        Case::new(GROUP, "a missing command is a StartError that names it", missing_command),
        Case::new(GROUP, "a file that cannot be executed is a StartError", not_executable),
        Case::new(GROUP, "a missing working directory is made, as runc makes it", working_dir),
        Case::new(GROUP, "command, arguments and environment are the container's", words),
        Case::new(GROUP, "a container is listed with its pod, name, state and labels", listed),
        Case::new(GROUP, "a container can be started again under the next attempt", next_attempt),
        Case::new(GROUP, "background processes of a container end with it", children_end),
    ]
}

fn life(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.create(Template::sh("sleep 0.2").named("main"))?;
    let created = container.status()?;
    same("state", created.state(), v1::ContainerState::ContainerCreated)?;
    ensure!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "times: {created:?}");
    container.start()?;
    let running = container.status()?;
    same("state", running.state(), v1::ContainerState::ContainerRunning)?;
    ensure!(running.started_at >= created.created_at && running.finished_at == 0, "times: {running:?}");
    let exited = container.wait()?;
    ensure!(exited.finished_at >= running.started_at, "times: {exited:?}");
    same("name", exited.metadata.map(|metadata| metadata.name), Some("main".to_owned()))?;
    container.remove()?;
    same("code", container.status().expect_err("it is gone").code(), Code::NotFound)?;
    Ok(pod.remove()?)
}

fn reasons(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    for (line, code, reason) in [("true", 0, "Completed"), ("exit 42", 42, "Error"), ("exit 255", 255, "Error")] {
        let (status, _) = pod.run_to_end(Template::sh(line))?;
        same(line, (status.exit_code, status.reason.as_str()), (code, reason))?;
    }
    Ok(pod.remove()?)
}

fn killed_by_signal(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    // The first process of a pid namespace is deaf to its own signals unless it handles them, so one beside it tells.
    let (status, _) = pod.run_to_end(Template::sh("sh -c 'kill -SEGV $$'; exit $?"))?;
    same("SIGSEGV", status.exit_code, 128 + 11)?;
    let container = pod.start(Template::command(&["sleep", "1000"]))?;
    container.stop(0)?;
    let status = container.status()?;
    same("SIGKILL", (status.exit_code, status.reason.as_str()), (137, "Error"))?;
    Ok(pod.remove()?)
}

fn stop_gracefully(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container =
        pod.start(Template::sh("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done"))?;
    container.wait_for_output("ready")?;
    let start = Instant::now();
    container.stop(60)?;
    ensure!(start.elapsed() < Duration::from_secs(30), "the grace was waited for: {:?}", start.elapsed());
    let status = container.status()?;
    same("exit code", status.exit_code, 7)?;
    same("output", container.output()?.as_str(), "ready\nbye\n")?;
    Ok(pod.remove()?)
}

fn stop_with_force(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::sh("trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"))?;
    container.wait_for_output("ready")?;
    let start = Instant::now();
    container.stop(1)?;
    ensure!(start.elapsed() >= Duration::from_secs(1), "no grace: {:?}", start.elapsed());
    same("exit code", container.status()?.exit_code, 137)?;
    Ok(pod.remove()?)
}

fn stop_at_once(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::sh("trap '' TERM; sleep 1000"))?;
    container.stop(0)?;
    same("exit code", container.status()?.exit_code, 137)?;
    Ok(pod.remove()?)
}

fn stop_twice(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    container.stop(30)?;
    container.stop(30)?;
    same("state", container.status()?.state(), v1::ContainerState::ContainerExited)?;
    Ok(pod.remove()?)
}

fn remove_twice(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    container.stop(30)?;
    container.remove()?;
    container.remove()?;
    Ok(pod.remove()?)
}

fn remove_running(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    container.remove()?;
    same("code", container.status().expect_err("it is gone").code(), Code::NotFound)?;
    Ok(pod.remove()?)
}

fn never_started(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.create(Template::pause())?;
    container.remove()?;
    Ok(pod.remove()?)
}

fn start_twice(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(Template::pause())?;
    let error = container.start().expect_err("it runs already");
    ensure!(error.message().contains("CONTAINER_RUNNING"), "{error}");
    Ok(pod.remove()?)
}

fn missing_command(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.create(Template::command(&["no-such-command"]))?;
    let error = container.start().expect_err("there is no such command");
    ensure!(error.message().contains("no-such-command"), "{error}");
    ensure!(error.message().contains("executable file not found in $PATH"), "{error}");
    let status = container.status()?;
    same("state", status.state(), v1::ContainerState::ContainerExited)?;
    same("status", (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
    ensure!(status.message.contains("no-such-command"), "message: {}", status.message);
    Ok(pod.remove()?)
}

fn not_executable(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.create(Template::command(&["/etc/passwd"]))?;
    let error = container.start().expect_err("a text is no program");
    ensure!(error.message().contains("permission denied"), "{error}");
    let status = container.status()?;
    same("status", (status.exit_code, status.reason.as_str()), (128, "StartError"))?;
    Ok(pod.remove()?)
}

fn working_dir(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::command(&["pwd"]).with(|config| config.working_dir = "/made/for/it".to_owned());
    let (status, printed) = pod.run_to_end(template)?;
    same("working directory", (status.exit_code, printed.as_str()), (0, "/made/for/it\n"))?;
    Ok(pod.remove()?)
}

fn words(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::command(&["sh", "-c", "printf '%s|' \"$@\"; echo $COLOUR", "sh"]).with(|config| {
        config.args = vec!["a b".to_owned(), String::new(), "c\"$d".to_owned()];
    });
    let template = template.env("COLOUR", "dark red");
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "a b||c\"$d|dark red\n")?;
    Ok(pod.remove()?)
}

fn listed(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let label = ("example.com/part".to_owned(), "one".to_owned());
    let container = pod.start(Template::pause().named("one").with(|config| config.labels = [label.clone()].into()))?;
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let all = pod.node.cri.list_containers(request)?.containers;
    same("containers of the pod", all.len(), 1)?;
    let one = &all[0];
    same("id", (&one.id, &one.pod_sandbox_id), (&container.id, &pod.id))?;
    same("state", one.state(), v1::ContainerState::ContainerRunning)?;
    same("label", one.labels.get(&label.0), Some(&label.1))?;
    Ok(pod.remove()?)
}

fn next_attempt(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    for attempt in 0..3 {
        let template = Template::sh("exit 3").with(|config| {
            config.metadata = Some(v1::ContainerMetadata { name: "again".to_owned(), attempt });
            config.log_path = format!("{attempt}.log");
        });
        let (status, _) = pod.run_to_end(template)?;
        same("exit code", status.exit_code, 3)?;
    }
    Ok(pod.remove()?)
}

fn children_end(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let (status, printed) = pod.run_to_end(Template::sh("(sleep 1000; echo late) & echo early; exit 5"))?;
    same("end", (status.exit_code, printed.as_str()), (5, "early\n"))?;
    Ok(pod.remove()?)
}
