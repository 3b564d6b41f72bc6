//! The hardware lane: the end-to-end tests once more, with the stock kernel and two vCPUs, on unmodified KVM.
//!
//! This host may have no VT-x or SVM. QEMU emulates a machine with SVM, Debian's kernel in it offers `/dev/kvm`, and the very test
//! programs that ran outside run inside it. It needs no `/dev/kvm` here. Everything in it takes seconds, so counts are lower there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tests::{command, needs, prefix};

/// Test programs that go into the machine, and which of their tests; none named is all. The command is a front of the same library as the
/// shim, so of its tests those that depend on the kind of KVM, and one of each kind, are enough.
const PROGRAMS: [(&str, &[&str]); 2] = [
    ("through_containerd", &[]),
    ("through_the_command", &["an_archive_runs", "two_cpus_are", "limits_are", "a_volume_is", "a_shell_at", "ctrl_c"]),
];
/// Longest that one program may take in there.
const DEADLINE: Duration = Duration::from_secs(1500);

#[test]
fn containers_run_on_hardware_kvm_with_two_vcpus() {
    needs!(Stage, Machine, Program("qemu-system-x86_64"));
    let share = tempfile::Builder::new().prefix("kata-rs-lane-").tempdir().expect("a folder");
    for (program, _) in PROGRAMS {
        fs::copy(built(program), share.path().join(program)).expect("copied");
    }
    for (program, tests) in PROGRAMS {
        let status = run_in_machine(share.path(), program, tests);
        assert_eq!(status, Some(0), "{program} failed in the emulated machine: its output is above");
    }
}

fn run_in_machine(share: &Path, program: &str, tests: &[&str]) -> Option<i32> {
    let builder = std::env::var_os("KATA_RS_ROOTFS_BUILDER").map_or_else(
        || prefix::workspace().join("target/x86_64-unknown-linux-gnu/release/rootfs-builder"),
        PathBuf::from,
    );
    let mut child = Command::new(builder)
        .args(["emulated-machine", "run", "--dir"])
        .arg(prefix::machine())
        .arg("--share")
        .arg(share)
        .args(["--timeout", &DEADLINE.as_secs().to_string()])
        .args([
            "--env",
            "KATA_RS_EMULATED=1",
            "--env",
            "KATA_RS_PREFIX=/opt/kata-rs",
            "--env",
            "KATA_RS_IMAGES=/images",
        ])
        .args(["--env", "CI=true", "--env", "RUST_BACKTRACE=1", "--"])
        .args([&format!("/share/{program}"), "--test-threads=1"])
        .args(tests)
        .stdin(Stdio::null())
        .spawn()
        .expect("`make machine` has built it");
    command::wait_for(&mut child, DEADLINE + Duration::from_secs(30)).and_then(|status| status.code())
}

/// The newest build of a test program of this package: cargo puts it beside this one.
fn built(program: &str) -> PathBuf {
    let own = std::env::current_exe().expect("known");
    let folder = own.parent().expect("in a folder");
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_prefix(program).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
    };
    let all = fs::read_dir(folder).expect("readable").flatten().map(|entry| entry.path()).filter(is_it);
    let modified = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    all.max_by_key(modified).unwrap_or_else(|| panic!("{program} is not built: `cargo test -p tests --no-run`"))
}
