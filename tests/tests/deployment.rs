//! The installer: versions side by side, and an upgrade under running pods.
//!
//! What is installed is the real build. A second version is the same build with one file more, which gives it another digest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tests::{Containerd, Finished, command, containerd::RUNTIME, needs, prefix, run};

/// Longest that the processes of a pod take to be gone, on a host that is busy.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
const PREFIX: &str = "/opt/kata-rs";

/// Two machines at a time are enough for the host.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A root of its own with an installation in it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("kata-rs-root-").tempdir().expect("a folder") }
    }

    fn top(&self) -> PathBuf {
        self.folder.path().join(PREFIX.trim_start_matches('/'))
    }

    fn version(&self, name: &str) -> PathBuf {
        self.top().join("versions").join(name)
    }

    fn current(&self) -> String {
        let link = fs::read_link(self.top().join("current")).expect("a link");
        link.strip_prefix("versions").expect("relative, so that it holds below any root").display().to_string()
    }

    fn installer<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Finished {
        let mut installer = Command::new(prefix::workspace().join("deploy/install.sh"));
        run(installer.args(words).arg("--root").arg(self.folder.path()).stdin(Stdio::null()))
    }

    /// Installs a build and returns the version's name.
    fn install(&self, from: &Path) -> String {
        let finished = self.installer(["install".as_ref(), "--from".as_ref(), from.as_os_str()]);
        finished.success().trim().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.top().join("bin/kata-rs"));
        // The installation is found from the binary, as on a cluster.
        command.env_remove("KATA_RS_PREFIX").stdin(Stdio::null());
        command
    }

    /// A container that sleeps, by the command, once it runs.
    fn sleeper(&self) -> Sleeper {
        let mut child = self
            .command()
            .arg("run")
            .arg(prefix::image("busybox"))
            .args(["sh", "-c", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("installed");
        let mut line = String::new();
        let out = child.stdout.take().expect("asked for");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("read");
        assert_eq!(line, "up\n");
        Sleeper { child }
    }

    /// Programs of a version that run: pid and name.
    fn processes(&self, version: &str) -> Vec<(u32, String)> {
        let folder = self.version(version).canonicalize().expect("installed");
        let of = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let exe = fs::read_link(entry.path().join("exe")).ok()?;
            let name = exe.strip_prefix(&folder).ok()?.file_name()?.to_string_lossy().into_owned();
            Some((pid, name))
        };
        fs::read_dir("/proc").expect("mounted").flatten().filter_map(of).collect()
    }

    fn wait_until_idle(&self, version: &str) {
        let begun = Instant::now();
        while !self.processes(version).is_empty() {
            assert!(begun.elapsed() < SETTLES_WITHIN, "{:?}", self.processes(version));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Sleeper {
    child: Child,
}

impl Sleeper {
    fn end(mut self) {
        command::signal(self.child.id(), rustix::process::Signal::TERM);
        // A shell that is PID 1 of its container takes no SIGTERM, and sleep has no handler either: the second one ends the command.
        if command::wait_for(&mut self.child, Duration::from_secs(3)).is_none() {
            self.child.kill().expect("it runs");
            self.child.wait().expect("it ended");
        }
    }
}

/// The same build with a file more.
fn second_build() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("kata-rs-build-").tempdir().expect("a folder");
    run(Command::new("cp").arg("-a").arg(prefix::path().join(".")).arg(folder.path())).success();
    fs::write(folder.path().join("share/kata-rs/build"), "two\n").expect("written");
    folder
}

#[test]
fn an_installation_is_a_folder_by_version_and_links_to_it() {
    needs!(Root, Stage);
    let root = Root::new();
    let version = root.install(&prefix::path());
    assert!(version.starts_with(concat!(env!("CARGO_PKG_VERSION"), "-")), "{version}");
    assert_eq!(root.current(), version);
    let shim = root.top().join("bin/containerd-shim-kata-rs-v2");
    let resolved = shim.canonicalize().expect("it leads somewhere");
    assert!(resolved.starts_with(root.version(&version).canonicalize().expect("installed")), "{}", resolved.display());
    let shown = run(root.command().arg("env")).success();
    assert!(shown.contains(&format!("versions/{version}\n")), "{shown}");
}

#[test]
fn installing_the_same_build_again_changes_nothing() {
    needs!(Root, Stage);
    let root = Root::new();
    let version = root.install(&prefix::path());
    let written = || fs::metadata(root.version(&version)).and_then(|data| data.modified()).expect("there");
    let before = written();
    assert_eq!(root.install(&prefix::path()), version);
    assert_eq!(written(), before);
    assert_eq!(fs::read_dir(root.top().join("versions")).expect("there").count(), 1);
}

#[test]
fn another_build_becomes_current_and_the_first_can_be_gone_back_to() {
    needs!(Root, Stage);
    let root = Root::new();
    let first = root.install(&prefix::path());
    let build = second_build();
    let second = root.install(build.path());
    assert_ne!(first, second);
    assert_eq!(root.current(), second);
    root.installer(["use", &first]).success();
    assert_eq!(root.current(), first);
    let list = root.installer(["list"]).success();
    assert!(list.contains(&format!("* {first}")) && list.contains(&format!("  {second}")), "{list}");
    let refused = root.installer(["remove", &first]);
    assert!(refused.code() == 1 && refused.stderr.contains("is current"), "{}", refused.stderr);
    let pruned = root.installer(["prune"]).success();
    assert_eq!(pruned.trim(), format!("removed {second}"));
}

/// As a build is brought to a node: the stage with `deploy` in it.
#[test]
fn the_installer_that_lies_in_a_build_installs_that_build() {
    needs!(Root, Stage);
    let (root, build) = (Root::new(), second_build());
    let deploy = build.path().join("share/kata-rs/deploy");
    run(Command::new("cp").arg("-r").arg(prefix::workspace().join("deploy")).arg(&deploy)).success();
    let own = |script: PathBuf, word: &str| {
        run(Command::new(script).arg(word).arg("--root").arg(root.folder.path()).stdin(Stdio::null())).success()
    };
    let version = own(deploy.join("install.sh"), "install").trim().to_owned();
    assert!(root.version(&version).join("share/kata-rs/build").is_file());
    let installed = root.top().join("current/share/kata-rs/deploy/install.sh");
    assert_eq!(own(installed.clone(), "install").trim(), version, "again from where it is now");
    own(installed, "uninstall");
    assert!(!root.top().exists());
}

#[test]
fn a_build_that_is_not_complete_is_refused_and_nothing_is_installed() {
    needs!(Root, Stage);
    let root = Root::new();
    let build = second_build();
    fs::remove_file(build.path().join("libexec/kata-rs/virtiofsd")).expect("there");
    let refused = root.installer(["install".as_ref(), "--from".as_ref(), build.path().as_os_str()]);
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("libexec/kata-rs/virtiofsd is missing"), "{}", refused.stderr);
    assert!(!root.top().exists());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    needs!(Root, Stage);
    let root = Root::new();
    root.install(&prefix::path());
    for name in ["../../..", "", ".", "nothing"] {
        for command in ["use", "remove"] {
            let refused = root.installer([command, name]);
            assert_eq!(refused.code(), 1, "{command} {name:?}: {}", refused.stderr);
        }
    }
    assert_eq!(root.installer(["install", "--prefix", "relative"]).code(), 1);
    assert_eq!(root.installer(["instal"]).code(), 1);
}

#[test]
fn a_version_in_use_stays_and_one_that_is_not_goes() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let root = Root::new();
    let first = root.install(&prefix::path());
    let sleeper = root.sleeper();
    let pid = sleeper.child.id().to_string();
    let build = second_build();
    let second = root.install(build.path());
    for words in [vec!["remove", &first], vec!["uninstall"]] {
        let refused = root.installer(&words);
        assert_eq!(refused.code(), 1, "{words:?}");
        assert!(refused.stderr.contains("in use") && refused.stderr.contains(&pid), "{}", refused.stderr);
    }
    let running = run(root.command().arg("run").arg(prefix::image("busybox")).arg("true"));
    assert_eq!(running.code(), 0, "{}", running.stderr);
    assert_eq!(root.current(), second);
    sleeper.end();
    root.wait_until_idle(&first);
    root.installer(["remove", &first]).success();
    assert!(!root.version(&first).exists());
    root.installer(["uninstall"]).success();
    assert!(!root.top().exists());
}

/// A containerd that finds the shim by the installation's links, and nothing of ours otherwise.
fn containerd_on(root: &Root) -> Containerd {
    let path = format!("{}:{}", root.top().join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let state = root.folder.path().join("state");
    let state = state.to_string_lossy();
    Containerd::start_with(&[("PATH", &path), ("KATA_RS_PREFIX", ""), ("KATA_RS_STATE_DIR", &state)])
}

fn start_sleeping(containerd: &Containerd, image: &str) -> String {
    let id = containerd.fresh_id();
    containerd.run(["run", "-d", "--runtime", RUNTIME, image, &id, "sleep", "1000000"]).success();
    id
}

#[test]
fn an_upgrade_leaves_a_running_container_alone() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let root = Root::new();
    let first = root.install(&prefix::path());
    let containerd = containerd_on(&root);
    let image = containerd.import("busybox");
    let old = start_sleeping(&containerd, &image);
    let mut of_first = root.processes(&first);
    assert!(of_first.iter().any(|(_, name)| name == "kata-rs-vmm"), "{of_first:?}");

    let build = second_build();
    let second = root.install(build.path());
    let new = start_sleeping(&containerd, &image);
    let mut still = root.processes(&first);
    of_first.sort();
    still.sort();
    assert_eq!(still, of_first, "the old pod has the processes it had");
    assert!(root.processes(&second).iter().any(|(_, name)| name == "kata-rs-vmm"));
    let said = containerd.run(["task", "exec", "--exec-id", "e1", &old, "echo", "still", "here"]).success();
    assert_eq!(said, "still here\n");
    assert!(root.installer(["remove", &first]).stderr.contains("in use"));

    containerd.run(["task", "kill", "--signal", "KILL", &old]).success();
    containerd.run(["task", "rm", "--force", &old]);
    containerd.run(["container", "rm", &old]).success();
    root.wait_until_idle(&first);
    root.installer(["remove", &first]).success();
    let said = containerd.run(["task", "exec", "--exec-id", "e2", &new, "echo", "here"]).success();
    assert_eq!(said, "here\n");
    containerd.run(["task", "rm", "--force", &new]);
    containerd.run(["container", "rm", &new]).success();
    root.wait_until_idle(&second);
}

#[test]
fn what_a_killed_shim_of_the_old_version_left_the_new_version_cleans_up() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let root = Root::new();
    let first = root.install(&prefix::path());
    let containerd = containerd_on(&root);
    let image = containerd.import("busybox");
    let id = start_sleeping(&containerd, &image);
    let build = second_build();
    root.install(build.path());
    let (shim, _) = root
        .processes(&first)
        .into_iter()
        .find(|(_, name)| name == "containerd-shim-kata-rs-v2")
        .expect("the pod has a shim");
    command::signal(shim, rustix::process::Signal::KILL);
    root.wait_until_idle(&first);
    containerd.run(["task", "rm", "--force", &id]);
    containerd.run(["container", "rm", &id]).success();
    let state = root.folder.path().join("state").join(containerd.namespace());
    let begun = Instant::now();
    while state.join(&id).exists() {
        assert!(begun.elapsed() < SETTLES_WITHIN, "the pod's record is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What containerd makes of a main file and drop-ins.
fn containerd_dump(main: &str, drop_in: Option<&str>) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, imported) = (folder.path().join("config.toml"), folder.path().join("kata-rs.toml"));
    let mut text = String::from("version = 2\n");
    if let Some(drop_in) = drop_in {
        fs::write(&imported, drop_in).expect("written");
        text.push_str(&format!("imports = [{:?}]\n", imported.display().to_string()));
    }
    text.push_str(main);
    fs::write(&path, text).expect("written");
    run(Command::new("containerd").arg("--config").arg(&path).args(["config", "dump"])).success()
}

fn deploy_file(name: &str) -> String {
    fs::read_to_string(prefix::workspace().join("deploy").join(name)).expect("there")
}

#[test]
fn containerd_takes_the_runtime_from_the_file_for_its_version() {
    needs!(Program("containerd"));
    let dump = containerd_dump("", Some(&deploy_file("containerd-1.toml")));
    let runtime = dump.split("containerd.runtimes.kata-rs]").nth(1).expect("containerd knows the runtime");
    for line in [
        "runtime_type = \"io.containerd.kata-rs.v2\"",
        "privileged_without_host_devices = true",
        "pod_annotations = [\"io.kata-rs.*\"]",
    ] {
        assert!(runtime.contains(line), "{line} is not in {runtime}");
    }
}

/// The reason for what containerd-1.toml says about drop-ins. When this fails, containerd merges and the advice can go.
#[test]
fn the_containerd_of_today_lets_a_drop_in_replace_the_whole_of_cri() {
    needs!(Program("containerd"));
    let cri = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"example/pause:1\"\n";
    let table = deploy_file("containerd-1.toml").replace("version = 2\n", "");
    let pasted = containerd_dump(&format!("{cri}{table}"), None);
    assert!(pasted.contains("example/pause:1") && pasted.contains("runtimes.kata-rs]"));
    let version = run(Command::new("containerd").arg("--version")).success();
    if version.contains(" 1.") {
        assert!(!containerd_dump(cri, Some(&deploy_file("containerd-1.toml"))).contains("example/pause:1"));
    }
}

/// What the overhead has beside a pod that does nothing, for more containers and their files.
const RESERVE_MIB: u64 = 16;

/// Memory that the RuntimeClass has the scheduler count for a pod, in MiB.
fn pod_fixed_mib() -> u64 {
    let text = deploy_file("runtimeclass.yaml");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("memory: ")).expect("it says");
    line.trim_matches('"').strip_suffix("Mi").and_then(|mib| mib.parse().ok()).expect("in Mi")
}

/// Proportional set size of a process with all that it maps, the guest's memory too, in KiB.
fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn the_overhead_of_the_runtime_class_covers_what_a_pod_costs() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let root = Root::new();
    let version = root.install(&prefix::path());
    let containerd = containerd_on(&root);
    let image = containerd.import("busybox");
    let id = start_sleeping(&containerd, &image);
    let processes = root.processes(&version);
    let mib = processes.iter().map(|(pid, _)| pss_kib(*pid)).sum::<u64>() / 1024;
    containerd.run(["task", "rm", "--force", &id]);
    containerd.run(["container", "rm", &id]).success();
    root.wait_until_idle(&version);
    println!("a pod with one sleeping container costs {mib} MiB: {processes:?}");
    assert!(mib > 5, "the guest's memory was not counted: {processes:?}");
    let counted = pod_fixed_mib();
    assert!(mib + RESERVE_MIB <= counted, "{mib} MiB of {counted} MiB are used by a pod that does nothing");
}
