//! Hooks of the host in a container's configuration: when they run, what they are told, and what their failure means.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use containerd_shim_protos::api::Status;
use serde_json::{Value, json};

use super::same;
use crate::conformance::{Bundle, Case, Stdio, Subject, Task, code_of};

const GROUP: &str = "Task: hooks";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("each hook of the host runs in its turn, and is told the container's state", |s| in_their_turn(s, false))
            .unlike_in_runc("runc 1.1 runs poststart hooks at the end of create", |s| in_their_turn(s, true)),
        case(
            "what a hook puts into the network of the pid that it is told is there from the first instruction on",
            network,
        ),
        case("a createRuntime hook that fails fails the create with its words, and what was done is undone", failing),
        case("a hook's timeout ends it, and fails the create", timeout),
        case("after a SIGKILL of the shim, delete runs the poststop hooks", after_sigkill),
        case("a poststop hook that fails keeps no container", failing_at_the_end),
    ]
}

/// A hook that is this line of a shell; `$0` is the bundle.
fn hook(bundle: &Bundle, line: &str) -> Value {
    let path = std::env::var("PATH").unwrap_or_default();
    json!({ "path": "/bin/sh", "args": ["sh", "-c", line, bundle.folder], "env": [format!("PATH={path}")] })
}

/// One that writes its standard input and its name down.
fn notes(bundle: &Bundle, name: &str) -> Value {
    hook(bundle, &format!("cat > \"$0/{name}.json\"; echo {name} >> \"$0/hooks\""))
}

fn with_hooks(subject: &Subject, words: &[&str], hooks: impl FnOnce(&Bundle) -> Value) -> anyhow::Result<Task> {
    let mut bundle = Bundle::new(subject, words)?;
    bundle.spec["annotations"]["org.example.word"] = "told".into();
    bundle.spec["hooks"] = hooks(&bundle);
    Task::new(subject, bundle)
}

/// Names of the hooks that ran.
fn ran(task: &Task) -> String {
    fs::read_to_string(task.bundle.path("hooks")).unwrap_or_default().replace('\n', " ")
}

fn state(bundle: &Path, name: &str) -> anyhow::Result<Value> {
    let bytes = fs::read(bundle.join(format!("{name}.json"))).with_context(|| format!("{name} did not run"))?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn in_their_turn(subject: &Subject, poststart_is_early: bool) -> anyhow::Result<()> {
    let all = |bundle: &Bundle| {
        json!({
            "prestart": [notes(bundle, "prestart")],
            "createRuntime": [notes(bundle, "first"), notes(bundle, "second")],
            "poststart": [notes(bundle, "poststart")],
            "poststop": [notes(bundle, "poststop")],
        })
    };
    let task = with_hooks(subject, &["sleep", "1000"], all)?;
    let pid = task.create(&Stdio::none())?.pid;
    let by_create = if poststart_is_early { "prestart first second poststart " } else { "prestart first second " };
    same("hooks by the answer of create", ran(&task).as_str(), by_create)?;
    task.start("")?;
    same("hooks by the answer of start", ran(&task).as_str(), "prestart first second poststart ")?;
    task.remove()?;
    same("hooks by the answer of delete", ran(&task).as_str(), "prestart first second poststart poststop ")?;
    for (name, status, alive) in [
        ("prestart", "creating", true),
        ("second", "creating", true),
        ("poststart", if poststart_is_early { "created" } else { "running" }, true),
        ("poststop", "stopped", false),
    ] {
        let state = state(&task.bundle.folder, name)?;
        let told = (&state["id"], &state["status"], &state["bundle"]);
        let wanted = (json!(task.id()), json!(status), json!(task.bundle.folder));
        same(name, told, (&wanted.0, &wanted.1, &wanted.2))?;
        same("the annotation", &state["annotations"]["org.example.word"], &json!("told"))?;
        ensure!(!alive || state["pid"] == json!(pid), "{name} is told of {}, and the task is {pid}", state["pid"]);
    }
    task.end_shim()
}

fn network(subject: &Subject) -> anyhow::Result<()> {
    let plug = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')
        in_it() { nsenter --net=/proc/$pid/ns/net ip \"$@\"; }
        in_it link add net0 type veth peer name far0 && in_it address add 10.77.0.2/24 dev net0 && in_it link set net0 up";
    let words = "ip -o address show dev net0 > /draft 2>&1; mv /draft /first; sleep 1000";
    let task = with_hooks(subject, &["sh", "-c", words], |bundle| json!({ "createRuntime": [hook(bundle, plug)] }))?;
    task.create(&Stdio::none())?;
    task.start("")?;
    let (code, first) = task.output_of("e1", &["sh", "-c", "until [ -e /first ]; do sleep 0.02; done; cat /first"])?;
    ensure!(first.contains("10.77.0.2/24"), "exit {code}: {first:?}");
    task.end()
}

fn failing(subject: &Subject) -> anyhow::Result<()> {
    let hooks = |bundle: &Bundle| {
        let bad = hook(bundle, "echo cannot do that >&2; exit 3");
        json!({ "createRuntime": [notes(bundle, "got"), bad, notes(bundle, "never")], "poststop": [notes(bundle, "gave-back")] })
    };
    let task = with_hooks(subject, &["sleep", "1000"], hooks)?;
    let (_, sentence) = code_of(task.create(&Stdio::none()))?;
    ensure!(sentence.contains("hook #1") && sentence.contains("cannot do that"), "{sentence}");
    ensure!(task.state("").is_err(), "the container is there");
    task.shim.delete(&task.bundle)?;
    same("hooks", ran(&task).as_str(), "got gave-back ")?;
    task.end_shim()
}

fn timeout(subject: &Subject) -> anyhow::Result<()> {
    let hooks =
        |_: &Bundle| json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }] });
    let task = with_hooks(subject, &["sleep", "1000"], hooks)?;
    code_of(task.create(&Stdio::none()))?;
    task.shim.delete(&task.bundle)?;
    task.end_shim()
}

fn after_sigkill(subject: &Subject) -> anyhow::Result<()> {
    let hooks =
        |bundle: &Bundle| json!({ "createRuntime": [notes(bundle, "got")], "poststop": [notes(bundle, "gave-back")] });
    let task = with_hooks(subject, &["sleep", "1000"], hooks)?;
    task.create(&Stdio::none())?;
    task.start("")?;
    same("status", task.status("")?, Status::RUNNING)?;
    task.shim.murder();
    task.shim.delete(&task.bundle)?;
    same("hooks", ran(&task).as_str(), "got gave-back ")?;
    task.shim.delete(&task.bundle)?;
    same("hooks after a second delete", ran(&task).as_str(), "got gave-back ")
}

fn failing_at_the_end(subject: &Subject) -> anyhow::Result<()> {
    let hooks =
        |bundle: &Bundle| json!({ "poststop": [hook(bundle, "exit 1")], "createRuntime": [notes(bundle, "got")] });
    let task = with_hooks(subject, &["true"], hooks)?;
    task.create(&Stdio::none())?;
    task.start("")?;
    task.end()
}
