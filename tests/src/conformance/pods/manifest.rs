//! A whole manifest, step by step as the kubelet carries it out, and the facts that `kubectl describe` shows at its end.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use cri::v1;

use super::{super::Case, Subject, node, same};
use crate::node::{Container, Template, poll_until};

const MIB: i64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "Pods: a whole manifest",
        "init container, sidecar, probes, hooks, limits, seccomp: every state, reason and exit code",
        whole,
    )]
}

/// State, exit code and reason, as described.
type Facts = (v1::ContainerState, i32, String);

fn facts(container: &Container) -> anyhow::Result<Facts> {
    let status = container.status()?;
    Ok((status.state(), status.exit_code, status.reason))
}

fn ended(code: i32, reason: &str) -> Facts {
    (v1::ContainerState::ContainerExited, code, reason.to_owned())
}

fn whole(subject: &Subject) -> anyhow::Result<()> {
    let (node, work) = (node()?, node()?.fresh_folder());
    let mut config = node.pod_config();
    let sizes = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 100_000,
        memory_limit_in_bytes: 256 * MIB,
        ..Default::default()
    };
    config.linux.get_or_insert_default().resources = Some(sizes);
    let pod = node.run_pod(subject.runtime(), config)?;

    let init = pod.start(limited(Template::sh("echo prepared > /work/ready").named("init"), &work))?;
    init.wait()?;
    let sidecar = pod.start(limited(Template::pause().named("sidecar"), &work))?;
    let web = pod.start(limited(Template::sh(WEB).named("web"), &work))?;
    // The hook that follows a start, then the probes.
    same("postStart", web.exec(&["sh", "-c", "echo started > /work/hook"])?.exit_code, 0)?;
    becomes_ready(&web)?;
    same("liveness", web.exec(&["cat", "/work/ready"])?.stdout.as_slice(), b"prepared\n")?;
    let hungry = pod.start(limited(Template::python(HUNGRY).named("hungry"), &work))?;
    hungry.wait()?;

    let running = (v1::ContainerState::ContainerRunning, 0, String::new());
    same("init", facts(&init)?, ended(0, "Completed"))?;
    same("sidecar", facts(&sidecar)?, running.clone())?;
    same("web", facts(&web)?, running)?;
    same("hungry", facts(&hungry)?, ended(137, "OOMKilled"))?;
    finish(&web, &sidecar)?;
    Ok(pod.remove()?)
}

const WEB: &str = "trap 'cat /work/bye; exit 4' TERM; sed -n 's/Seccomp:.//p' /proc/self/status; id -u; touch /tmp/ready; \
                   while :; do sleep 1000 & wait; done";
const HUNGRY: &str = "kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))";

/// What the manifest says of each of its containers.
fn limited(template: Template, work: &Path) -> Template {
    let limit = |limits: &mut v1::LinuxContainerResources| {
        limits.memory_limit_in_bytes = 48 * MIB;
        limits.cpu_period = 100_000;
        limits.cpu_quota = 50_000;
    };
    template.resources(limit).mount(work, "/work", false)
}

fn becomes_ready(web: &Container) -> anyhow::Result<()> {
    let probe =
        || Ok(Some(()).filter(|()| web.exec(&["test", "-e", "/tmp/ready"]).is_ok_and(|done| done.exit_code == 0)));
    poll_until(Duration::from_secs(30), probe)?.context("the readiness probe never passes")
}

/// The hook that precedes a stop, the stop, and the sidecar last.
fn finish(web: &Container, sidecar: &Container) -> anyhow::Result<()> {
    same("preStop", web.exec(&["sh", "-c", "echo goodbye > /work/bye"])?.exit_code, 0)?;
    web.stop(30)?;
    same("web", facts(web)?, ended(4, "Error"))?;
    ensure!(web.output()? == "2\n0\ngoodbye\n", "seccomp mode, uid, last words: {:?}", web.output()?);
    same("the sidecar outlives it", sidecar.status()?.state(), v1::ContainerState::ContainerRunning)?;
    sidecar.stop(30)?;
    same("sidecar", facts(sidecar)?, ended(0, "Completed"))
}
