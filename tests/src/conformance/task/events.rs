//! What containerd is told, in what order, and how often.

use super::same;
use crate::conformance::{Bundle, Case, SIGKILL, Stdio, Subject, Task};
use serde_json::json;

const GROUP: &str = "Task: events";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("the events of a container and its execs come once each, in order", in_order),
        case("a process that ends at once has told its start before its exit", short_life),
        case("twenty execs that end at once tell each start before its exit", short_execs),
        case("the create event names bundle, stdio and pid", create_event),
        case("start, exit and delete name the same pid, and exits their time", pids_and_times),
        case("every event has its time and its namespace", envelopes),
        case("a container killed before its start tells create, exit and delete", killed_before_its_start),
        case(
            "a container deleted before its start tells create and delete, and its start never",
            deleted_before_its_start,
        ),
        case("an exec that outlives its container tells its exit, once", exec_ends_with_its_container),
        case("no event comes after delete", silence_after_delete),
        case("memory that runs out is told while init lives on", oom_of_a_child),
        case("memory that runs out is told when init dies of it", oom_of_init),
    ]
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn in_order(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sh", "-c", "exit 3"])?;
    task.start("e1")?;
    same("status of the exec", task.wait("e1")?.exit_status, 3)?;
    task.hears("exit e1 3")?;
    task.delete("e1")?;
    task.pause()?;
    task.hears("paused")?;
    task.resume()?;
    task.hears("resumed")?;
    task.kill("", SIGKILL)?;
    task.wait("")?;
    task.hears("exit 137")?;
    task.delete("")?;
    task.hears("delete 137")?;
    task.end_shim()?;
    let wanted = ["create", "start", "exec-added e1", "exec-started e1", "exit e1 3", "paused", "resumed"];
    same("events", task.told(), words(&[&wanted[..], &["exit 137", "delete 137"]].concat()))
}

fn short_life(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["true"])?;
    task.wait("")?;
    task.hears("exit 0")?;
    task.delete("")?;
    task.hears("delete 0")?;
    task.end_shim()?;
    same("events", task.told(), words(&["create", "start", "exit 0", "delete 0"]))
}

fn short_execs(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let names: Vec<_> = (0..20).map(|number| format!("e{number}")).collect();
    for name in &names {
        task.exec(name, &["true"])?;
        task.start(name)?;
        task.wait(name)?;
        task.hears(&format!("exit {name} 0"))?;
        task.delete(name)?;
    }
    let wanted = names
        .iter()
        .flat_map(|name| [format!("exec-added {name}"), format!("exec-started {name}"), format!("exit {name} 0")]);
    let wanted: Vec<_> = words(&["create", "start"]).into_iter().chain(wanted).collect();
    same("events", task.told(), wanted)?;
    task.end()
}

fn create_event(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["sleep", "1000"])?)?;
    let stdio = Stdio::all(&task.bundle.folder, "init")?;
    let pid = task.create(&stdio)?.pid;
    let told = task.hears("create")?;
    same("pid", told.pid, Some(pid))?;
    same("bundle", told.bundle.as_str(), &task.bundle.folder.display().to_string())?;
    let io = told.io.unwrap_or_default();
    let found = (io.stdin.as_str(), io.stdout.as_str(), io.stderr.as_str(), io.terminal);
    same("stdio", found, (stdio.stdin.as_str(), stdio.stdout.as_str(), stdio.stderr.as_str(), false))?;
    task.end()
}

fn pids_and_times(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let pid = task.state("")?.pid;
    task.exec("e1", &["true"])?;
    let exec_pid = task.start("e1")?.pid;
    task.wait("e1")?;
    let exec_exit = task.hears("exit e1 0")?;
    same("pid of the exec's start", task.hears("exec-started e1")?.pid, Some(exec_pid))?;
    same("pid of the exec's exit", exec_exit.pid, Some(exec_pid))?;
    task.delete("e1")?;
    task.remove()?;
    let delete = task.hears("delete 137")?;
    let exit = task.hears("exit 137")?;
    same("pid of start", task.hears("start")?.pid, Some(pid))?;
    same("pids of exit and delete", (exit.pid, delete.pid), (Some(pid), Some(pid)))?;
    same("times", (exec_exit.exited_at, exit.exited_at, delete.exited_at), (true, true, true))?;
    task.end_shim()
}

fn envelopes(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.remove()?;
    for name in ["create", "start", "exit 137", "delete 137"] {
        let told = task.hears(name)?;
        same(name, (told.namespace, told.stamped), (subject.namespace(), true))?;
    }
    task.end_shim()
}

fn killed_before_its_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::created(subject, &["true"])?;
    task.kill("", SIGKILL)?;
    task.hears("exit 137")?;
    task.delete("")?;
    task.hears("delete 137")?;
    task.end_shim()?;
    same("events", task.told(), words(&["create", "exit 137", "delete 137"]))
}

fn deleted_before_its_start(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::created(subject, &["true"])?;
    let status = task.delete("")?.exit_status;
    task.hears(&format!("delete {status}"))?;
    task.end_shim()?;
    // Whether the process that waited for its start has an exit is each runtime's own matter.
    let told: Vec<_> = task.told().into_iter().filter(|told| !told.starts_with("exit")).collect();
    same("events", told, vec!["create".to_owned(), format!("delete {status}")])
}

fn exec_ends_with_its_container(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    task.exec("e1", &["sleep", "1000"])?;
    task.start("e1")?;
    task.kill("", SIGKILL)?;
    same("status of the exec", task.wait("e1")?.exit_status, 137)?;
    same("status of init", task.wait("")?.exit_status, 137)?;
    task.hears("exit e1 137")?;
    task.hears("exit 137")?;
    task.delete("e1")?;
    task.end()?;
    let exits = task.told().into_iter().filter(|told| told == "exit e1 137").count();
    same("exits of the exec", exits, 1)
}

fn silence_after_delete(subject: &Subject) -> anyhow::Result<()> {
    let pod = Task::new(subject, Bundle::sandbox(subject)?)?;
    pod.create(&Stdio::none())?;
    pod.start("")?;
    let task = pod.beside(subject, &["sleep", "1000"])?;
    task.remove()?;
    task.hears("delete 137")?;
    let told = task.told();
    drop((task.delete(""), task.kill("", SIGKILL), task.start(""), task.wait("")));
    // An event of another container is later than any that those calls could have made.
    pod.remove()?;
    pod.hears("delete 137")?;
    same("events", task.told(), told)?;
    pod.end_shim()
}

fn hungry(subject: &Subject, words: &[&str]) -> anyhow::Result<Bundle> {
    let mut bundle = Bundle::new(subject, words)?;
    bundle.spec["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 });
    Ok(bundle)
}

fn oom_of_a_child(subject: &Subject) -> anyhow::Result<()> {
    let (task, stdio) = Task::of(subject, hungry(subject, &["sh", "-c", "tail /dev/zero; echo over; sleep 1000"])?)?;
    stdio.until("over")?;
    task.hears("oom")?;
    task.end()?;
    same("events", task.told(), words(&["create", "start", "oom", "exit 137", "delete 137"]))
}

fn oom_of_init(subject: &Subject) -> anyhow::Result<()> {
    let (task, _stdio) = Task::of(subject, hungry(subject, &["tail", "/dev/zero"])?)?;
    same("exit status", task.wait("")?.exit_status, 137)?;
    task.hears("oom")?;
    task.hears("exit 137")?;
    task.end()
}
