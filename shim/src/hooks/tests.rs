//! Hooks as small shell programs, in a bundle that a test makes.

use serde_json::json;

use super::*;

/// A bundle whose hooks write one line each into a file there.
struct Bundle(tempfile::TempDir);

impl Bundle {
    fn new(hooks: Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = json!({ "ociVersion": "1.0.2", "annotations": { "a": "b" }, "hooks": hooks });
        fs::write(folder.path().join("config.json"), spec.to_string()).expect("written");
        Self(folder)
    }

    fn hooks(&self) -> Hooks {
        let spec = bundle::spec(self.0.path()).expect("sound");
        Hooks::of("c1", self.0.path(), &spec).expect("it has hooks")
    }

    fn written(&self) -> String {
        fs::read_to_string(self.0.path().join("out")).unwrap_or_default()
    }

    fn owes(&self) -> bool {
        self.0.path().join(OWED).exists()
    }
}

fn sh(line: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["hook", "-c", line], "env": ["WORD=own", "PATH=/bin:/usr/bin"] })
}

fn says(word: &str) -> Value {
    sh(&format!("echo {word} >> out"))
}

#[test]
fn each_runs_in_its_turn_and_those_at_the_end_once() {
    let bundle = Bundle::new(json!({
        "createRuntime": [says("two"), says("three")], "prestart": [says("one")],
        "poststart": [says("four")], "poststop": [says("five"), sh("exit 1"), says("six")],
    }));
    let hooks = bundle.hooks();
    hooks.before_start(7).expect("all succeed");
    assert!(bundle.owes());
    hooks.after_start(7);
    hooks.after_stop();
    hooks.after_stop();
    settle("c1", bundle.0.path(), Duration::from_secs(10));
    assert_eq!(bundle.written(), "one\ntwo\nthree\nfour\nfive\nsix\n");
    assert!(!bundle.owes());
}

#[test]
fn a_hook_gets_the_state_its_own_environment_and_its_arguments() {
    let bundle = Bundle::new(json!({ "createRuntime": [sh("cat > state; echo $0 $WORD $(env | wc -l) > out")] }));
    bundle.hooks().before_start(4711).expect("it succeeds");
    let state: Value = serde_json::from_slice(&fs::read(bundle.0.path().join("state")).expect("read")).expect("JSON");
    let wanted = json!({
        "ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4711, "bundle": bundle.0.path(), "annotations": { "a": "b" },
    });
    assert_eq!(state, wanted);
    // The shell itself adds PWD and its like, and nothing of ours is there.
    assert!(bundle.written().starts_with("hook own "), "{}", bundle.written());
    assert!(std::env::vars().count() > 6, "this process has an environment that could come through");
    let count: usize = bundle.written().split_whitespace().nth(2).expect("told").parse().expect("a number");
    assert!(count <= 5, "{count} variables");
}

#[test]
fn one_that_fails_is_named_with_its_words_and_the_next_does_not_run() {
    let failing = sh("echo cannot do that >&2; exit 3");
    let bundle = Bundle::new(json!({ "createRuntime": [says("first"), failing, says("third")] }));
    let message = bundle.hooks().before_start(1).expect_err("it fails").message;
    for words in ["createRuntime hook #1 (/bin/sh)", "exit status: 3", "cannot do that"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(bundle.written(), "first\n");
    assert!(bundle.owes(), "what the first one got is given back");
}

#[test]
fn one_that_is_missing_or_outlives_its_timeout_fails() {
    let missing = Bundle::new(json!({ "prestart": [{ "path": "/no/such/hook" }] }));
    assert!(missing.hooks().before_start(1).expect_err("missing").message.contains("/no/such/hook"));
    let endless = json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 });
    let endless = Bundle::new(json!({ "prestart": [endless] }));
    let message = endless.hooks().before_start(1).expect_err("killed").message;
    assert!(message.contains("timeout of 1s"), "{message}");
}

#[test]
fn what_a_hook_leaves_running_holds_nobody_up() {
    let bundle = Bundle::new(json!({ "prestart": [sh("sleep 30 & echo $! > out")] }));
    let begun = std::time::Instant::now();
    bundle.hooks().before_start(1).expect("it ends");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    let left: i32 = bundle.written().trim().parse().expect("a pid");
    rustix::process::kill_process(rustix::process::Pid::from_raw(left).expect("a pid"), rustix::process::Signal::KILL)
        .expect("it still runs");
}

#[test]
fn whoever_cleans_up_after_a_killed_shim_runs_what_it_owed() {
    let bundle = Bundle::new(json!({ "prestart": [says("got")], "poststop": [says("gave back")] }));
    settle("c1", bundle.0.path(), Duration::from_secs(10));
    assert_eq!(bundle.written(), "", "no hook has run");
    bundle.hooks().before_start(1).expect("it succeeds");
    settle("c1", bundle.0.path(), Duration::from_secs(10));
    settle("c1", bundle.0.path(), Duration::from_secs(10));
    assert_eq!(bundle.written(), "got\ngave back\n");
}

#[test]
fn a_bundle_that_goes_first_costs_no_hook_at_the_end() {
    let kept = tempfile::tempdir().expect("a folder");
    let note = kept.path().join("note");
    let bundle = Bundle::new(json!({ "poststop": [sh(&format!("pwd > {}", note.display()))] }));
    let hooks = bundle.hooks();
    hooks.before_start(1).expect("there are none");
    fs::remove_dir_all(bundle.0.path()).expect("removed");
    hooks.after_stop();
    assert_eq!(fs::read_to_string(note).expect("it ran"), "/\n");
}

#[test]
fn a_hook_of_an_unwanted_container_is_killed_with_all_that_it_started() {
    let bundle = Bundle::new(json!({ "prestart": [sh("sleep 1000 & echo $! > out; wait")] }));
    let unwanted = Arc::<Doom>::default();
    let hooks = bundle.hooks().unless(unwanted.clone());
    let message = thread::scope(|scope| {
        let run = scope.spawn(|| hooks.before_start(1));
        while bundle.written().is_empty() {
            thread::yield_now();
        }
        unwanted.tell();
        run.join().expect("no panic").expect_err("killed").message
    });
    assert!(message.contains("nobody could wait"), "{message}");
    let child: i32 = bundle.written().trim().parse().expect("a pid");
    let child = rustix::process::Pid::from_raw(child).expect("a pid");
    // Its end comes with the signal; who reaps it is not ours to say.
    let is_running = || {
        fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero())).is_ok_and(|stat| !stat.contains(") Z "))
    };
    while is_running() {
        thread::yield_now();
    }
}

#[test]
fn a_hook_may_say_as_much_as_it_likes_in_any_way_and_its_last_words_are_known() {
    let talks = "set -e; yes words | head -c 17000000; echo more > /dev/stderr; echo and >> /dev/stdout; echo over | tee /dev/stderr; exit 7";
    let bundle = Bundle::new(json!({ "prestart": [sh(talks)] }));
    let message = bundle.hooks().before_start(1).expect_err("it fails").message;
    let told = ["exit status: 7", "words\nwords", "more\nand\nover\nover"].iter().all(|words| message.contains(words));
    assert!(told && message.len() < 4096, "{message}");
}

#[test]
fn a_hook_for_which_no_time_is_left_is_not_begun() {
    let bundle = Bundle::new(json!({ "poststop": [says("first"), says("second")] }));
    bundle.hooks().before_start(1).expect("there are none");
    settle("c1", bundle.0.path(), Duration::ZERO);
    assert_eq!(bundle.written(), "");
    assert!(!bundle.owes());
}

#[test]
fn whoever_cleans_up_waits_no_longer_than_it_may() {
    let bundle = Bundle::new(json!({ "poststop": [sh("sleep 1000"), says("second")] }));
    bundle.hooks().before_start(1).expect("there are none");
    settle("c1", bundle.0.path(), Duration::from_millis(1));
    assert!(!bundle.owes());
}
