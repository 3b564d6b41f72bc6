//! A cgroup of the running kernel: made, frozen, watched, killed and removed, as root.
//!
//! Limits are tested where controllers are, in the guest; here only what every cgroup2 tree has.

use container::cgroup::{Access, DEPTH_MAX, DeviceProgram, DeviceRule};
use container::{Cgroup, exit_status};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn root() -> Option<PathBuf> {
    let all = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    all.into_iter().find(|path| path.join("cgroup.controllers").exists())
}

fn made(name: &str) -> Option<Cgroup> {
    if let (true, Some(root)) = (rustix::process::geteuid().is_root(), root()) {
        let path = format!("containers/cgroups-{}-{name}", std::process::id());
        return Some(Cgroup::create(&root, Path::new(&path)).expect("made"));
    }
    assert!(std::env::var_os("CI").is_none(), "needs root and a cgroup2 tree, and in CI nothing is skipped");
    eprintln!("skipped: {name} needs root and a cgroup2 tree");
    None
}

fn sleeper(cgroup: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("1000").spawn().expect("started");
    cgroup.add(child.id()).expect("added");
    child
}

#[test]
fn needs_root_a_frozen_cgroup_says_so_when_it_is_and_thaws() {
    let Some(cgroup) = made("freeze") else { return };
    let mut child = sleeper(&cgroup);
    cgroup.freeze().expect("frozen");
    let events = std::fs::read_to_string(cgroup.path().join("cgroup.events")).expect("read");
    assert!(events.contains("frozen 1"));
    cgroup.thaw().expect("thawed");
    cgroup.kill().expect("killed");
    assert_eq!(exit_status(child.wait().expect("ended")), 137);
    cgroup.remove().expect("removed");
}

#[test]
fn needs_root_a_container_cannot_bury_its_processes_deeper_than_can_be_walked() {
    let Some(cgroup) = made("depth") else { return };
    let mut at = cgroup.path().to_owned();
    let made = (0..2 * DEPTH_MAX).take_while(|_| {
        at.push("d");
        std::fs::create_dir(&at).is_ok()
    });
    assert_eq!(made.count(), DEPTH_MAX as usize);
    assert!(cgroup.procs().expect("walked").is_empty());
    cgroup.remove().expect("removed with all that is below");
}

#[test]
fn needs_root_killing_reaches_frozen_processes_and_cgroups_below() {
    let Some(cgroup) = made("kill") else { return };
    let root = root().expect("checked");
    let below_path = cgroup.path().strip_prefix(&root).expect("below").join("below");
    let below = Cgroup::create(&root, &below_path).expect("made");
    let mut children = [sleeper(&below), sleeper(&below)];
    let mut pids: Vec<u32> = children.iter().map(Child::id).collect();
    pids.sort_unstable();
    assert_eq!(cgroup.procs().expect("listed"), pids);
    cgroup.freeze().expect("frozen");
    cgroup.kill().expect("killed");
    for child in &mut children {
        assert_eq!(exit_status(child.wait().expect("ended")), 137);
    }
    cgroup.remove().expect("removed with what is below");
    assert!(!cgroup.path().exists());
}

#[test]
fn needs_root_usage_is_counted() {
    let Some(cgroup) = made("stats") else { return };
    let mut child = sleeper(&cgroup);
    let stats = cgroup.stats().expect("read");
    assert_eq!(cgroup.oom_kills().expect("read"), 0);
    // This controller's file is there in every cgroup; the others' only where they are enabled.
    assert!(stats.cpu_usage_usec >= stats.cpu_user_usec);
    cgroup.kill().expect("killed");
    child.wait().expect("ended");
    cgroup.remove().expect("removed");
}

#[test]
fn needs_root_device_rules_hold_for_every_process_inside() {
    let Some(cgroup) = made("devices") else { return };
    let null = DeviceRule {
        allow: true,
        kind: Some(container::plan::DeviceKind::Character),
        major: Some(1),
        minor: Some(3),
        access: Access::ALL,
    };
    let rules = match cgroup.attach_devices(&DeviceProgram::compile(&[null]), None) {
        Ok(rules) => rules,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(std::env::var_os("CI").is_none(), "{error}: {source}");
            eprintln!("skipped: this kernel does not let us attach device rules: {source}");
            cgroup.remove().expect("removed");
            return;
        }
    };
    let script = "read go; cat /dev/null && echo null; cat /dev/zero | head -c 1; echo end";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    cgroup.add(child.id()).expect("added");
    drop(child.stdin.take());
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok).collect();
    assert_eq!(lines, ["null", "end"]);
    let complaint = std::io::read_to_string(child.stderr.take().expect("piped")).expect("read");
    assert!(complaint.contains("Operation not permitted"), "{complaint}");
    child.wait().expect("ended");
    let zero = DeviceRule { minor: Some(5), ..null };
    cgroup.attach_devices(&DeviceProgram::compile(&[zero]), Some(&rules)).expect("replaced");
    let script = "read go; head -c 1 /dev/zero | wc -c; cat /dev/null || echo no null";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    cgroup.add(child.id()).expect("added");
    drop(child.stdin.take());
    let text = std::io::read_to_string(child.stdout.take().expect("piped")).expect("read");
    assert_eq!(text, "1\nno null\n", "the new rules alone are in force");
    child.wait().expect("ended");
    cgroup.remove().expect("removed");
}
