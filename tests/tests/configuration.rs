//! The operator's configuration and a pod's annotations, through the command and through CRI as the kubelet drives it.
//!
//! Every pod reads the files anew, so one node serves all tests, each with the files that it wrote.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{LazyLock, Mutex, MutexGuard},
};

use cri::v1;
use pod::{annotations::Annotation, configuration::Key};
use tests::{
    Finished, Residue,
    containerd::RUNTIME,
    needs,
    node::{Node, Template},
    prefix, run,
};

/// A folder for the operator's files, and a node whose shims read them.
struct Operator {
    folder: tempfile::TempDir,
    node: LazyLock<Node, Box<dyn FnOnce() -> Node + Send>>,
}

impl Operator {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kata-rs-operator-").tempdir().expect("a folder");
        fs::create_dir(folder.path().join("config.d")).expect("made");
        let main = folder.path().join("config.toml").display().to_string();
        let start = move || Node::start_with(&[("KATA_RS_CONFIG", &main)]).expect("a node");
        Self { folder, node: LazyLock::new(Box::new(start)) }
    }

    fn main(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn drop_in(&self) -> PathBuf {
        self.folder.path().join("config.d/10-test.toml")
    }

    /// Writes the main file, and the drop-in when there is one.
    fn writes(&self, main: &str, drop_in: &str) {
        fs::write(self.main(), main).expect("written");
        fs::write(self.drop_in(), drop_in).expect("written");
    }

    fn command(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(prefix::bin("kata-rs"));
        run(command.env("KATA_RS_CONFIG", self.main()).args(words).stdin(Stdio::null()))
    }

    /// A pod with these annotations and, for its containers in sum, these resources.
    fn pod(
        &self,
        annotations: &[(&str, &str)],
        resources: Option<v1::LinuxContainerResources>,
    ) -> v1::PodSandboxConfig {
        let mut config = self.node.pod_config();
        config.annotations.extend(annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        config.linux.get_or_insert_default().resources = resources;
        config
    }

    /// What a shell line prints in such a pod.
    fn says(&self, pod: v1::PodSandboxConfig, template: Template) -> String {
        let pod = self.node.run_pod(RUNTIME, pod).expect("the pod runs");
        let container = pod.start(template).expect("the container runs");
        let status = container.wait().expect("it ends");
        let output = container.output().expect("it has a log");
        assert_eq!(status.exit_code, 0, "{output}");
        pod.remove().expect("the pod goes");
        output
    }

    /// Memory of the machine of such a pod, in MiB, as its kernel tells it.
    fn memory_mib(&self, pod: v1::PodSandboxConfig) -> u64 {
        let line = self.says(pod, Template::command(&["grep", "MemTotal", "/proc/meminfo"]));
        let kib: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
        kib / 1024
    }

    /// What the kubelet is told instead of getting such a pod; nothing stays behind.
    fn refusal(&self, pod: v1::PodSandboxConfig) -> String {
        LazyLock::force(&self.node);
        let before = Residue::now();
        let error = self.node.run_pod(RUNTIME, pod).map(drop).expect_err("refused");
        before.assert_nothing_new();
        error.to_string()
    }
}

fn operator() -> MutexGuard<'static, Operator> {
    static OPERATOR: LazyLock<Mutex<Operator>> = LazyLock::new(|| Mutex::new(Operator::new()));
    OPERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn memory(limit_mib: i64) -> Option<v1::LinuxContainerResources> {
    Some(v1::LinuxContainerResources { memory_limit_in_bytes: limit_mib << 20, ..Default::default() })
}

/// The kernel keeps some of a machine's memory for itself: a fixed part, and one for each page.
fn assert_about(seen_mib: u64, machine_mib: u64) {
    let kept = 24 + machine_mib / 32;
    assert!(
        (machine_mib - kept..=machine_mib).contains(&seen_mib),
        "{seen_mib} MiB seen in a machine of {machine_mib} MiB"
    );
}

#[test]
fn what_holds_is_shown_with_the_file_and_line_that_say_so() {
    needs!(Stage);
    let operator = operator();
    operator.writes("# ours\ndefault_vcpus = 2\nmax_vcpus = 4\n", "allowed_annotations = [\"io.kata-rs.vcpus\"]\n");
    let text = operator.command(&["env"]).success();
    let main = operator.main().display().to_string();
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).expect("it is shown").to_owned();
    assert!(line("default_vcpus").contains("2 vCPUs") && line("default_vcpus").ends_with(&format!("{main}:2")));
    assert!(line("allowed_annotations").ends_with("config.d/10-test.toml:1"), "{text}");
    assert!(line("default_memory_mib").contains("512 MiB") && line("default_memory_mib").ends_with("default"));

    let json: serde_json::Value = serde_json::from_str(&operator.command(&["env", "--json"]).success()).expect("JSON");
    let settings = json["settings"].as_array().expect("a list");
    assert_eq!(settings.len(), Key::ALL.len());
    assert_eq!((&settings[0]["value"], &settings[0]["source"]), (&"2".into(), &format!("{main}:2").into()));
    assert_eq!(json["files"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_broken_file_is_named_by_check_with_what_to_do() {
    needs!(Stage);
    let operator = operator();
    operator.writes("", "default_memory = 512\n");
    let checked = operator.command(&["check"]);
    assert_eq!(checked.code(), 1);
    let lines: Vec<_> = checked.stdout.lines().skip_while(|line| !line.starts_with("FAIL  configuration")).collect();
    assert!(lines[0].contains("config.d/10-test.toml:1: unknown key \"default_memory\""), "{lines:?}");
    assert!(lines[1].contains("-> correct"), "{lines:?}");
}

#[test]
fn with_a_broken_file_no_pod_starts_and_the_reason_is_told() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("\nmax_vcpus = \"many\"\n", "");
    let place = format!("{}:2", operator.main().display());
    let run = operator.command(&["run", &prefix::image("busybox").display().to_string(), "true"]);
    assert_eq!(run.code(), 125);
    assert!(run.stderr.contains(&place) && run.stderr.contains("max_vcpus takes"), "{}", run.stderr);
    let told = operator.refusal(operator.pod(&[], None));
    assert!(told.contains(&place) && told.contains("kata-rs check"), "{told}");
}

#[test]
fn a_pod_is_sized_by_its_limits_and_without_them_by_the_operator() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("default_memory_mib = 300\noverhead_memory_mib = 80\n", "");
    assert_about(operator.memory_mib(operator.pod(&[], None)), 300);
    assert_about(operator.memory_mib(operator.pod(&[], memory(384))), 384 + 6 + 80);
}

#[test]
fn containers_that_are_added_later_fit_in_together() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("", "");
    let pod = operator.node.run_pod(RUNTIME, operator.pod(&[], memory(3 * 96))).expect("the pod runs");
    // Each fills most of its limit and holds it until all three have.
    let filler = |number: usize| {
        Template::python("import time; held = b'x' * (72 << 20); print('full', flush=True); time.sleep(1000)")
            .named(&format!("c{number}"))
            .resources(|resources| resources.memory_limit_in_bytes = 96 << 20)
    };
    let containers: Vec<_> = (0..3).map(|number| pod.start(filler(number)).expect("it starts")).collect();
    for container in &containers {
        container.wait_for_output("full").expect("it fills its limit");
        assert_eq!(container.status().expect("known").state(), v1::ContainerState::ContainerRunning);
    }
    pod.remove().expect("the pod goes");
}

#[test]
fn the_levels_reach_kernel_agent_and_shim() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("console_level = 7\nagent_log_level = \"debug\"\nlog_level = \"debug\"\n", "");
    let words = operator.says(operator.pod(&[], None), Template::command(&["cat", "/proc/cmdline"]));
    for word in ["loglevel=7", "kata_rs.log=debug"] {
        assert!(words.split_whitespace().any(|other| other == word), "{word} is not in {words}");
    }
    let log = fs::read_to_string(operator.node.containerd.folder().join("containerd.log")).expect("there is a log");
    // At level 6 (info), so not printed by default, and a whole line.
    let mounted = "VFS: Mounted root (erofs filesystem) readonly";
    let printed = log.lines().any(|line| line.contains("level=debug") && line.contains(mounted));
    assert!(printed, "the guest's kernel is not in containerd's log");
}

#[test]
fn a_container_whose_limit_is_above_its_machine_runs_all_the_same() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("", "max_memory_mib = 256\n");
    let wide = Template::sh("echo ran").resources(|resources| resources.memory_limit_in_bytes = 1 << 30);
    assert_eq!(operator.says(operator.pod(&[], memory(1024)), wide), "ran\n");
    let log = fs::read_to_string(operator.node.containerd.folder().join("containerd.log")).expect("there is a log");
    for words in ["1104 MiB of memory would be wanted", "its memory limit of 1024 MiB"] {
        assert!(log.contains(words), "{words} is not in containerd's log");
    }
}

#[test]
fn no_annotation_of_ours_is_allowed_unless_the_operator_says_so() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("", "");
    let told = operator.refusal(operator.pod(&[("io.kata-rs.memory", "1Gi")], None));
    assert!(told.contains("io.kata-rs.memory is not allowed on this node"), "{told}");

    operator.writes("allowed_annotations = [\"io.kata-rs.memory\", \"io.kata-rs.console-level\"]\n", "");
    let wish = [("io.kata-rs.memory", "384Mi"), ("io.kata-rs.console-level", "5"), ("example.com/other", "x")];
    assert_about(operator.memory_mib(operator.pod(&wish, memory(64))), 384);
    let words = operator.says(operator.pod(&wish, None), Template::command(&["cat", "/proc/cmdline"]));
    assert!(words.split_whitespace().any(|word| word == "loglevel=5"), "{words}");
}

#[test]
fn an_annotation_that_is_unknown_or_malformed_is_refused_by_its_name() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let operator = operator();
    operator.writes("allowed_annotations = [\"io.kata-rs.vcpus\"]\n", "");
    for (name, value, words) in [
        ("io.kata-rs.kernel", "/tmp/vmlinux", "unknown annotation \"io.kata-rs.kernel\"; known are io.kata-rs.vcpus"),
        ("io.kata-rs.vcpus", "1 init=/bin/sh", "io.kata-rs.vcpus takes a whole number from 1 to"),
    ] {
        let told = operator.refusal(operator.pod(&[(name, value)], None));
        assert!(told.contains(words), "{told}");
    }
}

/// The rows of the page's tables, from the lists that the code has.
fn documented() -> Vec<String> {
    let key = |key: Key| {
        format!("| `{}` | {} | {} | {} | {} |", key.name(), key.unit(), key.range(), key.default(), key.meaning())
    };
    let annotation = |annotation: Annotation| {
        format!("| `{}` | {} | {} |", annotation.name(), annotation.range(), annotation.meaning())
    };
    Key::ALL.into_iter().map(key).chain(Annotation::ALL.into_iter().map(annotation)).collect()
}

#[test]
fn the_page_has_every_key_and_annotation_and_no_other() {
    let page = fs::read_to_string(prefix::workspace().join("docs/configuration.md")).expect("there");
    for row in documented() {
        assert!(page.contains(&row), "docs/configuration.md lacks the row\n{row}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, Key::ALL.len() + Annotation::ALL.len(), "a row too many");
}

#[test]
fn the_pages_example_is_a_configuration_that_holds() {
    needs!(Stage);
    let operator = operator();
    let page = fs::read_to_string(prefix::workspace().join("docs/configuration.md")).expect("there");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    operator.writes(example, "");
    let shown = operator.command(&["env"]).success();
    let values: HashMap<_, _> = shown.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(values["default_memory_mib"].contains("config.toml"), "{shown}");
}
