//! `kata-rs run` and `kata-rs check`, without containerd or any daemon.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use tests::{Finished, Residue, command, needs, prefix, pty::Session, rootfs, run};

/// Counting what is left behind allows nothing beside it.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn kata_rs() -> Command {
    let mut command = Command::new(prefix::bin("kata-rs"));
    command.stdin(Stdio::null());
    command
}

fn run_in(flags: &[&str], image: &Path, words: &[&str]) -> Finished {
    run(kata_rs().arg("run").args(flags).arg(image).args(words))
}

fn sh(flags: &[&str], line: &str) -> Finished {
    run_in(flags, &prefix::image("busybox"), &["sh", "-c", line])
}

/// The command with a shell in its container that has said `ready`.
fn ready(line: &str) -> Child {
    let mut command = kata_rs();
    command.arg("run").arg(prefix::image("busybox")).args(["sh", "-c", line]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut word = String::new();
    BufReader::new(child.stdout.take().expect("asked for")).read_line(&mut word).expect("a line");
    assert_eq!(word, "ready\n");
    child
}

#[test]
fn an_archive_runs_and_its_exit_code_comes_through() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let before = Residue::now();
    let finished = sh(&[], "uname -r; exit 42");
    assert_eq!(finished.code(), 42, "{}", finished.stderr);
    assert!(finished.stdout.starts_with("6.12"), "{}", finished.stdout);
    before.assert_nothing_new();
}

// A guest kernel that finds the processor's XSAVE broken goes on without it. On software KVM programs see the processor itself, use its AVX
// registers, and lose them. (On hardware KVM they are told what the kernel does.)
#[test]
fn the_guests_kernel_saves_the_registers_that_programs_use() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let of_host = fs::read_to_string("/proc/cpuinfo").expect("readable");
    let of_guest = sh(&[], "cat /proc/cpuinfo").success();
    let has = |text: &str, flag: &str| text.split_whitespace().any(|word| word == flag);
    for flag in ["fxsr", "xsave", "avx", "avx2", "avx512f"].into_iter().filter(|flag| has(&of_host, flag)) {
        assert!(has(&of_guest, flag), "the guest's kernel does not use {flag}, which programs find");
    }
}

#[test]
fn a_machine_outlives_the_threads_that_made_it() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    // A thread of the launcher that has nothing to do ends after ten seconds.
    assert_eq!(sh(&[], "sleep 12; echo alive").success(), "alive\n");
}

#[test]
fn flags_reach_the_container() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let finished = sh(
        &["-e", "COLOUR=green", "-w", "/tmp", "-u", "1000:1000", "--hostname", "apple"],
        "echo $COLOUR; pwd; id -u; id -g; hostname",
    );
    assert_eq!(finished.success(), "green\n/tmp\n1000\n1000\napple\n");
}

#[test]
fn limits_are_the_containers_cgroup() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let finished = sh(&["--memory", "96m", "--cpus", "0.5"], "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max");
    assert_eq!(finished.success(), format!("{}\n50000 100000\n", 96 << 20));
}

#[test]
fn two_cpus_are_two_vcpus_where_the_host_can() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let software = run(kata_rs().arg("check")).stdout.contains("PVM");
    let expected = if software { "1" } else { "2" };
    assert_eq!(sh(&["--cpus", "2"], "nproc").success().trim(), expected);
}

#[test]
fn a_volume_is_shared_both_ways_and_read_only_means_it() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let folder = tempfile::Builder::new().prefix("kata-rs-volume-").tempdir().expect("a folder");
    fs::write(folder.path().join("in"), "hello").expect("writable");
    let volume = |suffix: &str| format!("{}:/data{suffix}", folder.path().display());
    let printed = sh(&["-v", &volume("")], "cat /data/in; echo back > /data/out").success();
    assert_eq!(
        (printed.as_str(), fs::read_to_string(folder.path().join("out")).expect("there").as_str()),
        ("hello", "back\n")
    );
    assert_ne!(sh(&["-v", &volume(":ro")], "echo x > /data/out").code(), 0);
    assert_eq!(fs::read_to_string(folder.path().join("out")).expect("there"), "back\n");
}

#[test]
fn an_image_is_not_changed_by_a_run() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    sh(&[], "rm /bin/ls; echo x > /etc/passwd").success();
    assert!(sh(&[], "ls /bin/ls; grep root /etc/passwd").success().contains("/bin/ls\nroot:"));
}

#[test]
fn a_root_filesystem_folder_and_a_layout_folder_run_too() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let layout = tempfile::Builder::new().prefix("kata-rs-layout-").tempdir().expect("a folder");
    rootfs::unpack_layout(&prefix::image("busybox"), layout.path()).expect("unpacked");
    assert_eq!(run_in(&[], layout.path(), &["echo", "layout"]).success(), "layout\n");
    let folder = tempfile::Builder::new().prefix("kata-rs-rootfs-").tempdir().expect("a folder");
    rootfs::unpack(&prefix::image("busybox"), folder.path()).expect("unpacked");
    assert_eq!(run_in(&[], folder.path(), &["sh", "-c", "echo folder; touch /mark"]).success(), "folder\n");
    assert!(!folder.path().join("mark").exists(), "the folder is not written to");
}

#[test]
fn standard_input_reaches_the_container() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let mut child = kata_rs()
        .args(["run", "-i"])
        .arg(prefix::image("busybox"))
        .args(["sh", "-c", "cat | tr a-z A-Z"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("asked for"), b"hello\n").expect("taken");
    assert_eq!(child.wait_with_output().expect("ends").stdout, b"HELLO\n");
}

#[test]
fn a_shell_at_a_terminal_has_job_control_resize_and_ctrl_c() {
    needs!(Kvm, Root, Stage, Program("setsid"));
    let _alone = alone();
    let before = Residue::now();
    let mut command = kata_rs();
    command.args(["run", "-it"]).arg(prefix::image("busybox")).arg("sh");
    let mut session = Session::start(&command, 90, 25);
    session.expect("#");
    session.type_in("stty size\r");
    session.expect("25 90");
    session.resize(120, 40);
    session.type_in("stty size\r");
    session.expect("40 120");
    // What is typed is echoed: only what the shell makes of it tells that it has begun.
    session.type_in("echo be''gun; sleep 1000\r");
    session.expect("begun\r\n");
    session.type_in("\x03");
    session.expect("#");
    session.type_in("echo after=$?\r");
    session.expect("after=130");
    session.type_in("sleep 1000 &\r");
    session.expect("#");
    session.type_in("jobs; kill %1\r");
    session.expect("Running");
    session.type_in("exit 5\r");
    assert_eq!(session.wait().code(), Some(5));
    before.assert_nothing_new();
}

#[test]
fn ctrl_c_without_a_terminal_ends_the_container() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let before = Residue::now();
    let mut child = ready("trap 'exit 33' INT; echo ready; while :; do sleep 0.1; done");
    command::signal(child.id(), rustix::process::Signal::INT);
    assert_eq!(command::wait_for(&mut child, command::DEADLINE).expect("ends").code(), Some(33));
    before.assert_nothing_new();
}

#[test]
fn twenty_pods_started_at_once_all_run() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let before = Residue::now();
    let image = prefix::image("busybox");
    std::thread::scope(|scope| {
        let pods: Vec<_> = (0..20)
            .map(|number| {
                let (image, words) = (&image, format!("echo {number}"));
                scope.spawn(move || run_in(&[], image, &["sh", "-c", &words]).success())
            })
            .collect();
        for (number, pod) in pods.into_iter().enumerate() {
            assert_eq!(pod.join().expect("it runs, however long the others take"), format!("{number}\n"));
        }
    });
    before.assert_nothing_new();
}

#[test]
fn a_killed_command_leaves_nothing_after_the_next_one() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let before = Residue::now();
    let mut child = ready("echo ready; sleep 1000");
    child.kill().expect("killed");
    child.wait().expect("reaped");
    sh(&[], "true").success();
    before.assert_nothing_new();
}

#[test]
fn timing_shows_where_the_time_went() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let finished = sh(&["--timing"], "true");
    for moment in ["command starts", "vmm start", "agent call", "container started", "all is gone"] {
        assert!(finished.stderr.contains(moment), "{moment} is not in\n{}", finished.stderr);
    }
}

#[test]
fn the_host_of_the_tests_is_ready() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let finished = run(kata_rs().arg("check"));
    assert_eq!(finished.code(), 0, "{}", finished.stdout);
    assert!(finished.stdout.contains("this host is ready"), "{}", finished.stdout);
}

#[test]
fn an_image_that_is_none_is_named() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let before = Residue::now();
    let noise = tempfile::Builder::new().prefix("kata-rs-noise-").tempfile().expect("a file");
    fs::write(noise.path(), vec![0x5a; 8192]).expect("written");
    let finished = run_in(&[], noise.path(), &["true"]);
    assert_eq!(finished.code(), 125);
    assert!(finished.stderr.contains("not an OCI image"), "{}", finished.stderr);
    let finished = run_in(&[], Path::new("/no/such/image"), &["true"]);
    assert!(finished.code() == 125 && finished.stderr.contains("/no/such/image"), "{}", finished.stderr);
    drop(noise);
    before.assert_nothing_new();
}

#[test]
fn a_missing_command_exits_with_127() {
    needs!(Kvm, Root, Stage);
    let _alone = alone();
    let finished = run_in(&[], &prefix::image("busybox"), &["no-such-command"]);
    assert_eq!(finished.code(), 127, "{}", finished.stderr);
    assert!(finished.stderr.contains("no-such-command"), "{}", finished.stderr);
    let finished = run_in(&[], &prefix::image("busybox"), &["/etc/passwd"]);
    assert_eq!(finished.code(), 126, "{}", finished.stderr);
}
