//! What is refused, and with which code.

use containerd_shim_protos::{
    api::{Empty, Status},
    ttrpc::Code,
};

use super::{coded, same};
use crate::conformance::{Bundle, Case, SIGKILL, Stdio, Subject, Task, code_of, refused, shim::Answer};

const GROUP: &str = "Task: refusals";
pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("every call for an unknown container is NOT_FOUND", unknown_container),
        case("every call for an unknown exec is NOT_FOUND", unknown_exec),
        coded!(
            "a second create is ALREADY_EXISTS, and the first container stays as it was",
            second_create,
            Code::ALREADY_EXISTS
        ),
        case("a second exec of the same id is ALREADY_EXISTS", second_exec),
        coded!("a second start is FAILED_PRECONDITION", second_start, Code::FAILED_PRECONDITION),
        coded!("a start after the exit is FAILED_PRECONDITION", start_after_exit, Code::FAILED_PRECONDITION),
        coded!("a second start of an exec is FAILED_PRECONDITION", second_exec_start, Code::FAILED_PRECONDITION),
        coded!(
            "delete of a running container is FAILED_PRECONDITION, and it runs on",
            delete_while_running,
            Code::FAILED_PRECONDITION
        ),
        coded!(
            "delete of a running exec is FAILED_PRECONDITION, and it runs on",
            delete_running_exec,
            Code::FAILED_PRECONDITION
        ),
        coded!("an exec in a stopped container is FAILED_PRECONDITION", exec_in_stopped, Code::FAILED_PRECONDITION),
        coded!("an exec in a paused container is FAILED_PRECONDITION", exec_in_paused, Code::FAILED_PRECONDITION),
        case("a kill after the exit is NOT_FOUND: process already finished", kill_after_exit),
        coded!("pause of a paused container is FAILED_PRECONDITION", pause_twice, Code::FAILED_PRECONDITION),
        coded!("resume of a running container is FAILED_PRECONDITION", resume_running, Code::FAILED_PRECONDITION),
        coded!("pause of a created container is FAILED_PRECONDITION", pause_created, Code::FAILED_PRECONDITION),
        case("a resize without a terminal changes nothing and is no error", resize_without_terminal),
        case("closing an input that is not there is no error", close_without_input),
        coded!("Checkpoint is UNIMPLEMENTED, with a sentence", checkpoint, Code::UNIMPLEMENTED),
        case("an unknown method is UNIMPLEMENTED", unknown_method),
        coded!("closing the input of an unknown exec is NOT_FOUND", close_of_unknown_exec, Code::NOT_FOUND),
        case("an unknown service is UNIMPLEMENTED", unknown_service),
    ]
}

fn unknown_container(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let nobody = task.named("nobody");
    every_call(&nobody, "")?;
    let others: [(&str, Answer<()>); 5] = [
        ("Pids", nobody.pids().map(drop)),
        ("Stats", nobody.stats().map(drop)),
        ("Pause", nobody.pause().map(drop)),
        ("Resume", nobody.resume().map(drop)),
        ("Exec", nobody.exec("e1", &["true"]).map(drop)),
    ];
    all_not_found(others)?;
    refused(nobody.update(&serde_json::json!({ "pids": { "limit": 10 } })), Code::NOT_FOUND)?;
    task.end()
}

fn unknown_exec(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    every_call(&task, "nobody")?;
    task.end()
}

fn close_of_unknown_exec(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(task.close_stdin("nobody"), code)?;
    refused(task.named("nobody").close_stdin(""), Code::NOT_FOUND)?;
    task.end()
}

// Those that name a container or an exec alike.
fn every_call(task: &Task, exec: &str) -> anyhow::Result<()> {
    all_not_found([
        ("State", task.state(exec).map(drop)),
        ("Start", task.start(exec).map(drop)),
        ("Wait", task.wait(exec).map(drop)),
        ("Kill", task.kill(exec, SIGKILL).map(drop)),
        ("Delete", task.delete(exec).map(drop)),
        ("ResizePty", task.resize(exec, 80, 24).map(drop)),
    ])
}

fn all_not_found<const N: usize>(answers: [(&str, Answer<()>); N]) -> anyhow::Result<()> {
    for (name, answer) in answers {
        refused(answer, Code::NOT_FOUND).map_err(|error| error.context(name.to_owned()))?;
    }
    Ok(())
}

fn second_create(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(task.create(&Stdio::none()), code)?;
    same("status", task.status("")?, Status::RUNNING)?;
    same("an exec in it", task.output_of("e1", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    task.end()
}

fn second_exec(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    refused(task.exec("e1", &["true"]), Code::ALREADY_EXISTS)?;
    task.start("e1")?;
    refused(task.exec("e1", &["true"]), Code::ALREADY_EXISTS)?;
    task.kill("e1", SIGKILL)?;
    same("status of the first", task.wait("e1")?.exit_status, 137)?;
    task.delete("e1")?;
    task.end()
}

fn second_start(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(task.start(""), code)?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn start_after_exit(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["true"])?;
    task.wait("")?;
    refused(task.start(""), code)?;
    same("status", task.status("")?, Status::STOPPED)?;
    task.end()
}

fn second_exec_start(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    task.start("e1")?;
    refused(task.start("e1"), code)?;
    task.kill("e1", SIGKILL)?;
    task.wait("e1")?;
    refused(task.start("e1"), code)?;
    task.delete("e1")?;
    task.end()
}

fn delete_while_running(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(task.delete(""), code)?;
    same("status", task.status("")?, Status::RUNNING)?;
    same("an exec in it", task.output_of("e1", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    task.end()
}

fn delete_running_exec(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    task.start("e1")?;
    refused(task.delete("e1"), code)?;
    same("status", task.status("e1")?, Status::RUNNING)?;
    task.kill("e1", SIGKILL)?;
    same("exit status", task.wait("e1")?.exit_status, 137)?;
    task.delete("e1")?;
    task.end()
}

fn exec_in_stopped(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["true"])?;
    task.wait("")?;
    refused(task.exec("e1", &["true"]), code)?;
    refused(task.state("e1"), Code::NOT_FOUND)?;
    task.end()
}

fn exec_in_paused(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.pause()?;
    refused(task.exec("e1", &["true"]), code)?;
    task.resume()?;
    task.end()
}

fn kill_after_exit(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["true"])?;
    task.start("e1")?;
    task.wait("e1")?;
    let sentence = refused(task.kill("e1", SIGKILL), Code::NOT_FOUND)?;
    anyhow::ensure!(sentence.contains("process already finished"), "{sentence}");
    task.kill("", SIGKILL)?;
    task.wait("")?;
    let sentence = refused(task.kill("", SIGKILL), Code::NOT_FOUND)?;
    anyhow::ensure!(sentence.contains("process already finished"), "{sentence}");
    task.delete("e1")?;
    task.end()
}

fn pause_twice(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.pause()?;
    refused(task.pause(), code)?;
    same("status", task.status("")?, Status::PAUSED)?;
    task.resume()?;
    task.end()
}

fn resume_running(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    refused(task.resume(), code)?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn pause_created(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::created(subject, &["sleep", "1000"])?;
    refused(task.pause(), code)?;
    same("status", task.status("")?, Status::CREATED)?;
    task.start("")?;
    task.end()
}

fn resize_without_terminal(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.resize("", 100, 40)?;
    task.end()
}

fn close_without_input(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.close_stdin("")?;
    task.close_stdin("")?;
    task.end()
}

fn checkpoint(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let folder = task.bundle.path("checkpoint").display().to_string();
    refused(task.checkpoint(&folder), code)?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn unknown_method(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    refused(task.shim.call::<Empty, Empty>("Levitate", &Empty::default()), Code::UNIMPLEMENTED)?;
    task.end_shim()
}

fn unknown_service(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    let answer: Answer<Empty> = task.shim.call_as("containerd.task.v99.Task", "State", &Empty::default());
    let (code, _) = code_of(answer)?;
    same("code", code, Code::UNIMPLEMENTED)?;
    task.end_shim()
}
