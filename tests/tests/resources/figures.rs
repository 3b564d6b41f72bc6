//! A container's figures and limits in the guest, and its freezer, as containerd asks the shim for them.

use std::{fs, thread, time::Duration};

use containerd_shim_protos::{
    cgroups::metrics::Metrics as MetricsV1,
    cgroups_v2::metrics::Metrics as MetricsV2,
    protobuf::{Message, well_known_types::any::Any},
};
use serde_json::json;
use tests::{needs, requirement::emulated};

use super::{MIB, Running, eventually, host};

/// `ctr` mounts no cgroup file system unless told.
const CGROUP: [&str; 2] = ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev"];

/// The figures of either message that the tests compare.
#[derive(Debug)]
pub struct Figures {
    version: u8,
    memory: u64,
    memory_limit: u64,
    anon: u64,
    inactive_file: u64,
    page_faults: u64,
    cpu_usec: u64,
    pids: u64,
    pids_limit: u64,
    interfaces: Vec<String>,
}

impl Figures {
    pub fn of(any: &Any) -> Self {
        match any.type_url.as_str() {
            "io.containerd.cgroups.v1.Metrics" => {
                Self::of_version_1(&MetricsV1::parse_from_bytes(&any.value).expect("parsed"))
            }
            "io.containerd.cgroups.v2.Metrics" => {
                Self::of_version_2(&MetricsV2::parse_from_bytes(&any.value).expect("parsed"))
            }
            other => panic!("containerd does not know {other}"),
        }
    }

    fn of_version_1(all: &MetricsV1) -> Self {
        Self {
            version: 1,
            memory: all.memory.usage.usage,
            memory_limit: all.memory.usage.limit,
            anon: all.memory.total_rss,
            inactive_file: all.memory.total_inactive_file,
            page_faults: all.memory.total_pg_fault,
            cpu_usec: all.cpu.usage.total / 1000,
            pids: all.pids.current,
            pids_limit: all.pids.limit,
            interfaces: all.network.iter().map(|interface| interface.name.clone()).collect(),
        }
    }

    fn of_version_2(all: &MetricsV2) -> Self {
        Self {
            version: 2,
            memory: all.memory.usage,
            memory_limit: all.memory.usage_limit,
            anon: all.memory.anon,
            inactive_file: all.memory.inactive_file,
            page_faults: all.memory.pgfault,
            cpu_usec: all.cpu.usage_usec,
            pids: all.pids.current,
            pids_limit: all.pids.limit,
            interfaces: all.network.iter().map(|interface| interface.name.clone()).collect(),
        }
    }
}

#[test]
fn figures_have_the_form_of_the_host_and_are_within_two_percent_of_what_the_guest_reads() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let script = "import time
kept = bytearray(b'x') * (150 << 20)
end = time.process_time() + 2
while time.process_time() < end: pass
open('/tmp/ready', 'w').close()
time.sleep(1000)";
    let flags = ["--memory-limit", "268435456", CGROUP[0], CGROUP[1]];
    let running = Running::start(&host.containerd, &flags, &host.python, &["python3", "-c", script]);
    eventually("the container has computed", || running.exec("ready", &["test", "-e", "/tmp/ready"]).code() == 0);

    let unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
    let first = running.figures();
    assert_eq!(first.version, if unified { 2 } else { 1 });
    assert_eq!(first.memory_limit, 256 * MIB);
    assert!(!first.interfaces.iter().any(|name| name == "lo"), "{:?}", first.interfaces);
    assert_eq!((first.pids, first.pids_limit), (1, 0));

    let stat = |key: &str| format!("sed -n 's/^{key} //p' /sys/fs/cgroup");
    type Look = (String, fn(&Figures) -> u64);
    let looks: [Look; 5] = [
        ("cat /sys/fs/cgroup/memory.current".into(), |f| f.memory),
        (format!("{}/memory.stat", stat("anon")), |f| f.anon),
        (format!("{}/memory.stat", stat("pgfault")), |f| f.page_faults),
        (format!("{}/cpu.stat", stat("usage_usec")), |f| f.cpu_usec),
        (format!("{}/memory.stat", stat("inactive_file")), |f| f.inactive_file),
    ];
    for (number, (look, figure)) in looks.into_iter().enumerate() {
        // What the look itself costs lies between the two.
        let before = figure(&running.figures());
        let inside = running.number(&format!("look{number}"), &look);
        let after = figure(&running.figures());
        let (low, high) = (before.min(after), before.max(after));
        // Cached files are so few here that two percent are less than a page or two.
        let slack = inside / 50 + if look.contains("inactive_file") { MIB } else { 0 };
        let fits = inside + slack >= low && inside <= high + slack;
        assert!(fits, "{look} says {inside}, Stats says {before} before and {after} after");
    }
}

#[test]
fn new_limits_hold_inside_and_more_memory_than_the_machine_has_is_refused_with_both_figures() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let flags = ["--memory-limit", "67108864", "--cpus", "0.5", CGROUP[0], CGROUP[1]];
    let running = Running::start(&host.containerd, &flags, &host.busybox, &["sleep", "1000"]);
    // With what a version 1 host's specification says besides.
    let new = json!({
        "memory": {"limit": 50_331_648, "reservation": 1_048_576, "kernel": -1, "swappiness": 60, "disableOOMKiller": false},
        "cpu": {"quota": 30_000, "period": 100_000, "shares": 1024, "cpus": "0-63", "mems": "0"},
        "pids": {"limit": 77},
        "unified": {"memory.high": "41943040"}
    });
    running.update(&new).expect("taken");
    for (number, (file, value)) in [
        ("memory.max", "50331648"),
        ("memory.low", "1048576"),
        ("memory.high", "41943040"),
        ("cpu.max", "30000 100000"),
        ("cpu.weight", "39"),
        ("pids.max", "77"),
    ]
    .into_iter()
    .enumerate()
    {
        let held = running.exec(&format!("limit{number}"), &["cat", &format!("/sys/fs/cgroup/{file}")]).success();
        assert_eq!(held.trim(), value, "{file}");
    }
    let sentence = running.update(&json!({"memory": {"limit": 1_u64 << 40}})).expect_err("refused");
    assert!(sentence.contains("1099511627776") && sentence.contains("make the pod again"), "{sentence}");
    let sentence = running.update(&json!({"cpu": {"cpus": "first"}})).expect_err("refused");
    assert!(sentence.contains("linux.resources.cpu.cpus"), "{sentence}");
    let held = running.exec("after", &["cat", "/sys/fs/cgroup/memory.max"]).success();
    assert_eq!(held.trim(), "50331648", "a refused update changes nothing");
}

#[test]
fn a_paused_container_does_nothing_and_can_be_killed() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    if emulated() {
        // What the guest's freezer does does not depend on the kind of KVM.
        return;
    }
    let host = host();
    let running = Running::start(&host.containerd, &[], &host.busybox, &["sh", "-c", "while :; do :; done"]);
    host.containerd.run(["task", "pause", &running.id]).success();
    let usage = || running.figures().cpu_usec;
    let frozen = usage();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(usage(), frozen, "nothing computes");
    host.containerd.run(["task", "resume", &running.id]).success();
    eventually("it computes again", || usage() > frozen);
    host.containerd.run(["task", "pause", &running.id]).success();
    host.containerd.run(["task", "kill", "--signal", "SIGKILL", &running.id]).success();
    eventually("it ends", || {
        host.containerd.run(["task", "ls"]).success().lines().any(|l| l.contains(&running.id) && l.contains("STOPPED"))
    });
}
