//! Requests that make no sense: the answer says so, and nothing is left half made.

use std::fs;

use containerd_shim_protos::{
    api::{CreateTaskRequest, CreateTaskResponse, Empty, ExecProcessRequest, Mount, Status, UpdateTaskRequest},
    protobuf::{MessageField, well_known_types::any::Any},
    ttrpc::Code,
};
use serde_json::{Value, json};

use super::{coded, same};
use crate::conformance::{Answer, Bundle, Case, Stdio, Subject, Task, code_of, refused, shim::TASK_V2};

const GROUP: &str = "Task: requests that make no sense";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        coded!("a broken config.json is INVALID_ARGUMENT, and nothing is left", broken_config, Code::INVALID_ARGUMENT),
        coded!(
            "a missing config.json is INVALID_ARGUMENT, and nothing is left",
            missing_config,
            Code::INVALID_ARGUMENT
        ),
        coded!("fields of the wrong type are INVALID_ARGUMENT, each", wrong_types, Code::INVALID_ARGUMENT),
        case("a root that cannot be mounted is refused, and nothing is left", broken_rootfs),
        case("options that nobody knows are refused or ignored, and the shim goes on", wrong_options),
        coded!("an exec of no OCI process is INVALID_ARGUMENT", broken_exec, Code::INVALID_ARGUMENT),
        case("an exec without words is refused", exec_of_nothing),
        coded!("an update of no OCI resources is INVALID_ARGUMENT", broken_update, Code::INVALID_ARGUMENT),
        case("bytes that are no message are INVALID_ARGUMENT", |s| noise(s, Code::INVALID_ARGUMENT))
            .unlike_in_runc("containerd 1.6's shim says INTERNAL", |s| noise(s, Code::INTERNAL)),
        case("after all of that a container runs in the same shim", works_after_refusals),
    ]
}

/// Create is refused, nothing of the container is there, and the shim ends when told.
fn refused_whole(task: &Task, code: Code) -> anyhow::Result<()> {
    let sentence = refused(task.create(&Stdio::none()), code)?;
    anyhow::ensure!(sentence.len() > 10, "{sentence:?} says nothing");
    nothing_left(task)
}

fn nothing_left(task: &Task) -> anyhow::Result<()> {
    refused(task.state(""), Code::NOT_FOUND)?;
    anyhow::ensure!(!task.bundle.has_mounts()?, "something is mounted in {}", task.bundle.folder.display());
    same("events", task.told(), Vec::new())
}

fn broken_config(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    for text in ["", "{", "[]", "\"spec\"", "{\"process\": }", "\u{0}\u{1}\u{2}"] {
        fs::write(task.bundle.path("config.json"), text)?;
        refused_whole(&task, code).map_err(|error| error.context(format!("config.json {text:?}")))?;
    }
    task.end_shim()
}

fn missing_config(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    fs::remove_file(task.bundle.path("config.json"))?;
    refused_whole(&task, code)?;
    task.end_shim()
}

/// Places in config.json, and what does not belong there.
fn misfits() -> Vec<(&'static str, Value)> {
    vec![
        ("/process", json!("sh")),
        ("/process/args", json!("sh -c true")),
        ("/process/args", json!([1, 2])),
        ("/process/cwd", json!(7)),
        ("/process/env", json!({ "PATH": "/bin" })),
        ("/process/user", json!("root")),
        ("/process/user", json!([0, 0])),
        ("/process/user/uid", json!(-1)),
        ("/process/user/uid", json!(1_u64 << 40)),
        ("/process/capabilities/bounding", json!("all")),
        ("/process/terminal", json!("no")),
        ("/root", json!("rootfs")),
        ("/root", json!(["rootfs", false])),
        ("/root/path", json!(true)),
        ("/hostname", json!({})),
        ("/mounts", json!({})),
        ("/mounts/0", json!("proc")),
        ("/mounts/0/options", json!("ro")),
        ("/linux", json!("yes")),
        ("/linux/namespaces", json!({ "pid": "" })),
        ("/linux/namespaces/0", json!(["pid"])),
        ("/linux/namespaces/0/type", json!({ "pid": null })),
        ("/linux/resources", json!("none")),
        ("/linux/resources", json!([])),
        ("/linux/resources/devices", json!("none")),
        ("/linux/cgroupsPath", json!(3)),
    ]
}

fn wrong_types(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    for (place, misfit) in misfits() {
        let mut bundle = task.bundle.clone();
        *bundle.spec.pointer_mut(place).ok_or_else(|| anyhow::anyhow!("no {place} in config.json"))? = misfit.clone();
        bundle.write()?;
        refused_whole(&task, code).map_err(|error| error.context(format!("{place}: {misfit}")))?;
    }
    task.end_shim()
}

fn create_with(task: &Task, change: impl FnOnce(&mut CreateTaskRequest)) -> Answer<CreateTaskResponse> {
    let mut request = task.create_request(&Stdio::none());
    change(&mut request);
    task.shim.call("Create", &request)
}

fn broken_rootfs(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    let mount = |kind: &str, source: &str, options: &[&str]| Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    };
    let broken = [
        mount("no-such-file-system", "none", &[]),
        mount("bind", "/no/such/folder", &["rbind"]),
        mount("overlay", "overlay", &["lowerdir=/no/such/folder"]),
        mount("ext4", "/dev/null", &[]),
    ];
    for mount in broken {
        let name = format!("{mount:?}");
        let answer = create_with(&task, |request| request.rootfs = vec![mount]);
        let context = |error: anyhow::Error| error.context(name.clone());
        code_of(answer).map_err(context)?;
        nothing_left(&task).map_err(context)?;
    }
    task.end_shim()
}

fn wrong_options(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["true"])?)?;
    let options = [("example.com/unheard.of.Options", vec![8, 1]), ("containerd.runc.v1.Options", vec![0xff; 40])];
    for (type_url, value) in options {
        let any = Any { type_url: type_url.to_owned(), value, ..Any::default() };
        match create_with(&task, |request| request.options = MessageField::some(any)) {
            Ok(_) => task.remove().map(drop)?,
            Err(error) => drop(code_of(Answer::<Empty>::Err(error))?),
        }
        refused(task.state(""), Code::NOT_FOUND)?;
        anyhow::ensure!(!task.bundle.has_mounts()?, "something is mounted in {}", task.bundle.folder.display());
    }
    task.end_shim()
}

fn broken_exec(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    for value in [&b""[..], b"{", b"[]", br#"{"args": 7}"#] {
        let any = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: value.to_vec(),
            ..Any::default()
        };
        let request = ExecProcessRequest {
            id: task.id().to_owned(),
            exec_id: "e1".to_owned(),
            spec: MessageField::some(any),
            ..ExecProcessRequest::default()
        };
        refused(task.shim.call::<_, Empty>("Exec", &request), code)
            .map_err(|error| error.context(String::from_utf8_lossy(value).into_owned()))?;
        refused(task.state("e1"), Code::NOT_FOUND)?;
    }
    task.end()
}

fn exec_of_nothing(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    // At once, or when it is to start.
    if task.exec("e1", &[]).is_ok() {
        code_of(task.start("e1"))?;
        task.delete("e1")?;
    }
    refused(task.state("e1"), Code::NOT_FOUND)?;
    task.end()
}

fn broken_update(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    for value in [&b"{"[..], b"[]", br#"{"memory": 7}"#, br#"{"pids": {"limit": "many"}}"#] {
        let any = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: value.to_vec(),
            ..Any::default()
        };
        let request = UpdateTaskRequest {
            id: task.id().to_owned(),
            resources: MessageField::some(any),
            ..UpdateTaskRequest::default()
        };
        refused(task.shim.call::<_, Empty>("Update", &request), code)
            .map_err(|error| error.context(String::from_utf8_lossy(value).into_owned()))?;
    }
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn noise(subject: &Subject, code: Code) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    for method in ["Create", "State", "Kill", "Exec", "Delete", "Update"] {
        let answer: Answer<Empty> = task.shim.call_with(TASK_V2, method, vec![0xff; 64]);
        refused(answer, code).map_err(|error| error.context(method))?;
    }
    same("status", task.status("")?, Status::RUNNING)?;
    task.end()
}

fn works_after_refusals(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::new(subject, Bundle::new(subject, &["sh", "-c", "exit 5"])?)?;
    fs::write(task.bundle.path("config.json"), "{")?;
    code_of(task.create(&Stdio::none()))?;
    task.bundle.write()?;
    let nowhere = Mount { type_: "bind".to_owned(), source: "/no/such/folder".to_owned(), ..Mount::default() };
    code_of(create_with(&task, |request| request.rootfs = vec![nowhere]))?;
    task.create(&Stdio::none())?;
    task.start("")?;
    same("exit status", task.wait("")?.exit_status, 5)?;
    task.end()?;
    same("events", task.told(), ["create", "start", "exit 5", "delete 5"].map(str::to_owned).to_vec())
}
