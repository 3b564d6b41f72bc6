//! The emulated machine itself: what a command finds there and what comes back. Needs `make machine`; a machine that
//! is not there is a failure in CI and a skip elsewhere.
#![allow(clippy::unwrap_used, reason = "a test stops at its first surprise")]
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn machine() -> Option<PathBuf> {
    let folder = std::env::var_os("KATA_RS_MACHINE").map(PathBuf::from).filter(|path| path.join("vmlinuz").exists());
    if folder.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no machine in $KATA_RS_MACHINE; build it: make machine");
        eprintln!("skipped: no machine in $KATA_RS_MACHINE; build it: make machine");
    }
    folder
}

fn run(machine: &PathBuf, options: &[&str], command: &[&str]) -> Output {
    builder(machine, options, command).output().unwrap()
}

fn builder(machine: &PathBuf, options: &[&str], command: &[&str]) -> Command {
    let mut builder = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"));
    builder.args(["emulated-machine", "run", "--memory", "1024", "--dir"]).arg(machine);
    builder.args(options).arg("--").args(command);
    builder
}

#[test]
fn a_command_finds_kvm_and_containerd_and_its_output_and_status_come_back() {
    let Some(machine) = machine() else { return };
    let share = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("question"), "it's 6 * 7").unwrap();
    let script = "test -c /dev/kvm && nproc && containerd --version && cat /share/question >/out/answer; exit $CODE";
    let (share, folder) = (share.path().to_str().unwrap(), out.path().to_str().unwrap());
    let options = ["--share", share, "--out", folder, "--env", "CODE=42", "--cpus", "2"];
    let output = run(&machine, &options, &["sh", "-c", script]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(42), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("2\n") && text.contains("containerd"), "{text}");
    assert_eq!(std::fs::read_to_string(out.path().join("answer")).unwrap(), "it's 6 * 7");
}

#[test]
fn a_command_that_never_ends_is_stopped_at_its_deadline() {
    let Some(machine) = machine() else { return };
    let output = run(&machine, &["--timeout", "1"], &["sleep", "1000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did not end within 1 s"));
}

#[test]
fn a_run_that_is_told_to_stop_leaves_no_folder_behind() {
    let Some(machine) = machine() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let mut child = builder(&machine, &[], &["sh", "-c", "echo up; sleep 1000"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 2];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut up).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(1), None));
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
