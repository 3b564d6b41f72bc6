//! From create to delete: states, events and their order.

use containerd_shim_protos::{api::Status, ttrpc::Code};

use super::same;
use crate::conformance::{Bundle, Case, Stdio, Subject, Task, refused};

const GROUP: &str = "Task: life and events";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("a container goes from created to running to stopped", states),
        case("the events of a container and its execs come once each, in order", events_in_order),
    ]
}

fn states(subject: &Subject) -> anyhow::Result<()> {
    let bundle = Bundle::new(subject, &["sh", "-c", "echo up; sleep 1000"])?;
    let task = Task::new(subject, bundle)?;
    let stdio = Stdio::output(&task.bundle.folder, "init")?;
    let pid = task.create(&stdio)?.pid;
    let created = task.state("")?;
    same("status", task.status("")?, Status::CREATED)?;
    same("bundle", created.bundle.as_str(), &task.bundle.folder.display().to_string())?;
    same("pid", created.pid, pid)?;
    same("stdout", created.stdout.as_str(), &stdio.stdout)?;
    same("pid of start", task.start("")?.pid, pid)?;
    same("status", task.status("")?, Status::RUNNING)?;
    stdio.until("up")?;
    task.kill("", 9)?;
    let wait = task.wait("")?;
    same("exit status", wait.exit_status, 137)?;
    let stopped = task.state("")?;
    same("status", task.status("")?, Status::STOPPED)?;
    same("exit status", stopped.exit_status, 137)?;
    same("time of the exit", stopped.exited_at == wait.exited_at && wait.exited_at.is_some(), true)?;
    let deleted = task.delete("")?;
    same("exit status of delete", (deleted.exit_status, deleted.pid), (137, pid))?;
    refused(task.state(""), Code::NOT_FOUND)?;
    task.end_shim()
}

fn events_in_order(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::created(subject, &["sleep", "1000"])?;
    task.start("")?;
    task.exec("e1", &["sh", "-c", "exit 3"])?;
    task.start("e1")?;
    same("status of the exec", task.wait("e1")?.exit_status, 3)?;
    task.hears("exit e1 3")?;
    task.delete("e1")?;
    task.pause()?;
    task.hears("paused")?;
    task.resume()?;
    task.hears("resumed")?;
    task.kill("", 9)?;
    task.wait("")?;
    task.hears("exit 137")?;
    task.delete("")?;
    task.hears("delete 137")?;
    task.end_shim()?;
    let wanted = [
        "create",
        "start",
        "exec-added e1",
        "exec-started e1",
        "exit e1 3",
        "paused",
        "resumed",
        "exit 137",
        "delete 137",
    ];
    same("events", task.told(), wanted.map(str::to_owned).to_vec())
}
