//! What cannot run: missing programs and folders. The answer names them in the words that users of runc know.

use containerd_shim_protos::{api::Empty, ttrpc::Code};

use super::same;
use crate::conformance::{Answer, Bundle, Case, Stdio, Subject, Task, code_of, process, refused};

const GROUP: &str = "Task: what cannot run";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("an exec of a missing program is refused at its start, in the words that kubectl knows", exec_missing),
        case("an exec of a file that is no program is refused: permission denied", exec_not_executable),
        case("an exec in a missing folder is refused and named", exec_without_folder),
        case("a container of a missing program is refused, and nothing is left", init_missing),
        case("a refused exec leaves its container as it was", container_after_refused_exec),
        case("a refused exec has ended, and tells no start", refused_exec_has_ended),
    ]
}

fn exec_missing(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["no-such-program", "x"])?;
    let sentence = sentence_of(task.start("e1"))?;
    let known = "exec: \"no-such-program\": executable file not found in $PATH";
    anyhow::ensure!(sentence.contains(known), "{sentence:?} does not contain {known:?}");
    task.delete("e1")?;
    task.exec("e2", &["/no/such/program"])?;
    let sentence = sentence_of(task.start("e2"))?;
    let known = "exec: \"/no/such/program\": stat /no/such/program: no such file or directory";
    anyhow::ensure!(sentence.contains(known), "{sentence:?} does not contain {known:?}");
    task.delete("e2")?;
    task.end()
}

fn sentence_of<T: std::fmt::Debug>(answer: Answer<T>) -> anyhow::Result<String> {
    Ok(code_of(answer)?.1)
}

fn exec_not_executable(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    same("a file", task.output_of("e1", &["sh", "-c", "echo text > /file"])?.0, 0)?;
    task.exec("e2", &["/file"])?;
    let sentence = sentence_of(task.start("e2"))?;
    anyhow::ensure!(sentence.contains("exec: \"/file\": permission denied"), "{sentence:?}");
    task.delete("e2")?;
    task.end()
}

fn exec_without_folder(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let mut described = process(&["true"]);
    described["cwd"] = "/no/such/folder".into();
    task.exec_with("e1", &described, &Stdio::none())?;
    let sentence = sentence_of(task.start("e1"))?;
    anyhow::ensure!(sentence.contains("/no/such/folder"), "{sentence:?}");
    task.delete("e1")?;
    task.end()
}

fn init_missing(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["no-such-program"])?)?;
    let sentence = match task.create(&Stdio::none()) {
        Err(error) => sentence_of(Answer::<Empty>::Err(error))?,
        // It may be looked for when it is to run.
        Ok(_) => {
            let sentence = sentence_of(task.start(""))?;
            task.wait("")?;
            task.delete("")?;
            sentence
        }
    };
    let known = "exec: \"no-such-program\": executable file not found in $PATH";
    anyhow::ensure!(sentence.contains(known), "{sentence:?} does not contain {known:?}");
    refused(task.state(""), Code::NOT_FOUND)?;
    anyhow::ensure!(!task.told().iter().any(|told| told == "start"), "a start was told: {:?}", task.told());
    task.end_shim()
}

fn container_after_refused_exec(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    for number in 0..5 {
        let exec = format!("e{number}");
        task.exec(&exec, &["no-such-program"])?;
        sentence_of(task.start(&exec))?;
        task.delete(&exec)?;
    }
    same("processes", task.pids()?.processes.len(), 1)?;
    same("an exec in it", task.output_of("good", &["echo", "fine"])?, (0, "fine\n".to_owned()))?;
    task.end()
}

fn refused_exec_has_ended(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["no-such-program"])?;
    sentence_of(task.start("e1"))?;
    // A client that waits is let go.
    task.wait("e1")?;
    task.delete("e1")?;
    refused(task.state("e1"), Code::NOT_FOUND)?;
    task.end()?;
    let told: Vec<_> = task.told();
    anyhow::ensure!(!told.iter().any(|told| told == "exec-started e1"), "{told:?}");
    Ok(())
}
