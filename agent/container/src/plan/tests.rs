//! Specifications as containerd writes them, and what is decided from each.

use super::*;
use serde_json::{Value, json};

fn guest() -> GuestFacts {
    GuestFacts {
        cpus: 2,
        memory_bytes: 1 << 30,
        cgroup_root: "/sys/fs/cgroup".into(),
        controllers: ["cpu", "memory", "pids", "io"].map(str::to_owned).into(),
        last_capability: 40,
    }
}

fn specification() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/run/kata-rs/share/c1/rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]}
    })
}

fn try_plan(change: impl FnOnce(&mut Value)) -> Result<ContainerPlan, PlanError> {
    let mut spec = specification();
    change(&mut spec);
    plan("c1", &serde_json::from_value(spec).expect("the test's own specification"), &guest())
}

#[track_caller]
fn planned(change: impl FnOnce(&mut Value)) -> ContainerPlan {
    try_plan(change).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value)) -> String {
    try_plan(change).expect_err("refused").to_string()
}

fn limits(resources: Value) -> Result<Vec<(String, String)>, PlanError> {
    let resources = serde_json::from_value(resources).expect("the test's own resources");
    let limits = plan_limits(&resources, &guest())?;
    Ok(limits.writes().iter().map(|write| (write.file.clone(), write.value.clone())).collect())
}

#[track_caller]
fn limit(resources: Value, file: &str) -> String {
    let all = limits(resources).unwrap_or_else(|error| panic!("{error}"));
    all.iter().find(|(name, _)| name == file).unwrap_or_else(|| panic!("no {file} in {all:?}")).1.clone()
}

#[test]
fn mount_and_cgroup_namespaces_are_always_new_and_the_network_never() {
    let plan = planned(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}])
    });
    assert_eq!(plan.namespaces.new, [Namespace::Mount, Namespace::Pid, Namespace::Cgroup]);
    assert!(plan.namespaces.join.is_empty());
    assert!(plan.warnings.is_empty());
}

#[test]
fn a_namespace_with_a_path_is_joined() {
    let plan = planned(|spec| {
        spec["linux"]["namespaces"] =
            json!([{"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}]);
    });
    let joined = [(Namespace::Pid, "/proc/7/ns/pid".into()), (Namespace::Ipc, "/proc/7/ns/ipc".into())];
    assert_eq!(plan.namespaces.join, joined);
}

#[test]
fn who_asks_for_the_hosts_pids_gets_pids_of_its_own_and_a_warning() {
    let plan = planned(|spec| spec["linux"]["namespaces"] = json!([{"type": "mount"}]));
    assert!(plan.namespaces.new.contains(&Namespace::Pid));
    assert_eq!(plan.warnings.len(), 1);
}

#[test]
fn user_and_time_namespaces_are_refused_by_name() {
    for kind in ["user", "time"] {
        let message = refused(|spec| spec["linux"]["namespaces"] = json!([{"type": kind}]));
        assert!(message.contains(&format!("type {kind}")), "{message}");
    }
    assert!(refused(|spec| spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}])).contains("twice"));
}

#[test]
fn the_host_name_is_set_only_in_a_namespace_of_its_own() {
    assert_eq!(planned(|spec| spec["hostname"] = json!("h")).hostname.as_deref(), Some("h"));
    let shared = planned(|spec| {
        spec["hostname"] = json!("h");
        spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    });
    assert_eq!(shared.hostname, None);
}

#[test]
fn what_is_missing_is_named() {
    assert!(refused(|spec| spec["process"]["args"] = json!([])).contains("process.args"));
    assert!(refused(|spec| spec["root"] = Value::Null).contains("root"));
    assert!(refused(|spec| spec["process"] = Value::Null).contains("process"));
    assert!(refused(|spec| spec["root"]["path"] = json!("rootfs")).contains("absolute"));
    assert!(refused(|spec| spec["process"]["cwd"] = json!("/a/../../b")).contains("'..'"));
}

#[test]
fn an_id_cannot_name_another_place_in_the_cgroup_tree() {
    let spec = serde_json::from_value(specification()).expect("a specification");
    for id in ["", "..", ".hidden", "a/b", "a b", &"x".repeat(77)] {
        assert!(plan(id, &spec, &guest()).is_err(), "{id:?}");
    }
    assert_eq!(planned(|_| ()).cgroup.path, Path::new("containers/c1"));
}

#[test]
fn mount_words_become_attributes() {
    let plan = planned(|spec| {
        spec["mounts"] = json!([
            {"destination": "/data/", "type": "none", "source": "/run/x", "options": ["rbind", "ro", "nosuid", "suid", "rnoexec", "noatime", "rslave"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nodev", "ro", "size=1m", "noswap"]}
        ]);
    });
    let bind = &plan.mounts[0];
    assert_eq!(bind.destination, Path::new("/data"));
    assert_eq!(bind.what, MountKind::Bind { source: "/run/x".into(), recursive: true });
    assert_eq!(bind.attributes, MountAttributes { set: 0x1 | 0x10, clear: 0x2 | 0x70 });
    assert_eq!(bind.recursive_attributes, MountAttributes { set: 0x8, clear: 0 });
    assert_eq!(bind.propagation, Propagation::from_word("rslave"));
    let tmpfs = &plan.mounts[1];
    assert!(tmpfs.readonly_at_last && tmpfs.attributes.set == 0x4);
    let options = vec![("size".into(), Some("1m".into())), ("noswap".into(), None)];
    assert_eq!(tmpfs.what, MountKind::New { fstype: "tmpfs".into(), source: "tmpfs".into(), options });
}

#[test]
fn either_version_of_cgroup_is_the_second_one_in_the_guest() {
    let plan = planned(|spec| {
        spec["mounts"] = json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "xattr"]}]);
    });
    assert!(plan.mounts[0].is_new("cgroup2"));
}

#[test]
fn mounts_that_would_deceive_or_cannot_be_made_are_refused() {
    let mount = |destination: &str, kind: &str, options: &[&str]| {
        let mount = json!({"destination": destination, "type": kind, "source": "/run/x", "options": options});
        try_plan(|spec| spec["mounts"] = json!([mount]))
    };
    assert!(mount("/proc/self/attr", "tmpfs", &[]).is_err());
    assert!(mount("/proc", "tmpfs", &[]).is_err());
    assert!(mount("/proc/sys", "none", &["bind"]).is_err());
    assert!(mount("/proc/meminfo", "none", &["bind"]).is_ok());
    assert!(mount("/", "tmpfs", &[]).is_err());
    assert!(mount("relative", "tmpfs", &[]).is_err());
    assert!(mount("/a/../b", "tmpfs", &[]).is_err());
    assert!(mount("/a", "", &[]).is_err());
    for word in ["remount", "tmpcopyup", "idmap"] {
        let message = mount("/a", "tmpfs", &[word]).expect_err("refused").to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn dev_is_filled_unless_it_is_bound_from_elsewhere() {
    let filled = planned(|spec| {
        spec["linux"]["devices"] =
            json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}])
    });
    assert!(filled.populate_dev);
    assert_eq!(filled.devices.len(), 6);
    let null = filled.devices.iter().find(|device| device.path == Path::new("/dev/null")).expect("there");
    assert_eq!(null.mode, 0o600, "the specification's own replaces the default");
    let bound = planned(|spec| spec["mounts"] = json!([{"destination": "/dev", "type": "bind", "source": "/dev"}]));
    assert!(!bound.populate_dev && bound.devices.is_empty());
}

#[test]
fn of_the_hosts_devices_a_privileged_container_has_those_of_the_guest() {
    let plan = |rules: serde_json::Value| {
        let mut plan = planned(|spec| {
            spec["linux"]["devices"] = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
            spec["linux"]["resources"] = json!({"devices": rules});
        });
        plan.keep_devices_of_guest(|device| device.path != Path::new("/dev/sda"));
        plan.devices.len()
    };
    let everything = json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]);
    let one =
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}]);
    assert_eq!(plan(everything), 6);
    assert_eq!(plan(one), 7, "a node that is asked for by name is made, as elsewhere");
}

#[test]
fn sysctls_are_set_only_where_a_namespace_holds_them() {
    let set = |name: &str| try_plan(|spec| spec["linux"]["sysctl"] = json!({name: "1"}));
    assert_eq!(set("net.ipv4.ip_forward").expect("allowed").sysctls[0].path, "net/ipv4/ip_forward");
    assert_eq!(
        set("net/ipv4/conf/eth0.1/forwarding").expect("allowed").sysctls[0].path,
        "net/ipv4/conf/eth0.1/forwarding"
    );
    assert!(set("kernel.shmmax").is_ok());
    assert!(set("fs.mqueue.msg_max").is_ok());
    assert!(set("kernel.domainname").is_ok());
    let shared = try_plan(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
        spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    });
    assert!(shared.is_ok(), "the machine's namespaces are the pod's");
    assert!(set("vm.swappiness").is_err());
    assert!(set("kernel.hostname").is_err());
    assert!(set("net/../kernel/core_pattern").is_err());
    assert!(set("").is_err());
}

#[test]
fn processes_keep_what_they_ask_for() {
    let plan = planned(|spec| {
        spec["process"] = json!({
            "args": ["a", "b"], "env": ["X=1"], "cwd": "/w/", "terminal": true, "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 0o7},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}], "oomScoreAdj": -5, "noNewPrivileges": true
        });
    });
    let process = plan.process;
    assert_eq!(process.cwd, Path::new("/w"));
    assert_eq!(process.console_size, Some(crate::TerminalSize { columns: 80, rows: 24 }));
    assert_eq!(process.rlimits, [RlimitPlan { resource: 7, soft: 1, hard: 2 }]);
    assert_eq!(process.user, UserPlan { uid: 1, gid: 2, additional_gids: vec![3], umask: Some(7) });
    assert!(process.no_new_privileges && process.terminal);
    assert_eq!(process.capabilities, CapabilitySets::default());
}

#[test]
fn processes_that_cannot_be_are_refused() {
    assert!(refused(|spec| spec["process"]["args"] = json!(["a\0b"])).contains("zero byte"));
    assert!(refused(|spec| spec["process"]["oomScoreAdj"] = json!(1001)).contains("-1000"));
    let twice = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}, {"type": "RLIMIT_CPU", "soft": 1, "hard": 2}]);
    assert!(refused(|spec| spec["process"]["rlimits"] = twice).contains("once"));
    let upside_down = json!([{"type": "RLIMIT_CPU", "soft": 3, "hard": 2}]);
    assert!(refused(|spec| spec["process"]["rlimits"] = upside_down).contains("soft"));
}

#[test]
fn an_exec_has_the_containers_filter_and_by_default_its_capabilities() {
    let container = planned(|spec| {
        spec["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
        spec["process"]["oomScoreAdj"] = json!(7);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    });
    let process =
        serde_json::from_value(json!({"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}})).expect("a process");
    let exec = plan_exec(&process, &container, &guest()).expect("planned");
    assert_eq!(exec.seccomp, container.process.seccomp);
    assert!(exec.seccomp.is_some());
    assert_eq!(exec.capabilities.bounding, 1 << 5);
    assert_eq!(exec.oom_score_adj, Some(7));
}

#[test]
fn memory_limits_count_swap_apart() {
    assert_eq!(limit(json!({"memory": {"limit": 1000, "swap": 1500}}), "memory.swap.max"), "500");
    assert_eq!(limit(json!({"memory": {"limit": 1000, "swap": 1500}}), "memory.max"), "1000");
    assert_eq!(limit(json!({"memory": {"limit": -1, "swap": -1}}), "memory.swap.max"), "max");
    assert_eq!(limit(json!({"memory": {"limit": -1}}), "memory.max"), "max");
    assert_eq!(limit(json!({"memory": {"reservation": 77}}), "memory.low"), "77");
    assert!(limits(json!({"memory": {"limit": 1000, "swap": 500}})).is_err());
    assert!(limits(json!({"memory": {"swap": 500}})).is_err());
}

#[test]
fn cpu_limits_are_converted() {
    let weights = [(2, "1"), (1024, "39"), (262_144, "10000"), (1, "1"), (999_999, "10000")];
    for (shares, weight) in weights {
        assert_eq!(limit(json!({"cpu": {"shares": shares}}), "cpu.weight"), weight, "{shares}");
    }
    assert_eq!(limit(json!({"cpu": {"quota": 50000, "period": 200000}}), "cpu.max"), "50000 200000");
    assert_eq!(limit(json!({"cpu": {"quota": 50000}}), "cpu.max"), "50000 100000");
    assert_eq!(limit(json!({"cpu": {"quota": -1, "period": 1000}}), "cpu.max"), "max 1000");
    assert!(limits(json!({"cpu": {"shares": 0}})).expect("planned").is_empty());
}

#[test]
fn without_a_cpuset_controller_only_a_list_of_all_cpus_can_be_met() {
    assert!(limits(json!({"cpu": {"cpus": "0-1", "mems": "0"}})).expect("met").is_empty());
    assert!(limits(json!({"cpu": {"cpus": "0,1,2-7"}})).expect("met").is_empty());
    assert!(limits(json!({"cpu": {"cpus": "1"}})).is_err());
    assert!(limits(json!({"cpu": {"cpus": "nonsense"}})).is_err());
    assert!(limits(json!({"cpu": {"cpus": "48-51"}})).expect("CPUs of the host").is_empty());
}

#[test]
fn what_version_1_alone_knows_is_no_obstacle() {
    let old =
        json!({"memory": {"limit": 1000, "kernel": -1, "kernelTCP": 5, "swappiness": 60, "disableOOMKiller": false}});
    assert_eq!(limits(old).expect("planned"), [("memory.max".to_owned(), "1000".to_owned())]);
    assert_eq!(limit(json!({"memory": {"limit": -1}}), "memory.swap.max"), "max");
}

#[test]
fn other_limits_have_their_files() {
    assert_eq!(limit(json!({"pids": {"limit": 5}}), "pids.max"), "5");
    assert_eq!(limit(json!({"pids": {"limit": -1}}), "pids.max"), "max");
    assert_eq!(limit(json!({"blockIO": {"weight": 1000}}), "io.weight"), "default 10000");
    let throttle = json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 600}]}});
    assert_eq!(limit(throttle, "io.max"), "8:1 rbps=600");
    assert_eq!(limit(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 9}]}), "hugetlb.2MB.max"), "9");
    assert_eq!(limit(json!({"unified": {"memory.high": "5"}}), "memory.high"), "5");
    for file in ["cgroup.procs", "../memory.max", "memory", ".x", "a/b.c"] {
        assert!(limits(json!({"unified": {file: "1"}})).is_err(), "{file}");
    }
}

mod whatever {
    use super::*;
    use proptest::prelude::*;

    /// Paths and words near those that matter, and any others.
    fn any_path() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("proc".to_owned()),
            Just("..".to_owned()),
            Just(".".to_owned()),
            Just("dev".to_owned()),
            "[a-z]{0,3}"
        ];
        (any::<bool>(), prop::collection::vec(part, 0..5))
            .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
    }

    fn any_word() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("ro".to_owned()),
            Just("rbind".to_owned()),
            Just("bind".to_owned()),
            Just("rro".to_owned()),
            Just("noatime".to_owned()),
            Just("rslave".to_owned()),
            "[a-z]{0,8}(=[a-z0-9=]{0,4})?",
            ".{0,6}",
        ]
    }

    proptest! {
        #[test]
        fn no_mount_that_is_planned_leaves_the_root_or_covers_proc(
            destination in any_path(), source in any_path(), kind in prop::option::of("(tmpfs|proc|bind|cgroup|[a-z]{0,4})"),
            options in prop::collection::vec(any_word(), 0..6),
        ) {
            let mount = json!({"destination": destination, "source": source, "type": kind, "options": options});
            if let Ok(plan) = try_plan(|spec| spec["mounts"] = json!([mount])) {
                let mount = &plan.mounts[0];
                prop_assert!(mount.destination.is_absolute() && mount.destination != Path::new("/"));
                prop_assert!(!mount.destination.components().any(|part| part == Component::ParentDir));
                let inside_proc = mount.destination.starts_with("/proc") && mount.destination != Path::new("/proc");
                prop_assert!(!inside_proc || mount.is_bind());
                if let MountKind::Bind { source, .. } = &mount.what {
                    prop_assert!(source.is_absolute());
                }
                prop_assert_eq!(mount.attributes.set & mount.attributes.clear & !0x70, 0);
            }
        }

        #[test]
        fn a_sysctl_that_is_planned_stays_below_its_directory(name in "[a-z./]{0,24}") {
            if let Ok(plan) = try_plan(|spec| spec["linux"]["sysctl"] = json!({name: "1"})) {
                prop_assert!(plan.sysctls[0].path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}
