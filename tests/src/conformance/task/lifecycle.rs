//! From create to delete: the states, and how a process can end.

use containerd_shim_protos::{api::Status, ttrpc::Code};

use super::same;
use crate::conformance::{Bundle, Case, SIGKILL, SIGTERM, Stdio, Subject, Task, process, refused};

const GROUP: &str = "Task: life";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("a container goes from created to running to stopped, and is not found after delete", states),
        case("an exec goes the same way, and its container stays", states_of_an_exec),
        case("the exit status is the process's own", exit_status),
        case("a process that a signal ended has 128 and the signal as its status", ended_by_a_signal),
        case("init without a handler ignores SIGTERM, and its handler decides its status", termination),
        case("Kill of all reaches every process of the container", kill_all),
        case("a created container that is killed is stopped, and never runs", killed_before_its_start),
        case("a created container can be deleted", deleted_before_its_start),
        case("an exec that was never started can be deleted", exec_deleted_before_its_start),
        case("what init leaves behind ends with it", orphans_end_with_init),
        case("an id can be used again after delete", id_used_again),
        case("an exec's id can be used again after delete", exec_id_used_again),
        case("an exec has the user, the folder and the environment that it was given", exec_as_described),
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
    task.kill("", SIGKILL)?;
    let wait = task.wait("")?;
    same("exit status", wait.exit_status, 137)?;
    let stopped = task.state("")?;
    same("status", task.status("")?, Status::STOPPED)?;
    same("exit status", stopped.exit_status, 137)?;
    same("time of the exit", stopped.exited_at == wait.exited_at && wait.exited_at.is_some(), true)?;
    let deleted = task.delete("")?;
    same("exit status and pid of delete", (deleted.exit_status, deleted.pid), (137, pid))?;
    refused(task.state(""), Code::NOT_FOUND)?;
    task.end_shim()
}

fn states_of_an_exec(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    same("status", task.status("e1")?, Status::CREATED)?;
    let started = task.start("e1")?;
    same("a pid", started.pid > 0, true)?;
    same("status", task.status("e1")?, Status::RUNNING)?;
    task.kill("e1", SIGKILL)?;
    same("exit status", task.wait("e1")?.exit_status, 137)?;
    same("status", task.status("e1")?, Status::STOPPED)?;
    same("exit status of delete", task.delete("e1")?.exit_status, 137)?;
    refused(task.state("e1"), Code::NOT_FOUND)?;
    same("status of the container", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn exit_status(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sh", "-c", "exit 42"])?;
    same("exit status", task.wait("")?.exit_status, 42)?;
    same("exit status of state", task.state("")?.exit_status, 42)?;
    same("exit status of delete", task.delete("")?.exit_status, 42)?;
    task.end_shim()
}

fn ended_by_a_signal(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    for (exec, signal) in [("term", SIGTERM), ("hup", 1), ("kill", SIGKILL), ("usr1", 10)] {
        task.exec(exec, &["sleep", "1000"])?;
        task.start(exec)?;
        task.kill(exec, signal)?;
        same(exec, task.wait(exec)?.exit_status, 128 + signal)?;
        task.delete(exec)?;
    }
    task.end()
}

fn termination(subject: &Subject) -> anyhow::Result<()> {
    let words = ["sh", "-c", "trap 'exit 5' USR1; echo up; while true; do sleep 0.1; done"];
    let (task, stdio) = Task::speaking(subject, &words)?;
    stdio.until("up")?;
    task.kill("", SIGTERM)?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.kill("", 10)?;
    same("exit status", task.wait("")?.exit_status, 5)?;
    task.end()
}

fn kill_all(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    task.start("e1")?;
    task.kill_all(SIGKILL)?;
    same("status of init", task.wait("")?.exit_status, 137)?;
    same("status of the exec", task.wait("e1")?.exit_status, 137)?;
    task.delete("e1")?;
    task.end()
}

fn killed_before_its_start(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = created_with_output(subject, &["echo", "ran"])?;
    task.kill("", SIGKILL)?;
    same("exit status", task.wait("")?.exit_status, 137)?;
    same("status", task.status("")?, Status::STOPPED)?;
    anyhow::ensure!(task.start("").is_err(), "a killed container was started");
    same("exit status of delete", task.delete("")?.exit_status, 137)?;
    same("output", stdio.whole()?.as_str(), "")?;
    task.end_shim()
}

fn created_with_output(subject: &Subject, words: &[&str]) -> anyhow::Result<(Task, Stdio)> {
    let task = Task::new(subject, Bundle::new(subject, words)?)?;
    let stdio = Stdio::output(&task.bundle.folder, "init")?;
    task.create(&stdio)?;
    Ok((task, stdio))
}

fn deleted_before_its_start(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = created_with_output(subject, &["echo", "ran"])?;
    task.delete("")?;
    refused(task.state(""), Code::NOT_FOUND)?;
    same("output", stdio.whole()?.as_str(), "")?;
    task.end_shim()
}

fn exec_deleted_before_its_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["true"])?;
    task.delete("e1")?;
    refused(task.state("e1"), Code::NOT_FOUND)?;
    task.end()
}

fn orphans_end_with_init(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = Task::speaking(subject, &["sh", "-c", "sleep 1000 & echo up; exit 3"])?;
    same("exit status", task.wait("")?.exit_status, 3)?;
    // The sleeper holds the pipe open as long as it lives.
    same("output", stdio.whole()?.as_str(), "up\n")?;
    task.end()
}

fn id_used_again(subject: &Subject) -> anyhow::Result<()> {
    // In a pod, so that the shim stays.
    let pod = Task::new(subject, Bundle::sandbox(subject)?)?;
    pod.create(&Stdio::none())?;
    pod.start("")?;
    let task = pod.beside(subject, &["sh", "-c", "exit 4"])?;
    same("exit status", task.wait("")?.exit_status, 4)?;
    task.delete("")?;
    task.create(&Stdio::none())?;
    same("status", task.status("")?, Status::CREATED)?;
    task.start("")?;
    same("exit status", task.wait("")?.exit_status, 4)?;
    task.delete("")?;
    pod.end()
}

fn exec_id_used_again(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    same("first", task.output_of("e1", &["echo", "one"])?, (0, "one\n".to_owned()))?;
    // The pipes have their names from the exec.
    for end in ["out", "err"] {
        std::fs::remove_file(task.bundle.path(&format!("e1.{end}")))?;
    }
    same("second", task.output_of("e1", &["sh", "-c", "echo two; exit 9"])?, (9, "two\n".to_owned()))?;
    task.end()
}

fn exec_as_described(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let mut described = process(&["sh", "-c", "id -u; id -g; id -G; pwd; echo $COLOUR"]);
    described["user"] = serde_json::json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 8] });
    described["cwd"] = "/tmp".into();
    described["env"] = serde_json::json!(["PATH=/usr/bin:/bin", "COLOUR=red"]);
    let stdio = Stdio::output(&task.bundle.folder, "e1")?;
    task.exec_with("e1", &described, &stdio)?;
    task.start("e1")?;
    same("exit status", task.wait("e1")?.exit_status, 0)?;
    task.delete("e1")?;
    same("output", stdio.whole()?.as_str(), "1000\n1001\n1001 7 8\n/tmp\nred\n")?;
    task.end()
}
