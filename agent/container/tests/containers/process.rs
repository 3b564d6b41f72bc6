//! A container's first process: how it is started, who it is, what it may do, and how it ends.

use container::FailureKind;
use serde_json::json;

use crate::support::{self, needs_root};

#[test]
fn needs_root_a_program_runs_and_its_output_and_code_come_back() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.shell("echo out; echo err >&2; exit 42").run();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code), ("out\n", "err\n", 42));
}

#[test]
fn needs_root_a_process_ended_by_a_signal_exits_with_128_more() {
    let Some(pod) = needs_root!() else { return };
    let created = pod.shell("sleep 1000").create();
    let mut running = created.start().expect("started");
    running.signal(libc::SIGKILL);
    assert_eq!(running.wait().code, 137);
}

#[test]
fn needs_root_the_first_process_is_pid_1_and_sees_nobody_else() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.shell("echo $$; ls -d /proc/[0-9]* | wc -l").run();
    // The shell, ls and wc.
    assert_eq!(ended.stdout, "1\n3\n");
}

#[test]
fn needs_root_standard_streams_are_the_only_open_files() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.command(&["ls", "/proc/self/fd"]).run();
    // 3 is the directory ls itself has open.
    assert_eq!(ended.stdout, "0\n1\n2\n3\n");
}

#[test]
fn needs_root_stdin_reaches_the_program_and_ends() {
    let Some(pod) = needs_root!() else { return };
    let mut running = pod.command(&["cat"]).create().start().expect("started");
    running.write_stdin("hello from outside\n");
    assert_eq!(running.wait().stdout, "hello from outside\n");
}

#[test]
fn needs_root_user_groups_umask_and_home_are_those_asked_for() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [3000, 3001], "umask": 0o027});
    let ended = pod.shell("id -u; id -g; id -G; umask; echo $HOME; cat /proc/self/status | grep CapEff").run();
    assert_eq!(ended.stdout, "1000\n2000\n2000 3000 3001\n0027\n/home/app\nCapEff:\t0000000000000000\n");
}

#[test]
fn needs_root_capabilities_are_exactly_those_asked_for() {
    let Some(mut pod) = needs_root!() else { return };
    let some = json!(["CAP_CHOWN", "CAP_KILL"]);
    pod.spec["process"]["capabilities"] =
        json!({"bounding": some, "effective": some, "permitted": some, "inheritable": [], "ambient": []});
    let ended = pod.shell("grep Cap /proc/self/status").run();
    let masks: Vec<&str> = ended.stdout.split_whitespace().collect();
    let some = "0000000000000021";
    let none = "0000000000000000";
    assert_eq!(masks, ["CapInh:", none, "CapPrm:", some, "CapEff:", some, "CapBnd:", some, "CapAmb:", none]);
}

#[test]
fn needs_root_ambient_capabilities_reach_a_program_of_an_ordinary_user() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let some = json!(["CAP_NET_BIND_SERVICE"]);
    pod.spec["process"]["capabilities"] =
        json!({"bounding": some, "effective": some, "permitted": some, "inheritable": some, "ambient": some});
    let ended = pod.shell("grep -E 'CapEff|CapAmb' /proc/self/status").run();
    assert_eq!(ended.stdout, "CapEff:\t0000000000000400\nCapAmb:\t0000000000000400\n");
}

#[test]
fn needs_root_no_new_privileges_is_set_when_asked_for() {
    let Some(mut pod) = needs_root!() else { return };
    for (asked, shown) in [(true, "1"), (false, "0")] {
        pod.spec["process"]["noNewPrivileges"] = json!(asked);
        let ended = pod.shell("grep NoNewPrivs /proc/self/status").run();
        assert_eq!(ended.stdout.trim(), format!("NoNewPrivs:\t{shown}"));
    }
}

#[test]
fn needs_root_a_forbidden_call_answers_what_the_profile_says() {
    let Some(mut pod) = needs_root!() else { return };
    for no_new_privileges in [true, false] {
        pod.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        pod.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]
        });
        let ended = pod.shell("mkdir /tmp/x; grep -E '^Seccomp:|CapEff' /proc/self/status").run();
        assert!(ended.stderr.contains("No space left on device"), "{ended:?}");
        assert_eq!(
            ended.stdout, "CapEff:\t0000000000000021\nSeccomp:\t2\n",
            "the filter is on, and no capability is left over"
        );
    }
}

#[test]
fn needs_root_a_profile_that_allows_little_still_lets_the_program_start() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["noNewPrivileges"] = json!(true);
    pod.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["execve", "brk", "mmap", "mprotect", "munmap", "openat", "read", "write",
            "close", "fstat", "newfstatat", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "getrandom",
            "exit_group", "getuid", "access", "pread64", "prctl"]}]
    });
    let ended = pod.command(&["echo", "started"]).run();
    assert_eq!((ended.stdout.as_str(), ended.code), ("started\n", 0), "{ended:?}");
}

#[test]
fn needs_root_the_host_name_is_the_containers_own() {
    let Some(mut pod) = needs_root!() else { return };
    let before = rustix::system::uname().nodename().to_owned();
    pod.spec["hostname"] = json!("a-name-of-its-own");
    assert_eq!(pod.command(&["hostname"]).run().stdout, "a-name-of-its-own\n");
    assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
}

#[test]
fn needs_root_a_missing_program_is_told_in_the_words_tools_look_for() {
    let Some(pod) = needs_root!() else { return };
    let cases = [
        (&["nope"][..], r#"exec: "nope": executable file not found in $PATH"#, FailureKind::CommandNotFound),
        (
            &["/bin/nope"],
            r#"exec: "/bin/nope": stat /bin/nope: no such file or directory"#,
            FailureKind::CommandNotFound,
        ),
        (&["/etc/passwd"], r#"exec: "/etc/passwd": permission denied"#, FailureKind::CommandNotExecutable),
    ];
    for (args, message, kind) in cases {
        let error = pod.command(args).try_create().expect_err("no such program");
        assert_eq!(error.to_string(), message);
        assert_eq!(error.failure().expect("a step failed").kind, kind);
    }
}

#[test]
fn needs_root_a_file_that_is_no_program_fails_at_start() {
    let Some(pod) = needs_root!() else { return };
    pod.write_program("noise", "this is no program");
    let created = pod.command(&["/noise"]).create();
    let error = created.start().err().expect("no program");
    assert_eq!(error.to_string(), r#"exec: "/noise": exec format error"#);
    assert_eq!(error.failure().expect("a step failed").kind, FailureKind::CommandNotExecutable);
}

#[test]
fn needs_root_the_working_directory_is_made_and_entered() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["cwd"] = json!("/made/for/it");
    assert_eq!(pod.command(&["pwd"]).run().stdout, "/made/for/it\n");
}

#[test]
fn needs_root_nothing_runs_before_start_and_dropping_the_gate_ends_it() {
    let Some(pod) = needs_root!() else { return };
    let created = pod.shell("echo ran > /ran").create();
    assert!(!pod.exists("ran"));
    assert_eq!(created.abandon().code, 0);
    assert!(!pod.exists("ran"));
}

#[test]
fn needs_root_rlimits_and_sysctls_are_set() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    pod.spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    let ended = pod.shell("ulimit -Sn; ulimit -Hn; cat /proc/sys/kernel/shm_rmid_forced").run();
    assert_eq!(ended.stdout, "100\n200\n1\n");
}

#[test]
fn needs_root_signals_have_their_default_actions() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.command(&["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]).run();
    assert_eq!(ended.stdout, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn needs_root_a_pod_shares_ipc_and_pids_by_path() {
    let Some(mut pod) = needs_root!() else { return };
    let mut first = pod.shell("echo ready; cat; true").create().start().expect("started");
    first.read_until("ready");
    pod.id("second");
    pod.spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "uts"},
        {"type": "pid", "path": format!("/proc/{}/ns/pid", first.pid())},
        {"type": "ipc", "path": format!("/proc/{}/ns/ipc", first.pid())}
    ]);
    let ended = pod
        .shell(
            "test $$ -ne 1 && cat /proc/1/comm; (readlink /proc/1/ns/ipc; readlink /proc/self/ns/ipc) | uniq | wc -l",
        )
        .run();
    assert_eq!(ended.stdout, "sh\n1\n");
    first.close_and_wait();
}

#[test]
fn needs_root_a_prepared_stage_that_is_dropped_ends() {
    let Some(_pod) = needs_root!() else { return };
    let stage = support::stage();
    let pid = stage.pid();
    drop(stage);
    assert_eq!(support::reap(pid), 0);
}

#[test]
fn needs_root_an_ordinary_user_can_open_its_own_streams_again() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let ended = pod.shell("echo again > /dev/stdout; echo too > /proc/self/fd/2; ls /proc/self/fd | wc -l").run();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("again\n4\n", "too\n"));
}

/// The shape of containerd's default profile, taken by the kernel itself.
#[test]
fn needs_root_the_kernel_takes_a_filter_of_hundreds_of_names() {
    let Some(mut pod) = needs_root!() else { return };
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/syscalls_x86_64.rs")).expect("read");
    let names: Vec<&str> = text.split('"').skip(1).step_by(2).filter(|name| !name.starts_with("mkdir")).collect();
    assert!(names.len() > 300);
    pod.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]
    });
    let ended = pod.shell("mkdir /tmp/no; echo works").run();
    assert_eq!(ended.stdout, "works\n");
    assert!(ended.stderr.contains("Operation not permitted"), "{ended:?}");
}

#[test]
fn needs_root_no_working_directory_behind_a_descriptor_is_entered() {
    let Some(mut pod) = needs_root!() else { return };
    for number in 0..24 {
        pod.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let error = pod.command(&["pwd"]).try_create().expect_err("refused");
        let kind = error.failure().expect("a step failed").kind;
        assert!(matches!(kind, FailureKind::Other | FailureKind::NoDirectory), "{error}");
    }
}

#[test]
fn needs_root_files_this_process_leaves_open_do_not_reach_the_program() {
    let Some(pod) = needs_root!() else { return };
    let leaky = std::fs::File::open("/").expect("opened");
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).expect("kept over execve");
    assert_eq!(pod.command(&["ls", "/proc/self/fd"]).run().stdout, "0\n1\n2\n3\n");
}
