//! What is broken is named, through containerd and through `kata-rs run`, within seconds, and nothing stays behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tests::{Containerd, Finished, Residue, needs, prefix, requirement::emulated, run, run_for};

/// Counting what is left behind allows nothing beside it.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A copy of the installation that a test may break.
struct Installation {
    folder: tempfile::TempDir,
}

const KERNELS: [&str; 2] = ["share/kata-rs/vmlinux-hw", "share/kata-rs/vmlinux-pvm"];
const IMAGE: &str = "share/kata-rs/guest.erofs";

impl Installation {
    fn copy() -> Self {
        let folder = tempfile::Builder::new().prefix("kata-rs-broken-").tempdir().expect("a folder");
        run(Command::new("cp").arg("-r").arg(prefix::path()).arg(folder.path().join("p"))).success();
        Self { folder }
    }

    fn prefix(&self) -> PathBuf {
        self.folder.path().join("p")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.prefix().join(name)
    }

    /// Both fronts fail to run `true`, within seconds and with these words, and leave nothing.
    fn fails_naming(&self, words: &[&str]) {
        let before = Residue::now();
        let finished = by_command(&self.prefix());
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        assert_says(&finished, words);
        let containerd = Containerd::start_with(&[("KATA_RS_PREFIX", &self.prefix().to_string_lossy())]);
        let image = containerd.import("busybox");
        let finished = containerd.run_container(&[], &image, &["true"]);
        assert_ne!(finished.code(), 0);
        assert_says(&finished, words);
        drop(containerd);
        before.assert_nothing_new();
    }
}

fn by_command(prefix: &Path) -> Finished {
    let deadline = Duration::from_secs(if emulated() { 90 } else { 15 });
    let mut command = Command::new(prefix::bin("kata-rs"));
    command.env("KATA_RS_PREFIX", prefix).arg("run").arg(prefix::image("busybox")).arg("true").stdin(Stdio::null());
    run_for(&mut command, deadline)
}

fn assert_says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} is not in: {}", finished.stderr);
    }
}

fn truncate(path: &Path, len: u64) {
    fs::File::options().write(true).open(path).and_then(|file| file.set_len(len)).expect("truncated");
}

#[test]
fn a_missing_kernel_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    KERNELS.iter().for_each(|kernel| fs::remove_file(broken.file(kernel)).expect("there"));
    broken.fails_naming(&["vmlinux"]);
}

#[test]
fn a_truncated_kernel_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    KERNELS.iter().for_each(|kernel| truncate(&broken.file(kernel), 100_000));
    broken.fails_naming(&["kernel"]);
}

#[test]
fn a_kernel_of_noise_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    KERNELS.iter().for_each(|kernel| fs::write(broken.file(kernel), vec![0x5a; 1 << 20]).expect("written"));
    broken.fails_naming(&["vmlinux"]);
}

#[test]
fn a_corrupt_guest_image_shows_the_guests_console() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    let mut bytes = fs::read(broken.file(IMAGE)).expect("there");
    // The superblock stays: the guest mounts it and finds noise.
    bytes[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    fs::write(broken.file(IMAGE), bytes).expect("written");
    broken.fails_naming(&["guest", "panic"]);
}

#[test]
fn an_empty_guest_image_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    truncate(&broken.file(IMAGE), 0);
    broken.fails_naming(&["guest.erofs"]);
}

#[test]
fn a_missing_program_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    for program in ["libexec/kata-rs/kata-rs-vmm", "libexec/kata-rs/virtiofsd"] {
        let broken = Installation::copy();
        fs::remove_file(broken.file(program)).expect("there");
        broken.fails_naming(&[program]);
    }
}

#[test]
fn a_vmm_that_is_another_program_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let broken = Installation::copy();
    let vmm = broken.file("libexec/kata-rs/kata-rs-vmm");
    fs::write(&vmm, "#!/bin/sh\necho something else >&2\nexit 3\n").expect("written");
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).expect("set");
    broken.fails_naming(&["monitor"]);
}

/// Runs a line with a /dev of its own, made by the line before.
fn with_dev(make: &str) -> Finished {
    let line = format!(
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && {make} exec {} run {} true",
        prefix::bin("kata-rs").display(),
        prefix::image("busybox").display()
    );
    run(Command::new("unshare").args(["--mount", "sh", "-c", &line]).stdin(Stdio::null()))
}

#[test]
fn a_host_without_kvm_is_told_so() {
    needs!(Kvm, Root, Stage, Program("unshare"));
    let _alone = alone();
    let before = Residue::now();
    let finished = with_dev("");
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert_says(&finished, &["/dev/kvm"]);
    let finished = with_dev("mknod /dev/kvm c 1 3 &&");
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert_says(&finished, &["kvm"]);
    before.assert_nothing_new();
}

#[test]
fn a_root_filesystem_that_is_a_file_is_named() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let before = Residue::now();
    let file = tempfile::Builder::new().prefix("kata-rs-rootfs-").tempfile().expect("a file");
    let containerd = Containerd::start();
    let path = file.path().to_string_lossy().into_owned();
    let finished = containerd.run_container(&["--rootfs"], &path, &["true"]);
    assert_ne!(finished.code(), 0);
    assert_says(&finished, &["rootfs"]);
    drop((containerd, file));
    before.assert_nothing_new();
}

#[test]
fn a_broken_config_is_refused_with_its_reason() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let _alone = alone();
    let before = Residue::now();
    let containerd = Containerd::start();
    let config = tempfile::Builder::new().prefix("kata-rs-config-").tempfile().expect("a file");
    // Valid for containerd's own reading, and not a container: no process, no root.
    fs::write(config.path(), r#"{"ociVersion": "1.0.2"}"#).expect("written");
    let path = config.path().to_string_lossy().into_owned();
    let id = containerd.fresh_id();
    let words = ["run", "--rm", "--runtime", tests::containerd::RUNTIME, "--config", &path, &id];
    let finished = containerd.run(words);
    assert_ne!(finished.code(), 0);
    assert_says(&finished, &["config.json", "names no root", "invalid argument"]);
    containerd.run(["container", "rm", &id]);
    drop((containerd, config));
    before.assert_nothing_new();
}
