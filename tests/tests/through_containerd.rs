//! Containers through the real containerd, with `ctr`.
//!
//! One containerd serves all tests of this file, which run one after the other: counting what is left behind allows nothing beside it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    sync::{LazyLock, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tests::{Containerd, Residue, command, containerd::RUNTIME, needs, pids_of, pty::Session, requirement::emulated};

struct Host {
    containerd: Containerd,
    busybox: String,
    python: String,
}

fn host() -> MutexGuard<'static, Host> {
    static HOST: LazyLock<Mutex<Host>> = LazyLock::new(|| {
        let containerd = Containerd::start();
        let (busybox, python) = (containerd.import("busybox"), containerd.import("python"));
        Mutex::new(Host { containerd, busybox, python })
    });
    // A test that failed has poisoned nothing: each leaves its own containers.
    HOST.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Host {
    /// Runs a shell line in busybox and returns what it printed.
    fn sh(&self, line: &str) -> String {
        self.sh_with(&[], line)
    }

    fn sh_with(&self, flags: &[&str], line: &str) -> String {
        self.containerd.run_container(flags, &self.busybox, &["sh", "-c", line]).success()
    }
}

#[test]
fn a_container_has_a_kernel_of_its_own() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let inside = host().sh("uname -r");
    let outside = rustix::system::uname().release().to_string_lossy().into_owned();
    assert_ne!(inside.trim(), outside);
    assert!(inside.starts_with("6.12"), "{inside}");
}

#[test]
fn the_exit_code_is_the_commands() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    assert_eq!(host.containerd.run_container(&[], &host.busybox, &["sh", "-c", "exit 42"]).code(), 42);
    assert_eq!(host.containerd.run_container(&[], &host.busybox, &["true"]).code(), 0);
}

#[test]
fn standard_output_and_error_stay_apart() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let finished = host.containerd.run_container(&[], &host.busybox, &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_larger_real_image_runs() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let program = "import json,sys,os; print(json.dumps([sys.version_info[0], os.getpid(), 2**100]))";
    let printed = host.containerd.run_container(&[], &host.python, &["python3", "-c", program]).success();
    assert_eq!(printed, "[3, 1, 1267650600228229401496703205376]\n");
}

#[test]
fn a_missing_command_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let finished = host.containerd.run_container(&[], &host.busybox, &["no-such-command"]);
    assert_ne!(finished.code(), 0);
    assert!(finished.stderr.contains("no-such-command"), "{}", finished.stderr);
    before.assert_nothing_new();
}

/// `ctr` mounts no cgroup file system unless told.
const CGROUP: [&str; 2] = ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev"];

#[test]
fn the_memory_limit_is_a_cgroup_limit_and_is_enforced() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let limit = host.sh_with(&["--memory-limit", "33554432", CGROUP[0], CGROUP[1]], "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit.trim(), "33554432");
    let hog = "import sys\nkept = []\nfor n in range(90): kept.append(bytearray(b'x') * (1 << 20))\nsys.stdout.write('still here')";
    let finished =
        host.containerd.run_container(&["--memory-limit", "33554432"], &host.python, &["python3", "-c", hog]);
    assert_eq!((finished.code(), finished.stdout.as_str()), (137, ""), "{}", finished.stderr);
}

#[test]
fn the_cpu_limit_is_a_cgroup_limit() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let limit = host().sh_with(&["--cpus", "0.5", CGROUP[0], CGROUP[1]], "cat /sys/fs/cgroup/cpu.max");
    assert_eq!(limit.trim(), "50000 100000");
}

#[test]
fn a_container_sees_only_itself() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    assert_eq!(host.sh("echo $$").trim(), "1");
    assert_eq!(host.sh("ls /proc | grep -c '^[0-9]'").trim(), "3", "sh, ls and grep");
    assert_eq!(host.sh("ls -l /proc/self/fd | grep -c ' [012] -> '").trim(), "3");
    assert_eq!(host.sh("cat /proc/1/cgroup").trim(), "0::/");
}

#[test]
fn the_runtimes_defaults_confine_a_container() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let status = host.sh("cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("CapEff"), "00000000a80425fb");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(host.sh("ls -A /sys/firmware | wc -l").trim(), "0", "masked paths are empty");
    assert_eq!(host.sh("echo 1 > /proc/sys/vm/overcommit_memory || echo refused").trim(), "refused");
    let seccomp = host.sh_with(&["--seccomp"], "grep Seccomp: /proc/self/status");
    assert!(seccomp.trim().ends_with('2'), "{seccomp}");
}

#[test]
fn an_exec_can_be_another_user() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let id = host.containerd.fresh_id();
    let ctr = |words: &[&str]| host.containerd.run(words);
    ctr(&["run", "-d", "--runtime", RUNTIME, &host.busybox, &id, "sleep", "1000"]).success();
    let line = "id -u; id -g; touch /root/x 2>&1 | grep -c denied";
    let printed = ctr(&["task", "exec", "--exec-id", "one", "--user", "1000:1000", &id, "sh", "-c", line]);
    ctr(&["task", "rm", "--force", &id]);
    ctr(&["container", "rm", &id]).success();
    assert_eq!(printed.success().trim(), "1000\n1000\n1");
}

#[test]
fn a_folder_of_the_host_can_be_mounted() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let folder = tempfile::Builder::new().prefix("kata-rs-volume-").tempdir().expect("a folder");
    std::fs::write(folder.path().join("from-host"), "hello").expect("writable");
    let mount = |options: &str| format!("type=bind,src={},dst=/data,options=rbind:{options}", folder.path().display());
    assert_eq!(host.sh_with(&["--mount", &mount("rw")], "cat /data/from-host; echo back > /data/from-guest"), "hello");
    assert_eq!(std::fs::read_to_string(folder.path().join("from-guest")).expect("there"), "back\n");
    let refused = host.sh_with(&["--mount", &mount("ro")], "echo x > /data/x || echo refused");
    assert_eq!(refused.trim(), "refused");
    assert!(!folder.path().join("x").exists());
}

#[test]
fn a_task_in_the_background_takes_execs_and_signals() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    for image in [&host.busybox, &host.python] {
        let before = Residue::now();
        background(&host.containerd, image);
        before.assert_nothing_new();
    }
}

fn background(containerd: &Containerd, image: &str) {
    let id = containerd.fresh_id();
    let ctr = |words: &[&str]| containerd.run(words);
    let script = "trap 'exit 9' TERM; while :; do sleep 0.1; done";
    ctr(&["run", "-d", "--runtime", RUNTIME, image, &id, "sh", "-c", script]).success();
    assert!(ctr(&["task", "ls"]).success().contains("RUNNING"));
    let exit = ctr(&["task", "exec", "--exec-id", "one", &id, "sh", "-c", "echo inside; exit 7"]);
    assert_eq!((exit.code(), exit.stdout.as_str()), (7, "inside\n"), "{}", exit.stderr);
    let printed = ctr(&["task", "exec", "--exec-id", "two", &id, "cat", "/proc/1/cmdline"]).success();
    assert!(printed.starts_with("sh\0-c\0trap"), "{printed:?}");
    let missing = ctr(&["task", "exec", "--exec-id", "three", &id, "no-such-command"]);
    assert!(missing.code() != 0 && missing.stderr.contains("no-such-command"), "{missing:?}");
    assert!(ctr(&["task", "ps", &id]).success().lines().count() >= 2);
    assert!(ctr(&["task", "metrics", &id]).success().contains("memory"), "metrics");
    ctr(&["task", "kill", "--signal", "SIGTERM", &id]).success();
    assert_eq!(wait_until_stopped(containerd, &id), 9);
    ctr(&["container", "rm", &id]).success();
}

/// Deletes the task when it has stopped, and returns its exit code.
fn wait_until_stopped(containerd: &Containerd, id: &str) -> i32 {
    let start = std::time::Instant::now();
    loop {
        // `ctr task rm` refuses a running task. It tells the exit code of a stopped one in a warning, unless that is 0.
        let finished = containerd.run(["task", "rm", id]);
        if finished.code() == 0 {
            let code = finished.stderr.split("non-zero exit code ").nth(1);
            let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
            return code.map_or(0, |text| digits(text).parse().expect("a number"));
        }
        assert!(start.elapsed() < command::DEADLINE, "{id} does not stop: {}", finished.stderr);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn output_goes_to_the_program_or_file_that_ctr_names() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let folder = tempfile::Builder::new().prefix("kata-rs-logs-").tempdir().expect("a folder");
    let script = "#!/bin/sh\necho \"$CONTAINER_NAMESPACE/$CONTAINER_ID\" > $2/whose\nexec 5>&-\ncat <&3 > $2/out &\ncat <&4 > $2/err\nwait\n";
    let logger = folder.path().join("logger");
    fs::write(&logger, script).expect("written");
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).expect("set");
    let logged = |uri: &str| {
        let id = host.containerd.fresh_id();
        let words = ["sh", "-c", "echo said; echo complained >&2; exit 3"];
        let start = ["run", "-d", "--log-uri", uri, "--runtime", RUNTIME, &host.busybox, &id];
        host.containerd.run(start.into_iter().chain(words)).success();
        assert_eq!(wait_until_stopped(&host.containerd, &id), 3);
        host.containerd.run(["container", "rm", &id]).success();
        id
    };
    let dir = folder.path().display();
    let id = logged(&format!("binary://{dir}/logger?dir={dir}"));
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).expect("the delete has waited for it");
    assert_eq!((text("out").as_str(), text("err").as_str()), ("said\n", "complained\n"));
    assert_eq!(text("whose").trim(), format!("{}/{id}", host.containerd.namespace()));
    logged(&format!("file://{dir}/new/log"));
    let mut lines: Vec<_> = text("new/log").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["complained", "said"]);
}

#[test]
fn pause_stops_a_container_and_resume_lets_it_go_on() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let id = host.containerd.fresh_id();
    let ctr = |words: &[&str]| host.containerd.run(words);
    ctr(&["run", "-d", "--runtime", RUNTIME, &host.busybox, &id, "sleep", "1000"]).success();
    ctr(&["task", "pause", &id]).success();
    assert!(ctr(&["task", "ls"]).success().contains("PAUSED"));
    ctr(&["task", "resume", &id]).success();
    assert!(ctr(&["task", "ls"]).success().contains("RUNNING"));
    ctr(&["task", "kill", "--signal", "SIGKILL", &id]).success();
    assert_eq!(wait_until_stopped(&host.containerd, &id), 137);
    ctr(&["container", "rm", &id]).success();
}

#[test]
fn a_terminal_works_through_ctr() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("setsid"));
    let host = host();
    for image in [&host.busybox, &host.python] {
        let id = host.containerd.fresh_id();
        let words = host.containerd.container_arguments(RUNTIME, &["-t"], image, &id, &["sh"]);
        let mut session = Session::start(&host.containerd.ctr(words), 100, 30);
        session.expect("#");
        session.type_in("tty; stty size\r");
        session.expect("/dev/pts/0");
        session.expect("30 100");
        session.type_in("exit 3\r");
        assert_eq!(session.wait().code(), Some(3));
    }
}

#[test]
fn many_runs_one_after_the_other_leave_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let count = if emulated() { 3 } else { 200 };
    for n in 0..count {
        let finished = host.containerd.run_container(&[], &host.busybox, &["echo", "hello"]);
        assert_eq!((finished.code(), finished.stdout.as_str()), (0, "hello\n"), "run {n}: {}", finished.stderr);
    }
    before.assert_nothing_new();
}

#[test]
fn ten_runs_at_once_leave_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let (containerd, image) = (&host.containerd, host.busybox.as_str());
    let count = if emulated() { 2 } else { 10 };
    thread::scope(|scope| {
        let runs: Vec<_> = (0..count)
            .map(|n| {
                scope.spawn(move || (n, containerd.run_container(&[], image, &["sh", "-c", &format!("exit {n}")])))
            })
            .collect();
        for run in runs {
            let (n, finished) = run.join().expect("no panic");
            assert_eq!(finished.code(), n, "{}", finished.stderr);
        }
    });
    before.assert_nothing_new();
}

/// A stream of bytes that is not the same anywhere: byte n is a hash of n.
fn pattern(offset: u64, buffer: &mut [u8]) {
    for (n, byte) in (offset..).zip(buffer) {
        *byte = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

#[test]
fn a_gigabyte_of_output_arrives_whole_at_a_slow_reader() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let total: u64 = if emulated() { 8 << 20 } else { 1 << 30 };
    let program = format!(
        "import sys\nimport array\nblock = bytes((n * 0x9e3779b97f4a7c15 & 0xffffffffffffffff) >> 56 for n in range(65536))\n\
         for i in range({}):\n    sys.stdout.buffer.write(i.to_bytes(8, 'little') + block[8:])",
        total >> 16
    );
    let id = host.containerd.fresh_id();
    let words = host.containerd.container_arguments(RUNTIME, &[], &host.python, &id, &["python3", "-c", &program]);
    let mut child = host.containerd.ctr(words).stdout(Stdio::piped()).spawn().expect("ctr starts");
    let mut stdout = child.stdout.take().expect("asked for");
    let mut expected = vec![0; 65536];
    pattern(0, &mut expected);
    let mut block = vec![0; 65536];
    let mut peak = 0;
    for n in 0..total >> 16 {
        if n == 16 {
            // Not a wait for an event: this reader is slow, and the shim has to bear it.
            thread::sleep(Duration::from_secs(2));
            peak = shim_memory_kib(&id);
        }
        stdout.read_exact(&mut block).expect("all of it arrives");
        assert_eq!(block[..8], n.to_le_bytes(), "block {n} is in its place");
        assert!(block[8..] == expected[8..], "block {n} is whole");
    }
    assert_eq!(stdout.read(&mut block).expect("readable"), 0, "and nothing more");
    assert!(command::wait_for(&mut child, command::DEADLINE).expect("ends").success());
    assert!(peak > 0 && peak < 32 << 10, "the shim held {peak} KiB while its reader slept");
}

#[test]
fn a_quarter_gigabyte_of_input_arrives_whole() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("sha256sum"));
    let host = host();
    let total: usize = if emulated() { 4 << 20 } else { 256 << 20 };
    let id = host.containerd.fresh_id();
    let words = host.containerd.container_arguments(RUNTIME, &[], &host.python, &id, &["sha256sum"]);
    let mut child =
        host.containerd.ctr(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ctr starts");
    let mut reference = std::process::Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("installed");
    let (mut stdin, mut beside) = (child.stdin.take().expect("asked for"), reference.stdin.take().expect("asked for"));
    let mut block = vec![0; 1 << 20];
    for offset in (0..total).step_by(block.len()) {
        pattern(offset as u64, &mut block);
        stdin.write_all(&block).expect("the container reads");
        beside.write_all(&block).expect("sha256sum reads");
    }
    drop((stdin, beside));
    let text =
        |child: std::process::Child| String::from_utf8(child.wait_with_output().expect("ends").stdout).expect("text");
    assert_eq!(text(child), text(reference));
}

/// Resident memory of the shim that serves this container.
fn shim_memory_kib(id: &str) -> u64 {
    pids_of("containerd-shim", id).iter().map(|pid| status_kib(*pid, "VmRSS:")).max().unwrap_or(0)
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Starts a container that sleeps, kills one of its host processes, and checks what containerd says and what is left.
fn killed(name: &str) {
    let host = host();
    let before = Residue::now();
    let id = host.containerd.fresh_id();
    host.containerd.run(["run", "-d", "--runtime", RUNTIME, &host.busybox, &id, "sleep", "1000"]).success();
    let pids = pids_of(name, &id);
    assert_eq!(pids.len(), 1, "one {name}");
    command::signal(pids[0], Signal::KILL);
    assert_eq!(wait_until_stopped(&host.containerd, &id), 137);
    host.containerd.run(["container", "rm", &id]).success();
    before.assert_nothing_new();
}

#[test]
fn a_killed_vmm_is_an_exit_with_137_and_leaves_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    killed("kata-rs-vmm");
}

#[test]
fn a_killed_shim_is_an_exit_with_137_and_leaves_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let id = host.containerd.fresh_id();
    let words =
        host.containerd.container_arguments(RUNTIME, &[], &host.busybox, &id, &["sh", "-c", "echo up; sleep 1000"]);
    let mut events = host.containerd.ctr(["events"]).stdout(Stdio::piped()).spawn().expect("ctr starts");
    let mut child =
        host.containerd.ctr(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ctr starts");
    let mut up = [0; 3];
    child.stdout.as_mut().expect("asked for").read_exact(&mut up).expect("the container speaks");
    let pids = pids_of("containerd-shim", &id);
    assert_eq!(pids.len(), 1, "one shim");
    command::signal(pids[0], Signal::KILL);
    // Whoever waits through the shim sees its connection break (`ctr run` does, with runc, too): the event tells the status.
    command::wait_for(&mut child, command::DEADLINE).expect("ctr ends");
    let mut lines = BufReader::new(events.stdout.take().expect("asked for")).lines().map_while(Result::ok);
    let exit = lines.find(|line| line.contains("/tasks/exit") && line.contains(&id)).expect("an exit event");
    assert!(exit.contains(r#""exit_status":137"#), "{exit}");
    events.kill().and_then(|()| events.wait()).expect("ended");
    host.containerd.run(["container", "rm", &id]);
    before.assert_nothing_new();
}

#[test]
fn a_killed_file_server_leaves_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let id = host.containerd.fresh_id();
    host.containerd.run(["run", "-d", "--runtime", RUNTIME, &host.busybox, &id, "sleep", "1000"]).success();
    pids_of("virtiofsd", &id).into_iter().for_each(|pid| command::signal(pid, Signal::KILL));
    assert_eq!(wait_until_stopped(&host.containerd, &id), 137);
    host.containerd.run(["container", "rm", &id]).success();
    before.assert_nothing_new();
}

#[test]
fn killing_at_any_moment_of_a_run_leaves_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let moments: Vec<u64> = if emulated() { vec![2000] } else { (0..10).map(|n| n * 60).collect() };
    for name in ["kata-rs-vmm", "containerd-shim", "virtiofsd"] {
        for moment in &moments {
            let id = host.containerd.fresh_id();
            let words = host.containerd.container_arguments(RUNTIME, &[], &host.busybox, &id, &["sleep", "1"]);
            let mut child =
                host.containerd.ctr(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ctr starts");
            // Not a wait for an event: any moment is what the test is about.
            thread::sleep(Duration::from_millis(*moment));
            pids_of(name, &id).into_iter().for_each(|pid| command::signal(pid, Signal::KILL));
            command::wait_for(&mut child, command::DEADLINE)
                .unwrap_or_else(|| panic!("ctr hangs: {name} killed after {moment} ms"));
            host.containerd.run(["task", "rm", "--force", &id]);
            host.containerd.run(["container", "rm", &id]);
        }
    }
    before.assert_nothing_new();
}

#[test]
fn a_workload_that_kills_its_guest_is_an_exit_with_137() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    // The guest's kernel panics when it is out of memory: the workload sees to both.
    let crash = "echo 2 > /proc/sys/vm/panic_on_oom && tail /dev/zero; sleep 100";
    let finished = host.containerd.run_container(&["--privileged"], &host.busybox, &["sh", "-c", crash]);
    assert_eq!(finished.code(), 137, "{}", finished.stderr);
    before.assert_nothing_new();
}
