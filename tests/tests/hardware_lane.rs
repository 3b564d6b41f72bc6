//! The hardware lane: the end-to-end tests once more, with the stock kernel and two vCPUs, on unmodified KVM.
//!
//! This host may have no VT-x or SVM. QEMU emulates a machine with SVM, Debian's kernel in it offers `/dev/kvm`, and the very test
//! programs that ran outside run inside it. It needs no `/dev/kvm` here. Everything in it takes seconds, so counts are lower there.
//!
//! Guests have two vCPUs, and the emulated machine one processor, on which they take turns: with two, QEMU 7.2 loses its way. Debian's own kernel, in
//! QEMU as the inner VMM, with two vCPUs and a disk, hangs there or takes the emulated host down within a minute; on one processor it runs.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tests::{command, needs, prefix};

/// Test programs that go into the machine, and which of their tests; none named is all. The command is a front of the same library as the
/// shim, so of its tests those that depend on the kind of KVM, and one of each kind, are enough.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("through_containerd", &[]),
    ("ctr_with_a_network", &[]),
    // The machine has version 2 of cgroups, this host may have version 1.
    (
        "resources",
        &[
            "every_process",
            "a_shim_that_is_killed",
            "a_path_of",
            "two_pods",
            "figures_have",
            "new_limits",
            "host_kills",
        ],
    ),
    ("through_the_command", &["an_archive_runs", "two_cpus_are", "limits_are", "a_volume_is", "a_shell_at", "ctrl_c"]),
];
/// Longest that one machine may live.
const DEADLINE: Duration = Duration::from_secs(900);
/// Longest that a machine may say nothing. Every command of a test in it has [`command::DEADLINE`], so one that is silent for twice as
/// long has an emulated host that stands still, and what it runs no longer counts.
const SILENCE: Duration = Duration::from_secs(2 * command::DEADLINE.as_secs());
/// What the shims in the machine are told by the operator.
const CONFIGURATION: &str = "default_vcpus = 2\nmax_vcpus = 2\n";
/// Machines for one program. The emulation of SVM in QEMU 7.2 is not perfect: now and then the emulated host's own kernel panics inside
/// VMRUN, or a guest in it dies. A test that has not passed gets a fresh machine; one that passes in none of them has failed.
const MACHINES_MAX: usize = 3;

#[test]
fn containers_run_on_hardware_kvm_with_two_vcpus() {
    needs!(Stage, Machine, Program("qemu-system-x86_64"));
    let share = tempfile::Builder::new().prefix("kata-rs-lane-").tempdir().expect("a folder");
    fs::write(share.path().join("config.toml"), CONFIGURATION).expect("written");
    for (program, filters) in PROGRAMS {
        fs::copy(built(program), share.path().join(program)).expect("copied");
        let mut open = named(&share.path().join(program), filters);
        for machine in 1..=MACHINES_MAX {
            println!("{program}, machine {machine}: {} tests", open.len());
            let passed = run_in_machine(share.path(), program, &open);
            open.retain(|test| !passed.contains(test));
            if open.is_empty() {
                break;
            }
        }
        assert!(open.is_empty(), "{program}: did not pass in any of {MACHINES_MAX} machines: {open:?}");
    }
}

/// The program's tests that match one of the filters.
fn named(program: &Path, filters: &[&str]) -> BTreeSet<String> {
    let listed = tests::run(Command::new(program).args(["--list", "--format", "terse"]).args(filters)).success();
    let names: BTreeSet<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    assert!(names.len() >= filters.len().max(1), "the filters name tests that there are: {names:?}");
    names
}

/// Runs these tests in a fresh machine, shows what they print, and returns those that passed.
fn run_in_machine(share: &Path, program: &str, tests: &BTreeSet<String>) -> BTreeSet<String> {
    let builder = std::env::var_os("KATA_RS_ROOTFS_BUILDER").map_or_else(
        || prefix::workspace().join("target/x86_64-unknown-linux-gnu/release/rootfs-builder"),
        PathBuf::from,
    );
    let mut child = Command::new(builder)
        .args(["emulated-machine", "run", "--dir"])
        .arg(prefix::machine())
        .arg("--share")
        .arg(share)
        .args(["--cpus", "1", "--timeout", &DEADLINE.as_secs().to_string()])
        .args([
            "--env",
            "KATA_RS_EMULATED=1",
            "--env",
            "KATA_RS_PREFIX=/opt/kata-rs",
            "--env",
            "KATA_RS_IMAGES=/images",
            "--env",
            "KATA_RS_CONFIG=/share/config.toml",
        ])
        .args(["--env", "CI=true", "--env", "RUST_BACKTRACE=0", "--"])
        .args([&format!("/share/{program}"), "--test-threads=1", "--exact"])
        .args(tests)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`make machine` has built it");
    let passed = watched(&mut child);
    // A machine that broke says so itself; what counts is which tests passed.
    command::wait_for(&mut child, DEADLINE).expect("the machine ends with its output");
    passed
}

/// Shows what the machine prints, and stops it when that is nothing for too long. Returns the tests that passed.
fn watched(child: &mut Child) -> BTreeSet<String> {
    let lines = lines_of(child.stdout.take().expect("asked for"));
    let mut passed = BTreeSet::new();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                println!("{line}");
                passed.extend(
                    line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok")).map(str::to_owned),
                );
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return passed,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                println!("the machine has said nothing for {SILENCE:?}, and is stopped");
                // It then shows the end of its console, and ends its output.
                command::signal(child.id(), Signal::TERM);
            }
        }
    }
}

fn lines_of(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
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
