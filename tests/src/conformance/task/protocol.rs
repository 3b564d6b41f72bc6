//! How a shim is started, found, and cleaned up after.

use std::{fs, path::PathBuf, process::Command};

use containerd_shim_protos::{
    api::{StateRequest, StateResponse, Status},
    protobuf::Message,
    ttrpc::Code,
    types::introspection::RuntimeInfo,
};

use super::same;
use crate::{
    command,
    conformance::{Answer, Bundle, Case, SIGKILL, Shim, Stdio, Subject, Task, refused, shim::TASK_V3},
    pids_of,
};

const GROUP: &str = "Shim: start, end and pods";
/// What the shim of this host's containerd does not have yet.
const OLD: &str = "containerd 1.6's shim does not have it";

/// Why something is left there.
const SOCKET_STAYS: &str = "containerd 1.6's shim leaves the socket of a dead shim to its next start";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("-v tells a version and touches nothing", version),
        case("-info is a RuntimeInfo with the runtime's name", info).unlike_in_runc(OLD, no_info),
        case("start without an id or a namespace is refused with a sentence", start_without_names),
        case("the address is in the bundle, too", address_file),
        case("Connect names the shim's own process and the task's", connect),
        case("a start of the same id leads to the same shim", start_again),
        case("two containers of no pod have two shims", shims_of_their_own),
        case("a container of a pod is in the pod's shim", pod),
        case("a container of a pod can go while the others stay", one_goes),
        case("containers of a pod end without the sandbox's container, and it without them", ends_are_apart),
        case("a shim ends with its last container: no process, no socket, no mount", shutdown),
        case("a shutdown before anything was created ends the shim", shutdown_of_nothing),
        case("after a SIGKILL of the shim, delete says 137 and leaves nothing", |s| delete_after_sigkill(s, false))
            .unlike_in_runc(SOCKET_STAYS, |s| delete_after_sigkill(s, true)),
        case("after a SIGKILL of a pod's shim, delete of each container says 137", |s| delete_of_a_pod(s, false))
            .unlike_in_runc(SOCKET_STAYS, |s| delete_of_a_pod(s, true)),
        case("delete of a bundle that never had a container succeeds", delete_of_nothing).unlike_in_runc(
            "containerd 1.6's shim misses the files that its create would have written",
            no_delete_of_nothing,
        ),
        case("a shim starts where a killed one was", start_after_sigkill),
        case("events of a time without containerd come when it is back, in order", events_after_an_absence),
        case("the service answers as containerd.task.v3.Task, too", v3).unlike_in_runc(OLD, no_v3),
    ]
}

fn shim_command(subject: &Subject, words: &[&str]) -> anyhow::Result<crate::Finished> {
    let mut shim = Command::new(subject.shim()?);
    Ok(command::run(shim.args(words).current_dir(subject.folder()).stdin(std::process::Stdio::null())))
}

fn version(subject: &Subject) -> anyhow::Result<()> {
    let finished = shim_command(subject, &["-v"])?;
    same("exit code", finished.code(), 0)?;
    let named = subject.shim()?.file_name().is_some_and(|name| finished.stdout.contains(&*name.to_string_lossy()));
    anyhow::ensure!(named && finished.stdout.contains(|c: char| c.is_ascii_digit()), "{:?}", finished.stdout);
    Ok(())
}

fn info(subject: &Subject) -> anyhow::Result<()> {
    let output = Command::new(subject.shim()?).arg("-info").stdin(std::process::Stdio::null()).output()?;
    same("success", output.status.success(), true)?;
    let info = RuntimeInfo::parse_from_bytes(&output.stdout)?;
    same("name", info.name.as_str(), subject.runtime())?;
    anyhow::ensure!(!info.version.version.is_empty(), "no version");
    Ok(())
}

fn no_info(subject: &Subject) -> anyhow::Result<()> {
    let finished = shim_command(subject, &["-info"])?;
    anyhow::ensure!(finished.code() != 0 && finished.stderr.contains("-info"), "{finished:?}");
    Ok(())
}

fn start_without_names(subject: &Subject) -> anyhow::Result<()> {
    for words in [&["-namespace", "conformance", "start"][..], &["-id", "c1", "start"]] {
        let finished = shim_command(subject, words)?;
        anyhow::ensure!(finished.code() != 0 && !finished.stderr.trim().is_empty(), "{words:?}: {finished:?}");
    }
    Ok(())
}

fn address_file(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    same("address", fs::read_to_string(task.bundle.path("address"))?.trim(), task.shim.address.as_str())?;
    task.end_shim()
}

fn connect(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let connected = task.connect()?;
    same("the task's process", connected.task_pid, task.state("")?.pid)?;
    same("the shim's process", vec![connected.shim_pid], task.shim.pids())?;
    task.end()
}

fn start_again(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    same("address", task.shim.start_beside(&task.bundle)?, task.shim.address.clone())?;
    same("shims", task.shim.pids().len(), 1)?;
    task.end()
}

fn shims_of_their_own(subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (Task::running(subject, &["sleep", "1000"])?, Task::running(subject, &["sleep", "1000"])?);
    anyhow::ensure!(one.shim.address != other.shim.address, "both at {}", one.shim.address);
    refused(one.named(other.id()).state(""), Code::NOT_FOUND)?;
    one.end()?;
    same("status of the other", other.status("")?, Status::RUNNING)?;
    other.end()
}

fn pod_of(subject: &Subject) -> anyhow::Result<Task> {
    let pod = Task::new(subject, Bundle::sandbox(subject)?)?;
    pod.create(&Stdio::none())?;
    pod.start("")?;
    Ok(pod)
}

fn pod(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_of(subject)?;
    let one = pod.beside(subject, &["sleep", "1000"])?;
    let other = pod.beside(subject, &["sh", "-c", "exit 5"])?;
    same("exit status", other.wait("")?.exit_status, 5)?;
    same("shims", pod.shim.pids().len(), 1)?;
    same("status of one", one.status("")?, Status::RUNNING)?;
    other.delete("")?;
    one.remove()?;
    pod.end()
}

fn one_goes(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_of(subject)?;
    let (one, other) = (pod.beside(subject, &["sleep", "1000"])?, pod.beside(subject, &["sleep", "1000"])?);
    one.remove()?;
    // containerd says this after each container.
    one.shutdown()?;
    refused(one.state(""), Code::NOT_FOUND)?;
    same("status of the other", other.status("")?, Status::RUNNING)?;
    same("an exec in it", other.output_of("e1", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    other.remove()?;
    other.shutdown()?;
    pod.end()?;
    same("events", one.told(), ["create", "start", "exit 137", "delete 137"].map(str::to_owned).to_vec())
}

fn ends_are_apart(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_of(subject)?;
    let one = pod.beside(subject, &["sleep", "1000"])?;
    pod.kill("", SIGKILL)?;
    same("exit status of the sandbox's", pod.wait("")?.exit_status, 137)?;
    same("status of the other", one.status("")?, Status::RUNNING)?;
    same("an exec in it", one.output_of("e1", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    one.remove()?;
    pod.delete("")?;
    pod.end_shim()
}

fn shutdown(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["true"])?;
    task.wait("")?;
    task.delete("")?;
    same("shims before it", task.shim.pids().len(), 1)?;
    task.end_shim()
}

fn shutdown_of_nothing(subject: &Subject) -> anyhow::Result<()> {
    Task::new(subject, Bundle::new(subject, &["true"])?)?.end_shim()
}

/// Nothing of a container is on the host: no shim, no machine, no file server, no process in its cgroups, no mount.
fn is_gone(task: &Task, socket_stays: bool) -> anyhow::Result<()> {
    if socket_stays {
        let socket = task.shim.socket();
        anyhow::ensure!(socket.exists(), "{} is gone after all", socket.display());
    } else {
        task.shim.wait_for_end()?;
    }
    for name in ["containerd-shim", "kata-rs-vmm", "virtiofsd", "runc", "sleep"] {
        same(name, pids_of(name, task.id()), Vec::new())?;
    }
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    for controller in cgroups.lines().filter_map(|line| line.split(':').nth(1)) {
        let cgroup = PathBuf::from("/sys/fs/cgroup").join(controller).join(task.id());
        anyhow::ensure!(!cgroup.exists(), "{} is still there", cgroup.display());
    }
    anyhow::ensure!(!task.bundle.has_mounts()?, "something is mounted in {}", task.bundle.folder.display());
    Ok(())
}

fn delete_after_sigkill(subject: &Subject, socket_stays: bool) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.shim.murder();
    let response = task.shim.delete(&task.bundle)?.response;
    same("exit status", response.exit_status, 137)?;
    same("time of the exit", response.exited_at.is_some(), true)?;
    is_gone(&task, socket_stays)
}

fn delete_of_a_pod(subject: &Subject, socket_stays: bool) -> anyhow::Result<()> {
    let pod = pod_of(subject)?;
    let one = pod.beside(subject, &["sleep", "1000"])?;
    pod.shim.murder();
    for task in [&one, &pod] {
        same("exit status", task.shim.delete(&task.bundle)?.response.exit_status, 137)?;
    }
    is_gone(&one, socket_stays)?;
    is_gone(&pod, socket_stays)
}

fn delete_of_nothing(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    task.shim.murder();
    same("exit status", task.shim.delete(&task.bundle)?.response.exit_status, 137)?;
    is_gone(&task, false)
}

fn no_delete_of_nothing(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    task.shim.murder();
    anyhow::ensure!(task.shim.delete(&task.bundle).is_err(), "it succeeds after all");
    is_gone(&task, true)
}

fn start_after_sigkill(subject: &Subject) -> anyhow::Result<()> {
    let first = Task::running(subject, &["sleep", "1000"])?;
    first.shim.murder();
    first.shim.delete(&first.bundle)?;
    let bundle = first.bundle.clone();
    drop(first);
    let second = Task { shim: Shim::start(subject, &bundle)?.into(), bundle };
    second.create(&Stdio::none())?;
    second.start("")?;
    same("status", second.status("")?, Status::RUNNING)?;
    second.end()
}

fn events_after_an_absence(subject: &Subject) -> anyhow::Result<()> {
    let mut task = Task::running(subject, &["sleep", "1000"])?;
    task.hears("start")?;
    let shim = std::sync::Arc::get_mut(&mut task.shim).expect("nobody else has it");
    shim.events.stop();
    task.exec("e1", &["true"])?;
    task.start("e1")?;
    task.wait("e1")?;
    std::sync::Arc::get_mut(&mut task.shim).expect("nobody else has it").events.listen_again()?;
    task.hears("exit e1 0")?;
    task.delete("e1")?;
    task.end()?;
    let wanted = ["create", "start", "exec-added e1", "exec-started e1", "exit e1 0", "exit 137", "delete 137"];
    same("events", task.told(), wanted.map(str::to_owned).to_vec())
}

fn state_v3(task: &Task) -> Answer<StateResponse> {
    let request = StateRequest { id: task.id().to_owned(), ..StateRequest::default() };
    task.shim.call_as(TASK_V3, "State", &request)
}

fn v3(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    same("state", state_v3(&task)?, task.state("")?)?;
    task.end()
}

fn no_v3(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(state_v3(&task), Code::UNIMPLEMENTED)?;
    task.end()
}
