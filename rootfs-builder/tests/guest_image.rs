//! The guest image as the program writes it.
#![allow(clippy::unwrap_used, reason = "a test stops at its first surprise")]
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rootfs_builder::layer::digest;

/// The smallest static x86_64 program that passes for an agent.
fn agent() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(64, 0);
    bytes[16] = 2;
    bytes[18] = 62;
    bytes.extend_from_slice(b"agent");
    bytes
}

/// A folder that anyone may write, with an agent in it.
fn folder_with_agent() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("agent");
    std::fs::write(&path, agent()).unwrap();
    (folder, path)
}

fn builder() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rootfs-builder"))
}

fn built(mut command: Command, folder: &Path) -> Vec<u8> {
    let status =
        command.args(["guest", "--agent", "agent", "--out", "guest.erofs"]).current_dir(folder).status().unwrap();
    assert!(status.success());
    std::fs::read(folder.join("guest.erofs")).unwrap()
}

#[test]
fn any_folder_user_time_zone_and_umask_give_the_same_image() {
    let (here, _) = folder_with_agent();
    let (there, _) = folder_with_agent();
    let first = built(builder(), here.path());

    // A copy that another user may run, wherever the build folder is. By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
    let program = there.path().join("rootfs-builder");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_rootfs-builder")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut other = Command::new("sh");
    other
        .args(["-c", "umask 077; exec ./rootfs-builder \"$@\"", "sh"])
        .env("TZ", "Asia/Tokyo")
        .env("LC_ALL", "C.UTF-8");
    if rustix::process::geteuid().is_root() {
        other.uid(65534).gid(65534);
    }
    assert_eq!(first, built(other, there.path()));
}

#[test]
fn the_image_of_a_known_agent_is_the_one_it_has_always_been() {
    // Changes only when the layout of the image is meant to change.
    let (folder, _) = folder_with_agent();
    let image = built(builder(), folder.path());
    assert_eq!(digest(&image), "sha256:704a9822a712c3c865a9b3ce20cbeec2114f08b2c41ba2aa4dc084c081c3009c");
}

#[test]
fn the_systems_own_checker_finds_nothing_wrong() {
    let (folder, _) = folder_with_agent();
    built(builder(), folder.path());
    match Command::new("fsck.erofs").arg(folder.path().join("guest.erofs")).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) if std::env::var_os("CI").is_none() => eprintln!("skipped: fsck.erofs (erofs-utils): {error}"),
        Err(error) => panic!("fsck.erofs (package erofs-utils) must be there in CI: {error}"),
    }
}

#[test]
fn a_dynamic_agent_is_an_error_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let output = builder()
        .args(["guest", "--agent", "/bin/ls", "--out"])
        .arg(folder.path().join("guest.erofs"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("/bin/ls is dynamically linked") && text.contains("crt-static"), "{text}");
    assert!(!folder.path().join("guest.erofs").exists());
}
