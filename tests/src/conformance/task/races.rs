//! Calls that meet: every caller is answered, and every process ends once.

use std::{sync::Arc, thread};

use containerd_shim_protos::{
    api::{Status, WaitRequest, WaitResponse},
    protobuf::Message,
    ttrpc::{
        Code,
        proto::{KeyValue, Request},
    },
};

use super::same;
use crate::conformance::{Answer, Bundle, Case, SIGKILL, Stdio, Subject, Task, code_of, refused};

const GROUP: &str = "Task: races";
/// Clients that wait for one process.
const WAITERS: usize = 20;

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("twenty clients that wait are all told the same", many_waiters),
        case("a wait after the exit is answered at once, again and again", wait_after_exit),
        case("a wait before the start is answered by the exit", wait_before_start),
        case("a kill during create waits, or is refused and works after it", kill_during_create),
        case("a kill during start ends the container", kill_during_start),
        case("of two deletes one deletes", double_delete),
        case("of two creates of one id one creates", double_create),
        case("of two starts one starts", double_start),
        case("an exec that comes with the exit runs or is refused, and ends either way", exec_with_exit),
        case("ten execs at once have each their own status", execs_at_once),
        case("twenty kills at once end a container once", kills_at_once),
        case("a shutdown while containers are there changes nothing", shutdown_with_containers),
        case("an exec deleted while its start is under way ends or stays, whole", exec_delete_during_start),
    ]
}

fn many_waiters(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::running(subject, &["sleep", "1000"])?);
    let waiters: Vec<_> = (0..WAITERS)
        .map(|number| {
            let task = Arc::clone(&task);
            // Half of them with a connection of their own.
            thread::spawn(move || if number % 2 == 0 { Ok(task.wait("")?) } else { wait_alone(&task) })
        })
        .collect();
    same("status", task.status("")?, Status::RUNNING)?;
    task.kill("", SIGKILL)?;
    let told = waiters.into_iter().map(|waiter| waiter.join().expect("no panic"));
    let told = told.collect::<anyhow::Result<Vec<WaitResponse>>>()?;
    anyhow::ensure!(told.iter().all(|one| *one == told[0] && one.exit_status == 137), "{told:?}");
    task.end()
}

fn wait_alone(task: &Task) -> anyhow::Result<WaitResponse> {
    let client = task.shim.another_client()?;
    let message = WaitRequest { id: task.id().to_owned(), ..WaitRequest::default() };
    let namespace =
        KeyValue { key: "containerd-namespace-ttrpc".to_owned(), value: "x".to_owned(), ..KeyValue::default() };
    let request = Request {
        service: "containerd.task.v2.Task".to_owned(),
        method: "Wait".to_owned(),
        payload: message.write_to_bytes()?,
        timeout_nano: 60_000_000_000,
        metadata: vec![namespace],
        ..Request::default()
    };
    Ok(WaitResponse::parse_from_bytes(&client.request(request)?.payload)?)
}

fn wait_after_exit(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sh", "-c", "exit 8"])?;
    let first = task.wait("")?;
    for _ in 0..5 {
        same("answer", task.wait("")?, first.clone())?;
    }
    task.delete("")?;
    refused(task.wait(""), Code::NOT_FOUND)?;
    task.end_shim()
}

fn wait_before_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::created(subject, &["sh", "-c", "exit 6"])?);
    task.exec("e1", &["true"]).ok();
    let shared = Arc::clone(&task);
    let waiter = thread::spawn(move || shared.wait(""));
    task.start("")?;
    same("exit status", waiter.join().expect("no panic")?.exit_status, 6)?;
    drop(task.delete("e1"));
    task.end()
}

/// Runs both at once and returns what each brought.
fn both<A: Send + 'static, B>(
    task: &Arc<Task>,
    one: impl FnOnce(&Task) -> A + Send + 'static,
    other: impl FnOnce(&Task) -> B,
) -> (A, B) {
    let shared = Arc::clone(task);
    let first = thread::spawn(move || one(&shared));
    let second = other(task);
    (first.join().expect("no panic"), second)
}

fn kill_during_create(subject: &Subject) -> anyhow::Result<()> {
    for _ in 0..3 {
        let task = Arc::new(Task::new(subject, Bundle::new(subject, &["sleep", "1000"])?)?);
        let (created, killed) = both(&task, |task| task.create(&Stdio::none()).map(drop), kill_until);
        created?;
        if killed.is_err() {
            let (code, sentence) = code_of(killed)?;
            let known = [Code::NOT_FOUND, Code::FAILED_PRECONDITION].contains(&code);
            anyhow::ensure!(known, "the kill was refused with {code:?}: {sentence}");
            task.kill("", SIGKILL)?;
        }
        same("exit status", task.wait("")?.exit_status, 137)?;
        task.end()?;
    }
    Ok(())
}

// Until the container is there to be killed, or its create has certainly been answered.
fn kill_until(task: &Task) -> Answer<()> {
    let mut answer = task.kill("", SIGKILL).map(drop);
    for _ in 0..200 {
        if answer.is_ok() {
            break;
        }
        answer = task.kill("", SIGKILL).map(drop);
    }
    answer
}

fn kill_during_start(subject: &Subject) -> anyhow::Result<()> {
    for _ in 0..3 {
        let task = Arc::new(Task::created(subject, &["sleep", "1000"])?);
        let (started, killed) = both(&task, |task| task.start("").map(drop), |task| task.kill("", SIGKILL));
        killed?;
        // A start that came second finds a dead container.
        drop(started);
        same("exit status", task.wait("")?.exit_status, 137)?;
        same("status", task.status("")?, Status::STOPPED)?;
        task.end()?;
        let exits = task.told().into_iter().filter(|told| told.starts_with("exit")).count();
        same("exits", exits, 1)?;
    }
    Ok(())
}

fn double_delete(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::running(subject, &["true"])?);
    task.wait("")?;
    let (one, other) = both(&task, |task| task.delete("").map(drop), |task| task.delete("").map(drop));
    // Both may have found it; one that came later did not.
    let answers = [one, other];
    anyhow::ensure!(answers.iter().any(Result::is_ok), "{answers:?}");
    for answer in answers.into_iter().filter(Result::is_err) {
        refused(answer, Code::NOT_FOUND)?;
    }
    refused(task.delete(""), Code::NOT_FOUND)?;
    task.hears("delete 0")?;
    task.end_shim()?;
    same("deletes", task.told().into_iter().filter(|told| told.starts_with("delete")).count(), 1)
}

fn double_create(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::new(subject, Bundle::new(subject, &["sleep", "1000"])?)?);
    let create = |task: &Task| task.create(&Stdio::none()).map(drop);
    let (one, other) = both(&task, create, create);
    same("creates", [&one, &other].into_iter().filter(|answer| answer.is_ok()).count(), 1)?;
    task.start("")?;
    task.end()?;
    same("creates told", task.told().into_iter().filter(|told| told == "create").count(), 1)
}

fn double_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::created(subject, &["sleep", "1000"])?);
    let start = |task: &Task| task.start("").map(drop);
    let (one, other) = both(&task, start, start);
    same("starts", [&one, &other].into_iter().filter(|answer| answer.is_ok()).count(), 1)?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()?;
    same("starts told", task.told().into_iter().filter(|told| told == "start").count(), 1)
}

fn exec_with_exit(subject: &Subject) -> anyhow::Result<()> {
    for _ in 0..3 {
        let task = Arc::new(Task::running(subject, &["sleep", "1000"])?);
        let run = |task: &Task| {
            task.exec("e1", &["sleep", "1000"])?;
            task.start("e1").map(drop)
        };
        let (exec, killed) = both(&task, run, |task| task.kill("", SIGKILL));
        killed?;
        same("exit status", task.wait("")?.exit_status, 137)?;
        match exec {
            // Killed with its container.
            Ok(()) => same("status of the exec", task.wait("e1")?.exit_status, 137)?,
            Err(error) => drop(code_of(Answer::<()>::Err(error))?),
        }
        drop(task.delete("e1"));
        task.end()?;
    }
    Ok(())
}

fn execs_at_once(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::running(subject, &["sleep", "1000"])?);
    let threads: Vec<_> = (0..10_u32)
        .map(|number| {
            let task = Arc::clone(&task);
            thread::spawn(move || {
                task.output_of(&format!("e{number}"), &["sh", "-c", &format!("echo {number}; exit {number}")])
            })
        })
        .collect();
    for (number, thread) in (0_u32..).zip(threads) {
        same("status and output", thread.join().expect("no panic")?, (number, format!("{number}\n")))?;
    }
    task.end()
}

fn kills_at_once(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::running(subject, &["sleep", "1000"])?);
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let task = Arc::clone(&task);
            thread::spawn(move || task.kill("", SIGKILL).map(drop))
        })
        .collect();
    for answer in threads.into_iter().map(|thread| thread.join().expect("no panic")).filter(Result::is_err) {
        refused(answer, Code::NOT_FOUND)?;
    }
    same("exit status", task.wait("")?.exit_status, 137)?;
    task.end()?;
    same("exits told", task.told().into_iter().filter(|told| told == "exit 137").count(), 1)
}

fn shutdown_with_containers(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.shutdown()?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.kill("", SIGKILL)?;
    task.wait("")?;
    task.shutdown()?;
    same("status", task.status("")?, Status::STOPPED)?;
    task.end()
}

fn exec_delete_during_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Arc::new(Task::running(subject, &["sleep", "1000"])?);
    for number in 0..5 {
        let (exec, same_exec) = (format!("e{number}"), format!("e{number}"));
        task.exec(&exec, &["sleep", "1000"])?;
        let (started, deleted) = both(&task, move |task| task.start(&exec).map(drop), |task| task.delete(&same_exec));
        match deleted {
            Ok(_) => drop(refused(task.state(&same_exec), Code::NOT_FOUND)?),
            Err(_) => {
                started?;
                task.kill(&same_exec, SIGKILL)?;
                same("exit status", task.wait(&same_exec)?.exit_status, 137)?;
                task.delete(&same_exec)?;
            }
        }
    }
    task.end()
}
