//! The real service with real containers of this machine's kernel: needs root, a cgroup2 tree and busybox.
#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

mod host;

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent::stages::Stages;
use agent_protocol::messages as m;
use host::{Host, code, process, read_all, soon};
use protobuf::MessageField;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use ttrpc::Code;

const AGENT: &str = env!("CARGO_BIN_EXE_kata-rs-agent");

/// A machine for containers, or none with a line that says what is missing.
struct Machine {
    host: Host,
    rootfs: tempfile::TempDir,
    id: String,
}

fn cgroup_root() -> Option<PathBuf> {
    let all = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    all.into_iter().find(|path| path.join("cgroup.controllers").exists())
}

impl Machine {
    fn new(test: &str) -> Option<Self> {
        let busybox = Path::new("/bin/busybox");
        let cgroup_root = cgroup_root().filter(|_| rustix::process::geteuid().is_root() && busybox.exists());
        let Some(cgroup_root) = cgroup_root else {
            assert!(std::env::var_os("CI").is_none(), "needs root, cgroup2 and busybox, and in CI nothing is skipped");
            eprintln!("skipped: {test} needs root, a cgroup2 tree and /bin/busybox");
            return None;
        };
        let facts = container::GuestFacts::read_at(&cgroup_root).unwrap();
        let rootfs = tempfile::tempdir().unwrap();
        for folder in ["bin", "proc", "dev", "sys", "tmp"] {
            fs::create_dir(rootfs.path().join(folder)).unwrap();
        }
        // By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
        let copied =
            std::process::Command::new("cp").arg(busybox).arg(rootfs.path().join("bin/busybox")).status().unwrap();
        assert!(copied.success());
        for applet in ["sh", "cat", "sleep", "echo", "ps", "tty", "stty", "head"] {
            symlink("busybox", rootfs.path().join("bin").join(applet)).unwrap();
        }
        let host = Host::with(Arc::new(Stages::with(facts, PathBuf::from(AGENT))));
        Some(Self { host, rootfs, id: format!("agent-{}-{test}", std::process::id()) })
    }

    fn spec(&self, script: &str, terminal: bool) -> Vec<u8> {
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 },
                "env": ["PATH=/bin"], "terminal": terminal,
            },
            "root": { "path": self.rootfs.path() },
            "mounts": [
                // A busybox of a distribution may be dynamic.
                { "destination": "/lib", "type": "bind", "source": "/lib", "options": ["rbind", "ro"] },
                { "destination": "/lib64", "type": "bind", "source": "/lib64", "options": ["rbind", "ro"] },
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] },
        });
        serde_json::to_vec(&spec).unwrap()
    }

    async fn run(&self, script: &str, stdio: m::Stdio) -> u32 {
        let pid = self.host.create_from(&self.id, self.spec(script, false), stdio).await.unwrap();
        assert_eq!(self.host.start(&self.id, "").await.unwrap(), pid);
        pid
    }
}

#[tokio::test]
async fn needs_root_a_container_lives_from_create_to_delete() {
    let Some(machine) = Machine::new("life") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    let (mut stdin, stdout) = (host.connect(1), host.connect(2));
    machine.run("echo $$; cat; exit 5", m::Stdio { stdin: 1, stdout: 2, ..Default::default() }).await;
    stdin.write_all(b"through the pipe\n").unwrap();
    drop(stdin);
    assert_eq!(read_all(stdout).await.unwrap(), b"1\nthrough the pipe\n");
    assert_eq!(host.status(id, "").await, 5);
    assert_eq!(host.delete(id, "").await.unwrap().exit_status, 5);
    assert_eq!(code(host.delete(id, "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn needs_root_an_exec_sees_its_container_and_dies_with_it() {
    let Some(machine) = Machine::new("exec") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    machine.run("exec sleep 1000", m::Stdio::new()).await;
    let stdout = host.connect(7);
    let add = |exec: &str, script: &str, stdout: u64| {
        m::AddExecRequest {
        process: process(id, exec),
        oci_process: serde_json::to_vec(
            &json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] }),
        )
        .unwrap(),
        stdio: MessageField::some(m::Stdio { stdout, ..Default::default() }),
        ..Default::default()
    }
    };
    host.client.add_exec(soon(), &add("e1", "ps -o args; exit 3", 7)).await.unwrap();
    host.client.add_exec(soon(), &add("e2", "exec sleep 2000", 0)).await.unwrap();
    host.start(id, "e1").await.unwrap();
    assert_eq!(host.status(id, "e1").await, 3);
    let shown = String::from_utf8(read_all(stdout).await.unwrap()).unwrap();
    assert!(shown.contains("sleep 1000"), "{shown}");
    host.start(id, "e2").await.unwrap();
    let container = m::ContainerRequest { container_id: id.into(), ..Default::default() };
    assert_eq!(host.client.pids(soon(), &container).await.unwrap().pids.len(), 2);
    host.signal(id, "", 9).await.unwrap();
    assert_eq!((host.status(id, "").await, host.status(id, "e2").await), (137, 137));
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_missing_program_is_named_and_nothing_is_left() {
    let Some(machine) = Machine::new("missing") else { return };
    let host = &machine.host;
    let spec = String::from_utf8(machine.spec("true", false)).unwrap().replace("/bin/sh", "/bin/nonexistent");
    let error = host.create_from(&machine.id, spec.into_bytes(), m::Stdio::new()).await.expect_err("no such program");
    assert!(error.to_string().contains("/bin/nonexistent"), "{error}");
    machine.run("exit 0", m::Stdio::new()).await;
    assert_eq!(host.status(&machine.id, "").await, 0);
    host.delete(&machine.id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_container_killed_at_its_gate_can_be_deleted_at_once() {
    let Some(machine) = Machine::new("gate") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    host.create_from(id, machine.spec("exit 0", false), m::Stdio::new()).await.unwrap();
    assert_eq!(host.delete(id, "").await.unwrap().exit_status, 137);
    host.create_from(id, machine.spec("exit 0", false), m::Stdio::new()).await.unwrap();
    host.signal(id, "", 9).await.unwrap();
    assert_eq!(host.status(id, "").await, 137);
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_terminal_is_the_containers_own() {
    let Some(machine) = Machine::new("terminal") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    let (keys, screen) = (host.connect(1), host.connect(2));
    let request = m::CreateContainerRequest {
        container_id: id.into(),
        oci_spec: machine.spec("tty; stty size", true),
        stdio: MessageField::some(m::Stdio { stdin: 1, stdout: 2, ..Default::default() }),
        columns: 100,
        rows: 30,
        ..Default::default()
    };
    host.client.create_container(soon(), &request).await.unwrap();
    host.start(id, "").await.unwrap();
    assert_eq!(read_all(screen).await.unwrap(), b"/dev/pts/0\r\n30 100\r\n");
    drop(keys);
    assert_eq!(host.status(id, "").await, 0);
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_paused_container_can_be_killed() {
    let Some(machine) = Machine::new("pause") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    machine.run("exec sleep 1000", m::Stdio::new()).await;
    let container = m::ContainerRequest { container_id: id.into(), ..Default::default() };
    host.client.pause(soon(), &container).await.unwrap();
    assert!(host.client.stats(soon(), &container).await.is_ok());
    host.signal(id, "", 9).await.unwrap();
    assert_eq!(host.status(id, "").await, 137);
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_bulk_output_arrives_whole() {
    let Some(machine) = Machine::new("bulk") else { return };
    let stdout = machine.host.connect(2);
    let before = std::time::Instant::now();
    machine.run("head -c 268435456 /dev/zero", m::Stdio { stdout: 2, ..Default::default() }).await;
    assert_eq!(read_all(stdout).await.unwrap().len(), 256 << 20);
    assert!(before.elapsed() < Duration::from_secs(15), "{:?}", before.elapsed());
    machine.host.status(&machine.id, "").await;
    machine.host.delete(&machine.id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_an_exec_that_cannot_be_born_holds_up_nobody_and_can_be_killed() {
    let Some(machine) = Machine::new("birth") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    machine.run("exec sleep 1000", m::Stdio::new()).await;
    // A process that is born into a frozen cgroup gets no further than one that root in the container has stopped.
    let freeze = cgroup_root().unwrap().join("containers").join(id).join("cgroup.freeze");
    fs::write(&freeze, "1").unwrap();
    let execs: Vec<_> = (0..12).map(|number| format!("e{number}")).collect();
    let mut starts = Vec::new();
    for exec in &execs {
        host.add_exec(id, exec, &["/bin/sh", "-c", "exit 4"]).await.unwrap();
        let (client, process) = (host.client.clone(), process(id, exec));
        let request = m::StartRequest { process, ..Default::default() };
        starts.push(tokio::spawn(async move { client.start(soon(), &request).await }));
    }
    let begun = std::time::Instant::now();
    let container = m::ContainerRequest { container_id: id.into(), ..Default::default() };
    assert!(host.client.stats(soon(), &container).await.is_ok());
    let other = format!("{id}-other");
    host.create_from(&other, machine.spec("exit 7", false), m::Stdio::new()).await.unwrap();
    host.start(&other, "").await.unwrap();
    assert_eq!(host.status(&other, "").await, 7);
    host.delete(&other, "").await.unwrap();
    // Both one whose turn it is and one that waits for its turn.
    for exec in [&execs[0], &execs[11]] {
        while host.signal(id, exec, 9).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(host.status(id, exec).await, 137);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    fs::write(&freeze, "0").unwrap();
    for (number, start) in starts.into_iter().enumerate() {
        let killed = number == 0 || number == 11;
        assert_eq!(start.await.unwrap().is_err(), killed, "e{number}");
        assert_eq!(host.status(id, &execs[number]).await, if killed { 137 } else { 4 });
    }
    host.signal(id, "", 9).await.unwrap();
    assert_eq!(host.status(id, "").await, 137);
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_container_joins_the_processes_of_another_and_ends_alone() {
    let Some(machine) = Machine::new("pids") else { return };
    let (host, id) = (&machine.host, machine.id.as_str());
    machine.run("exec sleep 1000", m::Stdio::new()).await;
    let (second, screen) = (format!("{id}-second"), host.connect(2));
    let joining = |of: &str, script: &str, stdout: u64| m::CreateContainerRequest {
        container_id: second.clone(),
        oci_spec: machine.spec(script, false),
        stdio: MessageField::some(m::Stdio { stdout, ..Default::default() }),
        pids_of: of.into(),
        ..Default::default()
    };
    host.client.create_container(soon(), &joining(id, "ps -o args; sleep 2000 & exit 3", 2)).await.unwrap();
    host.start(&second, "").await.unwrap();
    assert_eq!(host.status(&second, "").await, 3);
    let shown = String::from_utf8(read_all(screen).await.unwrap()).unwrap();
    assert!(shown.contains("sleep 1000"), "{shown}");
    host.delete(&second, "").await.unwrap();
    let container = m::ContainerRequest { container_id: id.into(), ..Default::default() };
    assert_eq!(host.client.pids(soon(), &container).await.unwrap().pids.len(), 1, "its first process lives on, alone");
    assert_eq!(code(host.client.create_container(soon(), &joining("nobody", "true", 0)).await), Code::NOT_FOUND);
    host.signal(id, "", 9).await.unwrap();
    host.status(id, "").await;
    let refused = host.client.create_container(soon(), &joining(id, "true", 0)).await;
    assert_eq!(code(refused), Code::FAILED_PRECONDITION);
    host.delete(id, "").await.unwrap();
}

#[tokio::test]
async fn needs_root_a_pod_without_a_first_container_shares_processes_all_the_same() {
    let Some(machine) = Machine::new("podpids") else { return };
    let (host, one, two) = (&machine.host, format!("{}-1", machine.id), format!("{}-2", machine.id));
    let create = async |id: &String, script: &str, stdout: u64| {
        let request = m::CreateContainerRequest {
            container_id: id.clone(),
            oci_spec: machine.spec(script, false),
            stdio: MessageField::some(m::Stdio { stdout, ..Default::default() }),
            pids_of_pod: true,
            ..Default::default()
        };
        let made = host.client.create_container(soon(), &request).await.unwrap();
        host.start(id, "").await.unwrap();
        made.pid
    };
    let pid = create(&one, "exec sleep 1000", 0).await;
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let screen = host.connect(2);
    // The orphan ends as a child of the namespace's first process; were nobody to reap it, it would be shown.
    create(&two, "sh -c 'sleep 0 &'; sleep 1; ps -o pid,stat,args; exit 3", 2).await;
    assert_eq!(host.status(&two, "").await, 3);
    let shown = String::from_utf8(read_all(screen).await.unwrap()).unwrap();
    assert!(shown.contains("sleep 1000") && !shown.contains(" Z "), "{shown}");
    host.delete(&two, "").await.unwrap();
    host.signal(&one, "", 9).await.unwrap();
    assert_eq!(host.status(&one, "").await, 137);
    host.delete(&one, "").await.unwrap();
    // What holds the namespace ends with the machine; here nobody would end it.
    let holders = processes_in(&namespace);
    assert_eq!(holders.len(), 1, "{holders:?}");
    holders.into_iter().for_each(|holder| kill_process(holder, Signal::KILL).unwrap());
}

/// Processes of this host that are in this pid namespace.
fn processes_in(namespace: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let inside = entries.filter(|entry| fs::read_link(entry.path().join("ns/pid")).is_ok_and(|ns| ns == namespace));
    inside.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}
