//! Cgroups of the running kernel, version 1 or 2, as root.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::*;

/// A cgroup `test/name`, below a folder of the test's own; `None`, said aloud, where this user cannot make any.
fn cgroup(name: &str) -> Option<HostCgroup> {
    let path = PathBuf::from(format!("kata-rs-{}-{name}", std::process::id()));
    let cgroup = HostCgroup::at(&path, true).expect("/proc is there");
    if !rustix::process::geteuid().is_root() || cgroup.places.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "needs root and a cgroup tree, and in CI nothing is skipped");
        eprintln!("skipped: {name} needs root and a cgroup tree");
        return None;
    }
    Some(cgroup)
}

/// A child inside, gone with the test however that ends. It is moved by its pid: entering moves the caller, here the whole test program.
struct Inside(Child);

impl Inside {
    fn of(cgroup: &HostCgroup) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let inside = Self(sleep.spawn().expect("spawned"));
        for folder in cgroup.folders() {
            fs::write(folder.join("cgroup.procs"), inside.0.id().to_string()).expect("moved");
        }
        inside
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("asked").is_none()
    }

    fn ended(&mut self) {
        self.0.wait().expect("ended");
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the folders without moving anybody.
fn made(name: &str) -> Option<HostCgroup> {
    let cgroup = cgroup(name)?;
    cgroup.places.iter().for_each(|place| place.make_for_test());
    Some(cgroup)
}

fn left(cgroup: &HostCgroup) -> Vec<PathBuf> {
    cgroup
        .folders()
        .flat_map(|folder| [folder.clone(), folder.parent().expect("two levels").to_owned()])
        .filter(|f| f.exists())
        .collect()
}

#[test]
fn needs_root_what_was_made_goes_with_the_last_that_leaves() {
    let (Some(one), Some(two)) = (made("last/one"), made("last/two")) else { return };
    assert_eq!(one.remove(), Vec::<String>::new());
    assert!(one.folders().all(|folder| !folder.exists()));
    assert!(two.folders().all(|folder| folder.exists()), "the other pod is not disturbed");
    assert_eq!(two.remove(), Vec::<String>::new());
    assert_eq!(left(&two), Vec::<PathBuf>::new(), "nor is the folder of both left");
    assert_eq!(two.remove(), Vec::<String>::new(), "twice is fine");
}

#[test]
fn needs_root_what_somebody_else_made_stays() {
    let Some(mut cgroup) = cgroup("stranger/ours") else { return };
    cgroup.places.truncate(1);
    let folder = cgroup.folders().next().expect("one");
    let above = folder.parent().expect("two levels").to_owned();
    let theirs = above.join("theirs");
    fs::create_dir_all(&theirs).expect("made");
    cgroup.places[0].make_for_test();
    assert_eq!(cgroup.remove(), Vec::<String>::new());
    assert!(theirs.exists() && !folder.exists());
    fs::remove_dir(&theirs).expect("removed");
    fs::remove_dir(&above).expect("made by nobody of ours, so it was left");
}

#[test]
fn needs_root_after_a_crash_what_is_left_inside_dies() {
    let Some(cgroup) = made("crash/pod") else { return };
    let mut child = Inside::of(&cgroup);
    assert!(!cgroup.remove().is_empty(), "a cgroup with processes is not removed behind their back");
    let record = tempfile::tempdir().expect("a folder");
    let file = record.path().join("r.cgroup");
    cgroup.write_record(&file).expect("written");
    let read = HostCgroup::read_record(&file).expect("read back");
    assert_eq!(read, cgroup);
    assert_eq!(read.end(), Vec::<String>::new());
    child.ended();
    assert_eq!(left(&cgroup), Vec::<PathBuf>::new());
}

#[test]
fn needs_root_an_operators_cgroup_with_others_inside_is_left_to_them() {
    let Some(mut cgroup) = made("shared/shims") else { return };
    cgroup.own = false;
    let mut child = Inside::of(&cgroup);
    assert_eq!(cgroup.end(), Vec::<String>::new());
    assert!(child.runs(), "a stranger was killed");
    drop(child);
    assert_eq!(cgroup.end(), Vec::<String>::new());
    assert_eq!(left(&cgroup), Vec::<PathBuf>::new());
}

#[test]
fn needs_root_what_runs_inside_is_counted() {
    let Some(mut cgroup) = made("usage/pod") else { return };
    let child = Inside::of(&cgroup);
    let usage = cgroup.cost().expect("read");
    assert_eq!((usage.pids_current, cgroup.oom_kills()), (1, 0));
    assert_eq!((usage.memory_max, usage.pids_max), (u64::MAX, 0), "there are no limits of ours");
    cgroup.own = false;
    assert!(cgroup.cost().is_err(), "others may be counted here");
    cgroup.own = true;
    cgroup.problems.push("not entered".to_owned());
    assert!(cgroup.cost().is_err(), "the pod is counted elsewhere");
    cgroup.problems.clear();
    drop(child);
    assert_eq!(cgroup.end(), Vec::<String>::new());
    assert!(cgroup.cost().is_err(), "a cgroup that is gone costs nothing, and says so");
}

#[test]
fn a_tree_that_cannot_be_written_is_told_and_no_more() {
    let point = tempfile::tempdir().expect("a folder");
    let missing = point.path().join("not-mounted");
    let hierarchy =
        hierarchy::Hierarchy { point: missing.clone(), unified: true, controllers: Vec::new(), from: PathBuf::new() };
    let mut cgroup = HostCgroup {
        path: "a/b".into(),
        own: true,
        places: vec![Place::new(hierarchy, Path::new("a/b"))],
        problems: Vec::new(),
        serial: 1,
    };
    cgroup.enter();
    assert!(cgroup.problems()[0].contains("not-mounted/a"), "{:?}", cgroup.problems());
    cgroup.leave();
    assert_eq!(cgroup.end(), Vec::<String>::new());
}

#[test]
fn a_record_that_is_not_understood_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("r.cgroup");
    assert_eq!(HostCgroup::read_record(&file), None);
    fs::write(&file, "{\"path\":").expect("written");
    assert_eq!(HostCgroup::read_record(&file), None);
}
