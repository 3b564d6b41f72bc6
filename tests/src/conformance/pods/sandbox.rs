//! Pods without containers: start, stop, remove, status, list; each call may come again.

use anyhow::ensure;
use cri::{Code, v1};

use super::{super::Case, Subject, node, pod, same};

const GROUP: &str = "Pods: life";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "a pod that was started is ready, under its name and handler", ready),
        Case::new(GROUP, "a pod's status has its labels, annotations and namespaces", status_as_asked),
        Case::new(GROUP, "a stopped pod is not ready, and stays in the list until it is removed", stopped),
        Case::new(GROUP, "stopping a pod twice is stopping it once", stop_twice),
        Case::new(GROUP, "removing a pod twice is removing it once", remove_twice),
        Case::new(GROUP, "removing a running pod stops it first", remove_running),
        Case::new(GROUP, "a removed pod has no status", no_status),
        Case::new(GROUP, "two pods of the same name and attempt are refused", same_name),
        Case::new(GROUP, "a pod goes with the containers that run in it", goes_with_containers),
        Case::new(GROUP, "an unknown runtime handler is refused by name", unknown_handler),
        Case::new(GROUP, "a container in an unknown pod is refused", container_of_no_pod),
    ]
}

fn ready(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let status = pod.status()?;
    same("state", status.state(), v1::PodSandboxState::SandboxReady)?;
    same("handler", status.runtime_handler.as_str(), subject.short_name())?;
    same("name", status.metadata.clone(), pod.config.metadata.clone())?;
    ensure!(status.created_at > 0, "created at {}", status.created_at);
    Ok(pod.remove()?)
}

fn status_as_asked(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    config.annotations.insert("example.com/note".to_owned(), "free text".to_owned());
    let pod = node.run_pod(subject.runtime(), config.clone())?;
    let status = pod.status()?;
    same("labels", &status.labels, &config.labels)?;
    same("annotations", &status.annotations, &config.annotations)?;
    let asked = config.linux.and_then(|linux| linux.security_context).and_then(|context| context.namespace_options);
    let told = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    same("namespaces", told, asked)?;
    Ok(pod.remove()?)
}

fn stopped(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    pod.stop()?;
    same("state", pod.status()?.state(), v1::PodSandboxState::SandboxNotready)?;
    let listed = |id: &str| Ok::<_, anyhow::Error>(node()?.pods()?.into_iter().find(|pod| pod.id == id));
    same("state in the list", listed(&pod.id)?.map(|pod| pod.state()), Some(v1::PodSandboxState::SandboxNotready))?;
    let id = pod.id.clone();
    pod.remove()?;
    ensure!(listed(&id)?.is_none(), "a removed pod is in the list");
    Ok(())
}

fn stop_twice(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    pod.stop()?;
    pod.stop()?;
    same("state", pod.status()?.state(), v1::PodSandboxState::SandboxNotready)?;
    Ok(pod.remove()?)
}

fn remove_twice(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    pod.stop()?;
    pod.remove_stopped()?;
    Ok(pod.remove_stopped()?)
}

fn remove_running(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    Ok(pod.remove_stopped()?)
}

fn no_status(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    pod.stop()?;
    pod.remove_stopped()?;
    let error = pod.status().expect_err("it is gone");
    same("code", error.code(), Code::NotFound)
}

fn same_name(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let Err(error) = pod.node.run_pod(subject.runtime(), pod.config.clone()) else {
        anyhow::bail!("a second pod has the name of the first");
    };
    ensure!(error.message().contains("is reserved for"), "{error}");
    Ok(pod.remove()?)
}

fn goes_with_containers(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container = pod.start(crate::node::Template::pause())?;
    pod.stop()?;
    let status = container.status()?;
    same("state", status.state(), v1::ContainerState::ContainerExited)?;
    same("exit code", status.exit_code, 137)?;
    Ok(pod.remove()?)
}

fn unknown_handler(_: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let Err(error) = node.run_pod("io.containerd.no-such-handler.v2", node.pod_config()) else {
        anyhow::bail!("there is no such handler");
    };
    ensure!(error.message().contains("no-such-handler"), "{error}");
    Ok(())
}

fn container_of_no_pod(_: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: "0123456789".to_owned(),
        config: Some(crate::node::Template::pause().config),
        sandbox_config: Some(node.pod_config()),
    };
    let error = node.cri.create_container(request).expect_err("there is no such pod");
    ensure!(error.message().contains("0123456789"), "{error}");
    Ok(())
}
