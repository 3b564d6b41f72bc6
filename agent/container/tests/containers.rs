//! Real containers on this machine: namespaces, mounts, terminals and exits, as root, from a root file system of busybox.
//!
//! Every test here needs root and a cgroup2 tree; without them it says so by name and passes, except in CI, where it fails.

mod support;

use container::{FailureKind, StdioFds, TerminalSize};
use serde_json::json;
use support::needs_root;

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
fn needs_root_masked_files_and_directories_show_nothing() {
    let Some(mut pod) = needs_root!() else { return };
    pod.write_file("secret", "no");
    pod.write_file("dir/inside", "no");
    pod.spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/secret", "/dir", "/does/not/exist"]);
    let ended = pod
        .shell(
            "cat /proc/kcore /secret; ls /dir; touch /dir/x; echo over > /secret; cat /secret; stat -c %t:%T /secret",
        )
        .run();
    assert_eq!(ended.stdout, "1:3\n", "{ended:?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
    assert_eq!(pod.read_file("secret"), "no");
}

#[test]
fn needs_root_readonly_paths_and_a_readonly_root_refuse_writing() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["root"]["readonly"] = json!(true);
    pod.spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let ended =
        pod.shell("echo x > /file; echo y > /proc/sys/kernel/hostname; echo z > /dev/shm/f && cat /dev/shm/f").run();
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:?}");
    assert_eq!(ended.stdout, "z\n");
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
fn needs_root_dev_has_its_devices_and_links() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["linux"]["devices"] =
        json!([{"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 1, "fileMode": 0o640, "uid": 5, "gid": 6}]);
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/null /dev/full /dev/sub/loop; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo gone > /dev/null";
    let ended = pod.shell(script).run();
    let wanted = "/dev/null character special file 1:3 666 0:0\n/dev/full character special file 1:7 666 0:0\n\
                  /dev/sub/loop block special file 7:1 640 5:6\n\
                  /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    assert_eq!(ended.stdout, wanted, "{ended:?}");
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
fn needs_root_binds_show_files_and_their_options_hold() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    std::fs::write(volume.path().join("data"), "from outside").expect("written");
    let file = volume.path().join("data");
    pod.mount(json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rw", "rprivate"]}));
    pod.mount(json!({"destination": "/etc/one", "type": "bind", "source": file, "options": ["bind", "ro", "noexec", "nosuid"]}));
    let script = "cat /volume/data; echo; cat /etc/one; echo; echo back > /volume/back; echo no > /etc/one; grep /etc/one /proc/mounts";
    let ended = pod.shell(script).run();
    assert!(ended.stdout.starts_with("from outside\nfrom outside\n"), "{ended:?}");
    assert!(ended.stdout.contains("ro,nosuid,noexec"), "{ended:?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(volume.path().join("back")).expect("written from inside"), "back\n");
}

#[test]
fn needs_root_recursive_readonly_holds_for_mounts_below() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(volume.path().join("below")).expect("a directory");
    let below = support::Tmpfs::mount(&volume.path().join("below"));
    pod.mount(json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rro"]}));
    let ended = pod.shell("touch /volume/x; touch /volume/below/y").run();
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:?}");
    drop(below);
}

#[test]
fn needs_root_a_link_in_the_image_cannot_lead_a_mount_outside() {
    let Some(mut pod) = needs_root!() else { return };
    let outside = tempfile::tempdir().expect("a directory");
    pod.symlink(outside.path(), "volume");
    pod.mount(json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}));
    let ended = pod.shell("touch /volume/here && ls /volume").run();
    assert_eq!(ended.stdout, "here\n", "{ended:?}");
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
    assert!(pod.exists(outside.path().strip_prefix("/").expect("absolute")), "the target was made inside");
}

#[test]
fn needs_root_proc_behind_a_link_is_refused() {
    let Some(pod) = needs_root!() else { return };
    pod.remove_dir("proc");
    pod.symlink("tmp".as_ref(), "proc");
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("could not mount /proc"), "{error}");
}

#[test]
fn needs_root_a_mount_that_a_link_leads_into_proc_is_refused() {
    let Some(mut pod) = needs_root!() else { return };
    pod.symlink("/proc".as_ref(), "innocent");
    pod.mount(json!({"destination": "/innocent/sys", "type": "tmpfs", "source": "tmpfs"}));
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("a link leads into /proc"), "{error}");
}

#[test]
fn needs_root_a_terminal_has_its_size_and_is_the_console() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let size = TerminalSize { columns: 101, rows: 37 };
    let ended = pod
        .shell("stty size; tty; test -t 0 && test -t 2 && echo all; stat -c %t /dev/console; echo c > /dev/console")
        .terminal(size)
        .run();
    assert_eq!(ended.stdout, "37 101\r\n/dev/pts/0\r\nall\r\n88\r\nc\r\n");
}

#[test]
fn needs_root_a_terminal_follows_when_it_is_resized_and_passes_ctrl_c() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let script = "trap 'stty size; exit 7' WINCH; echo ready; while true; do read line; done";
    let mut running =
        pod.shell(script).terminal(TerminalSize { columns: 80, rows: 24 }).create().start().expect("started");
    running.read_until("ready");
    running.resize(TerminalSize { columns: 55, rows: 44 });
    let ended = running.wait();
    assert!(ended.stdout.contains("44 55"), "{ended:?}");
    assert_eq!(ended.code, 7);
}

#[test]
fn needs_root_a_console_link_in_the_image_covers_nothing_else() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    pod.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev");
    pod.symlink("/etc/passwd".as_ref(), "dev/console");
    let error =
        pod.command(&["true"]).terminal(TerminalSize { columns: 80, rows: 24 }).try_create().expect_err("refused");
    assert!(error.to_string().contains("/dev/console is neither"), "{error}");
}

#[test]
fn needs_root_pipes_for_a_terminal_are_refused() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("wants a terminal"), "{error}");
    drop(StdioFds::Terminal { size: None });
}

#[test]
fn needs_root_an_exec_joins_every_namespace_and_the_cgroup() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["hostname"] = json!("joined");
    let links = "for n in mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done";
    let mut first = pod.shell(&format!("{links}; echo ready; cat; true")).create().start().expect("started");
    first.read_until("ready");
    let exec = pod
        .exec(&first, &["sh", "-c", &format!("{links}; hostname; cat /proc/1/comm; grep ^0 /proc/self/cgroup")])
        .run();
    let firsts = first.close_and_wait().stdout;
    let firsts = firsts.strip_suffix("ready\n").expect("read so far");
    let ids = exec.stdout.strip_prefix(firsts).unwrap_or_else(|| panic!("{firsts} and {}", exec.stdout));
    assert!(ids.starts_with("joined\nsh\n"), "{ids}");
    assert!(ids.ends_with("0::/\n"), "{ids}");
}

#[test]
fn needs_root_an_exec_can_have_a_terminal_and_another_user() {
    let Some(mut pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    pod.spec["process"]["terminal"] = json!(true);
    let exec = pod.exec(&first, &["sh", "-c", "id -u; tty; stty size; stat -c %u /dev/pts/0"]);
    let ended = exec.terminal(TerminalSize { columns: 90, rows: 30 }).run();
    assert_eq!(ended.stdout, "1000\r\n/dev/pts/0\r\n30 90\r\n1000\r\n");
    assert_eq!(first.close_and_wait().code, 0);
}

#[test]
fn needs_root_an_exec_of_nothing_fails_alone() {
    let Some(pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    let error = pod.exec(&first, &["nope"]).try_create().expect_err("no such program");
    assert_eq!(error.to_string(), r#"exec: "nope": executable file not found in $PATH"#);
    assert_eq!(first.close_and_wait().code, 0);
}

#[test]
fn needs_root_an_exec_in_an_ended_container_is_refused() {
    let Some(pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    let handle = first.duplicate();
    first.close_and_wait();
    let error = pod.exec(&handle, &["true"]).try_create().expect_err("nothing to join");
    assert!(error.to_string().contains("could not join the container"), "{error}");
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
fn needs_root_the_guests_root_is_out_of_reach() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.shell("cd /; cd ../../..; pwd; cat /proc/mounts | wc -l; ls /work 2>&1").run();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[0], "/");
    assert!(lines[1].parse::<u32>().expect("a number") < 15, "{ended:?}");
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
fn needs_root_a_node_made_for_another_device_cannot_be_opened() {
    let Some(mut pod) = needs_root!() else { return };
    let some = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    pod.spec["process"]["capabilities"] = json!({"bounding": some, "effective": some, "permitted": some});
    pod.spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    let script = "mknod /tmp/disk b 254 0; mknod /tmp/mem c 1 1; mknod /tmp/zero c 1 5; \
                  for d in disk mem zero; do head -c 1 /tmp/$d > /dev/null && echo $d; done";
    let ended = pod.shell(script).run();
    assert_eq!(ended.stdout, "zero\n", "{ended:?}");
    assert_eq!(ended.stderr.matches("Operation not permitted").count(), 2, "{ended:?}");
}

#[test]
fn needs_root_a_privileged_container_can_open_every_device() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["linux"]["resources"]["devices"] =
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]);
    pod.spec["linux"]["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    let ended = pod.shell("echo -n > /dev/kmsg && echo opened").run();
    assert_eq!(ended.stdout, "opened\n", "{ended:?}");
}

#[test]
fn needs_root_an_ordinary_user_can_open_its_own_streams_again() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let ended = pod.shell("echo again > /dev/stdout; echo too > /proc/self/fd/2; ls /proc/self/fd | wc -l").run();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("again\n4\n", "too\n"));
}

#[test]
fn needs_root_an_exec_follows_its_container_into_cgroups_made_inside() {
    let Some(mut pod) = needs_root!() else { return };
    for mount in pod.spec["mounts"].as_array_mut().expect("mounts") {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["rw"]);
        }
    }
    let script = "cd /sys/fs/cgroup; mkdir inner; echo 1 > inner/cgroup.procs; read first rest < cgroup.controllers; \
                  echo +$first > cgroup.subtree_control; echo ready; cat; true";
    let mut first = pod.shell(script).create().start().expect("started");
    first.read_until("ready");
    let ended = pod.exec(&first, &["grep", "^0", "/proc/self/cgroup"]).run();
    assert_eq!(ended.stdout, "0::/inner\n", "{ended:?}");
    assert_eq!(first.close_and_wait().code, 0);
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

#[test]
fn needs_root_a_null_device_of_the_images_own_is_not_trusted() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev");
    pod.write_file("dev/null", "catches everything");
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert_eq!(error.to_string(), "could not make the device /dev/null: the image has something else there");
}

#[test]
fn needs_root_nothing_is_left_mounted_outside() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    pod.mount(
        json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rshared"]}),
    );
    assert_eq!(pod.shell("true").run().code, 0);
    pod.mount(json!({"destination": "/late", "type": "nosuchfs", "source": "none"}));
    let error = pod.shell("true").try_create().expect_err("no such file system");
    assert!(error.to_string().contains("could not mount /late"), "{error}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(pod.root().to_str().expect("text"))).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn needs_root_a_root_can_be_shared_or_slave_inside() {
    let Some(mut pod) = needs_root!() else { return };
    for (asked, shown) in [(json!("shared"), "shared:"), (json!("unbindable"), "unbindable"), (json!(null), " - ")] {
        pod.spec["linux"]["rootfsPropagation"] = asked;
        let ended = pod
            .shell(
                "grep ' / / ' /proc/self/mountinfo || grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo",
            )
            .run();
        assert!(ended.stdout.contains(shown), "{ended:?}");
    }
}
