//! Kubernetes pods, told with specifications as containerd's CRI plugin writes them, and driven by `ctr`.
//!
//! The socket of CRI itself is another test's (`through_cri.rs`); here each field of a specification can be chosen.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tests::{Containerd, Finished, Residue, containerd::RUNTIME, needs, prefix, rootfs};

/// Size of the pod's shared memory in these tests; what CRI makes is larger.
const SHARED_MEMORY_BYTES: u64 = 8 << 20;

struct Host {
    containerd: Containerd,
    rootfs: PathBuf,
}

fn host() -> MutexGuard<'static, Host> {
    static HOST: LazyLock<Mutex<Host>> = LazyLock::new(|| {
        let containerd = Containerd::start();
        // Beside the socket, so that it goes with containerd's own folder: a static is never dropped.
        let rootfs = containerd.address().with_file_name("rootfs");
        fs::create_dir(&rootfs).expect("a folder");
        rootfs::unpack(&prefix::image("busybox"), &rootfs).expect("an image of ours");
        Mutex::new(Host { containerd, rootfs })
    });
    HOST.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A pod whose sandbox runs.
struct Pod<'host> {
    host: &'host Host,
    id: String,
    folder: tempfile::TempDir,
    containers: Vec<String>,
}

impl<'host> Pod<'host> {
    /// Makes a sandbox, its specification changed as the test wants it.
    fn start(host: &'host Host, change: impl FnOnce(&mut Value)) -> Self {
        let (pod, finished) = Self::try_start(host, change);
        finished.success();
        pod
    }

    /// Only what the runtime makes on the host for a pod.
    fn prepared(host: &'host Host) -> Self {
        let folder = tempfile::Builder::new().prefix("kata-rs-sandboxes-").tempdir().expect("a folder");
        let pod = Self { host, id: host.containerd.fresh_id(), folder, containers: Vec::new() };
        let shm = pod.shared_memory();
        fs::create_dir_all(&shm).expect("made");
        let size = std::ffi::CString::new(format!("mode=1777,size={SHARED_MEMORY_BYTES}")).expect("no zero byte");
        mount("shm", &shm, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, size.as_c_str()).expect("mounted");
        pod
    }

    fn try_start(host: &'host Host, change: impl FnOnce(&mut Value)) -> (Self, Finished) {
        let mut pod = Self::prepared(host);
        let mut spec = pod.spec("sandbox", &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]);
        spec["hostname"] = json!("web-0");
        spec["root"]["readonly"] = json!(true);
        spec["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
        ]);
        change(&mut spec);
        let finished = pod.run(&pod.id.clone(), &spec);
        (pod, finished)
    }

    fn shared_memory(&self) -> PathBuf {
        self.folder.path().join("sandboxes").join(&self.id).join("shm")
    }

    /// As CRI writes one, without namespaces.
    fn spec(&self, kind: &str, args: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
                "capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_ADMIN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
            },
            "root": {"path": self.host.rootfs},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                {"destination": "/dev/shm", "type": "bind", "source": self.shared_memory(), "options": ["rbind", "rw"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]}
            ],
            "annotations": {"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": self.id},
            "linux": {}
        })
    }

    /// A container that shares what all containers of a pod share, and has its own processes unless `pids_of` names whose.
    fn container(&self, pids_of: Option<&str>, args: &[&str]) -> Value {
        let mut spec = self.spec("container", args);
        let sandbox = self.pid(&self.id);
        let path = |kind: &str| json!({"type": kind, "path": format!("/proc/{sandbox}/ns/{kind}")});
        let pids = match pids_of {
            Some(id) => json!({"type": "pid", "path": format!("/proc/{}/ns/pid", self.pid(id))}),
            None => json!({"type": "pid"}),
        };
        spec["linux"]["namespaces"] = json!([pids, path("ipc"), path("uts"), {"type": "mount"}, {"type": "network", "path": format!("/proc/{sandbox}/ns/net")}]);
        spec
    }

    fn config(&self, spec: &Value) -> String {
        let path = self.folder.path().join("config.json");
        fs::write(&path, spec.to_string()).expect("written");
        path.display().to_string()
    }

    /// Runs a container in the background.
    fn run(&mut self, id: &str, spec: &Value) -> Finished {
        let config = self.config(spec);
        let finished = self.host.containerd.run(["run", "-d", "--runtime", RUNTIME, "--config", &config, id]);
        self.containers.push(id.to_owned());
        finished
    }

    /// Runs one in the background that lives until the pod ends.
    fn background(&mut self, pids_of: Option<&str>, line: &str) -> String {
        let id = self.host.containerd.fresh_id();
        let spec = self.container(pids_of, &["sh", "-c", &format!("{line}\nwhile :; do sleep 1; done")]);
        self.run(&id, &spec).success();
        id
    }

    /// Runs one to its end.
    fn foreground(&self, spec: &Value) -> Finished {
        let (id, config) = (self.host.containerd.fresh_id(), self.config(spec));
        self.host.containerd.run(["run", "--rm", "--runtime", RUNTIME, "--config", &config, &id])
    }

    /// What a shell line prints in a new container of the pod.
    fn sh(&self, pids_of: Option<&str>, line: &str) -> String {
        self.foreground(&self.container(pids_of, &["sh", "-c", line])).success().trim().to_owned()
    }

    /// What a shell line prints in a running container of the pod.
    fn exec(&self, id: &str, line: &str) -> String {
        let exec = self.host.containerd.fresh_id();
        self.host.containerd.run(["task", "exec", "--exec-id", &exec, id, "sh", "-c", line]).success().trim().to_owned()
    }

    /// The pid that containerd is told.
    fn pid(&self, id: &str) -> u32 {
        let tasks = self.host.containerd.run(["task", "ls"]).success();
        let mut rows = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&id)).unwrap_or_else(|| panic!("{id} is not in {tasks}"));
        row[1].parse().expect("a pid")
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        while let Some(id) = self.containers.pop() {
            self.host.containerd.run(["task", "rm", "--force", &id]);
            self.host.containerd.run(["container", "rm", &id]);
        }
        let _ = unmount(self.shared_memory(), UnmountFlags::DETACH);
    }
}

#[test]
fn containers_of_a_pod_share_ipc_and_host_name_and_see_only_their_own_processes() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    let app = pod.background(None, "");
    let links = "readlink /proc/self/ns/ipc /proc/self/ns/uts; hostname";
    assert_eq!(pod.exec(&app, links), pod.sh(None, links));
    assert!(pod.exec(&app, links).ends_with("web-0"));
    assert_ne!(pod.exec(&app, "readlink /proc/self/ns/pid"), pod.sh(None, "readlink /proc/self/ns/pid"));
    assert_eq!(pod.sh(None, "echo $$"), "1");
}

#[test]
fn a_pod_that_shares_its_processes_sees_those_of_all_its_containers() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    let sandbox = pod.id.clone();
    let app = pod.background(Some(&sandbox), "sleep 1000 &");
    assert_ne!(pod.sh(Some(&sandbox), "echo $$"), "1");
    assert!(
        pod.sh(Some(&sandbox), "cat /proc/1/cmdline | tr '\\0' ' '").contains("trap 'exit 0' TERM"),
        "the sandbox is init"
    );
    assert!(pod.exec(&app, "ls /proc | grep -c '^[0-9]'").parse::<u32>().expect("a number") >= 4);
    assert_eq!(pod.exec(&app, "readlink /proc/self/ns/pid"), pod.exec(&sandbox, "readlink /proc/self/ns/pid"));
    // An orphan is the sandbox's to reap, and its container's end ends it.
    let orphan = pod.sh(Some(&sandbox), "sh -c 'sleep 1000 & echo $!'");
    assert_eq!(
        pod.exec(&app, &format!("test -d /proc/{orphan} && grep -c 'State:.[^Z]' /proc/{orphan}/status || echo gone")),
        "gone"
    );
}

#[test]
fn a_debugger_joins_the_processes_of_the_container_it_names() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    let (one, two) = (pod.background(None, ": one"), pod.background(None, ": two"));
    assert_ne!(pod.pid(&one), pod.pid(&two));
    for (id, word) in [(&one, ": one"), (&two, ": two")] {
        assert!(pod.sh(Some(id), "tr '\\0' ' ' < /proc/1/cmdline").contains(word), "{word}");
    }
    // Its own end ends nothing of its target.
    assert!(pod.exec(&one, "echo alive").ends_with("alive"));
}

#[test]
fn shared_memory_is_one_of_the_guests_with_the_size_of_the_hosts() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    let app = pod.background(None, "echo from the app > /dev/shm/note");
    assert_eq!(
        pod.sh(None, "while ! test -s /dev/shm/note; do sleep 0.1; done; cat /dev/shm/note; stat -f -c %T /dev/shm"),
        "from the app\ntmpfs"
    );
    assert_eq!(pod.exec(&app, "df -k /dev/shm | tail -1 | awk '{print $2}'"), (SHARED_MEMORY_BYTES >> 10).to_string());
    let full =
        pod.sh(None, "dd if=/dev/zero of=/dev/shm/big bs=1M count=16 2>&1 | grep -c 'No space'; rm /dev/shm/big");
    assert_eq!(full, "1");
    assert_eq!(fs::read_dir(pod.shared_memory()).expect("listed").count(), 0, "nothing of it is on the host");
}

#[test]
fn what_the_sandbox_sets_holds_for_the_pod() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let sysctls = json!({"kernel.shm_rmid_forced": "1", "kernel.msgmax": "9000", "fs.mqueue.msg_max": "20"});
    let pod = Pod::start(&host, |spec| spec["linux"]["sysctl"] = sysctls);
    let read = "cd /proc/sys; cat kernel/shm_rmid_forced kernel/msgmax fs/mqueue/msg_max";
    assert_eq!(pod.sh(None, read), "1\n9000\n20");
}

#[test]
fn a_sysctl_of_the_whole_kernel_is_refused_as_elsewhere() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let (_pod, finished) = Pod::try_start(&host, |spec| spec["linux"]["sysctl"] = json!({"vm.swappiness": "10"}));
    assert!(finished.code() != 0 && finished.stderr.contains("vm.swappiness"), "{finished:?}");
}

#[test]
fn the_hosts_namespaces_are_refused_by_name_and_leave_nothing() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    for (kind, words) in [("network", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC")] {
        let before = Residue::now();
        let without = |spec: &mut Value| {
            let list = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            list.retain(|namespace| namespace["type"] != kind);
        };
        let (pod, finished) = Pod::try_start(&host, without);
        assert!(finished.code() != 0 && finished.stderr.contains(words), "{finished:?}");
        drop(pod);
        before.assert_nothing_new();
    }
    let by_flag = ["run", "--rm", "--runtime", RUNTIME, "--net-host"];
    let image = host.containerd.import("busybox");
    let finished = host.containerd.run(by_flag.into_iter().chain([&*image, "net-host", "true"]));
    assert!(finished.stderr.contains("hostNetwork"), "{finished:?}");
}

#[test]
fn a_strangers_processes_are_refused() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let pod = Pod::start(&host, |_| ());
    let mut spec = pod.container(None, &["true"]);
    spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/proc/1/ns/pid"});
    let finished = pod.foreground(&spec);
    assert!(finished.code() != 0 && finished.stderr.contains("/proc/1/ns/pid"), "{finished:?}");
}

#[test]
fn a_pod_holds_thirty_two_containers_and_a_late_one() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    // As an init container: it ends before the others start.
    assert_eq!(pod.sh(None, "echo prepared"), "prepared");
    let ids: Vec<_> = (0..32).map(|_| pod.background(None, "")).collect();
    let pids: std::collections::BTreeSet<_> = ids.iter().map(|id| pod.pid(id)).collect();
    assert_eq!(pids.len(), 32);
    assert_eq!(pod.exec(&ids[31], "echo last"), "last");
    assert!(pod.sh(Some(&ids[16]), "tr '\\0' ' ' < /proc/1/cmdline").contains("sleep 1"));
}

#[test]
fn a_container_writes_where_the_kubelet_reads() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let pod = Pod::start(&host, |_| ());
    let message = pod.folder.path().join("termination-log");
    let hosts = pod.folder.path().join("etc-hosts");
    fs::write(&message, "").expect("written");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    let mut spec = pod.container(
        None,
        &["sh", "-c", "cat /etc/hosts; echo it broke > /dev/termination-log; echo x 2>&1 >> /etc/hosts; exit 3"],
    );
    let file = |destination: &str, source: &Path, mode: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode]});
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    mounts.push(file("/dev/termination-log", &message, "rw"));
    mounts.push(file("/etc/hosts", &hosts, "ro"));
    let finished = pod.foreground(&spec);
    assert_eq!(finished.code(), 3, "{finished:?}");
    assert!(finished.stdout.starts_with("127.0.0.1 localhost\n"), "{finished:?}");
    assert_eq!(fs::read_to_string(&message).expect("there"), "it broke\n");
    assert_eq!(fs::read_to_string(&hosts).expect("there"), "127.0.0.1 localhost\n");
}

#[test]
fn what_cannot_be_run_is_told_in_the_words_of_runc() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let mut pod = Pod::start(&host, |_| ());
    let app = pod.background(None, "");
    let exec = |flags: &[&str], command: &str| {
        let exec = host.containerd.fresh_id();
        let words =
            ["task", "exec", "--exec-id", &exec].into_iter().chain(flags.iter().copied()).chain([&*app, command]);
        let finished = host.containerd.run(words);
        assert_ne!(finished.code(), 0);
        finished.stderr
    };
    let prefix = "OCI runtime exec failed: exec failed: unable to start container process: ";
    for (flags, command, words) in [
        (&[][..], "nosuch", r#"exec: "nosuch": executable file not found in $PATH"#),
        (&[], "/bin/nosuch", r#"exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory"#),
        (&[], "/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        (&[], "/etc", r#"exec: "/etc": is a directory"#),
        (
            &["--cwd", "/nowhere"],
            "true",
            r#"chdir to cwd ("/nowhere") set in config.json failed: no such file or directory"#,
        ),
    ] {
        let told = exec(flags, command);
        assert!(told.contains(&format!("{prefix}{words}")), "{told}");
    }
    let finished = pod.foreground(&pod.container(None, &["nosuch"]));
    let words = r#"OCI runtime create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH"#;
    assert!(finished.code() != 0 && finished.stderr.contains(words), "{finished:?}");
    assert_eq!(pod.exec(&app, "echo fine"), "fine");
}

#[test]
fn a_process_is_who_and_has_what_its_pod_says() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let host = host();
    let pod = Pod::start(&host, |_| ());
    let script = "grep -E '^(Uid|Gid|Groups|CapAmb|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n; \
                  cat /proc/self/oom_score_adj; touch /x 2>&1; ls -A /sys/firmware | wc -l; \
                  echo 1 2>&1 >/proc/sys/kernel/msgmax; mkdir /tmp/x 2>&1; test -w /sys/fs/cgroup || echo cgroup is ro; cat /proc/self/cgroup";
    let mut spec = pod.container(None, &["sh", "-c", script]);
    spec["root"]["readonly"] = json!(true);
    let process = &mut spec["process"];
    process["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [2000, 3000]});
    let bind = json!(["CAP_NET_BIND_SERVICE"]);
    process["capabilities"] =
        json!({"bounding": bind, "effective": bind, "permitted": bind, "inheritable": bind, "ambient": bind});
    process["noNewPrivileges"] = json!(true);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 777, "hard": 778}]);
    process["oomScoreAdj"] = json!(-998);
    process["apparmorProfile"] = json!("cri-containerd.apparmor.d");
    process["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    spec["linux"]["maskedPaths"] = json!(["/sys/firmware", "/proc/kcore"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}));
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}));
    mounts.swap(3, 4);
    let told = pod.foreground(&spec).success();
    for line in [
        "Uid:\t1000\t1000\t1000\t1000",
        "Gid:\t2000\t2000\t2000\t2000",
        "Groups:\t2000 3000",
        "CapEff:\t0000000000000400",
        "CapAmb:\t0000000000000400",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "\n777\n-998\n",
        "Read-only file system\n0\n",
        "can't create /proc/sys/kernel/msgmax: Read-only file system",
        "Operation not permitted",
        "cgroup is ro",
        "0::/\n",
    ] {
        assert!(told.replace("Groups:\t2000 3000 ", "Groups:\t2000 3000").contains(line), "{line:?} is not in {told}");
    }
}
