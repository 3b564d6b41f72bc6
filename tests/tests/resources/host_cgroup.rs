//! The pod's cgroup on the host: who is in it, what it counts, and that it goes with the pod.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use tests::{Residue, command, needs};

use super::{MIB, Running, eventually, hierarchies, host};

/// A process and all below it, whichever of its threads started them.
fn tree(root: u32) -> BTreeSet<u32> {
    let children = |pid: u32| -> Vec<u32> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let texts = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        texts.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    };
    let mut found = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        open.extend(children(pid).into_iter().filter(|child| found.insert(*child)));
    }
    found
}

/// Processes in a cgroup. KVM's threads in the kernel, which it adds to those of the machine, are none: they run no program.
fn procs(folder: &Path) -> BTreeSet<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).expect("it is there");
    let all = text.lines().map(|line| line.parse().expect("a pid"));
    all.filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

#[test]
fn every_process_of_a_pod_is_in_its_cgroup_in_every_hierarchy_and_the_cgroup_goes_with_the_pod() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let running = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let of_pod = tree(running.shim());
        assert!(of_pod.len() >= 4, "shim, machine and two of the file server: {of_pod:?}");
        let folders = running.cgroup();
        assert!(!folders.is_empty(), "the pod has a cgroup");
        for folder in &folders {
            assert_eq!(procs(folder), of_pod, "{}", folder.display());
        }
        let memory =
            folders.iter().any(|f| f.join("memory.usage_in_bytes").exists() || f.join("memory.current").exists());
        assert!(memory, "its memory is counted: {folders:?}");
    }
    before.assert_nothing_new();
}

#[test]
fn the_memory_of_the_guest_is_counted_in_the_pods_cgroup() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let hold = "import time; kept = bytearray(b'x') * (100 << 20); print('held', flush=True); time.sleep(1000)";
    let running = Running::start(&host.containerd, &[], &host.python, &["python3", "-c", hold]);
    let counted = || {
        let read =
            |folder: &PathBuf, file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let folders = running.cgroup();
        folders.iter().find_map(|f| read(f, "memory.usage_in_bytes").or_else(|| read(f, "memory.current"))).unwrap_or(0)
    };
    eventually("100 MiB in the guest are 100 MiB on the host", || counted() >= 100 * MIB);
}

#[test]
fn a_shim_that_is_killed_leaves_no_cgroup() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let running = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let folders = running.cgroup();
        assert!(!folders.is_empty());
        command::signal(running.shim(), Signal::KILL);
        eventually("the cgroup goes after a crash", || folders.iter().all(|folder| !folder.exists()));
    }
    before.assert_nothing_new();
}

#[test]
fn a_path_of_systemds_form_becomes_nested_slices() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    let slice = format!("katarstest-p{}", std::process::id());
    {
        let path = format!("{slice}.slice:cri-containerd:pod");
        let running = Running::start(&host.containerd, &["--cgroup", &path], &host.busybox, &["sleep", "1000"]);
        let below = format!("katarstest.slice/{slice}.slice/cri-containerd-pod.scope");
        let folders: Vec<_> = hierarchies().into_iter().map(|h| h.join(&below)).filter(|f| f.is_dir()).collect();
        assert!(!folders.is_empty(), "{below} is nowhere");
        assert!(procs(&folders[0]).contains(&running.shim()));
    }
    before.assert_nothing_new();
}

#[test]
fn two_pods_below_one_folder_leave_it_together() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let before = Residue::now();
    {
        let one = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        let two = Running::start(&host.containerd, &[], &host.busybox, &["sleep", "1000"]);
        drop(one);
        assert!(two.cgroup().iter().all(|folder| procs(folder).contains(&two.shim())), "the other pod's stays");
    }
    before.assert_nothing_new();
}
