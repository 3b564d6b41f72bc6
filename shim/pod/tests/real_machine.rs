//! A pod on a real machine: our VMM, our kernel, our agent, the file server. Needs root, /dev/kvm and a staged installation (`make build`), and says
//! so by name when one is missing.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use pod::{
    ContainerSpec, ErrorKind, ExecSpec, Installation, InterfaceRules, Pod, PodError, PodNetwork, PodSpec, ProcessId,
    RootFs, StdioWanted,
};
use serde_json::json;

struct Stage {
    root: tempfile::TempDir,
    installation: Installation,
    mounts_before: String,
}

/// With KATA_RS_TEST_LOG set, what the library logs is shown.
struct ToStderr;

impl log::Log for ToStderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

fn host_mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("read")
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        if std::env::var_os("KATA_RS_TEST_LOG").is_some() && log::set_logger(&ToStderr).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
        let staged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stage");
        let installation = Installation::at(&std::env::var_os("KATA_RS_PREFIX").map_or(staged, PathBuf::from));
        let missing = [
            ("root", !rustix::process::geteuid().is_root()),
            ("/dev/kvm", !Path::new("/dev/kvm").exists()),
            ("an installation (make build)", !installation.vmm.exists() || !installation.guest_image.exists()),
            ("/bin/busybox", !Path::new("/bin/busybox").exists()),
        ];
        if let Some((what, _)) = missing.iter().find(|(_, missing)| *missing) {
            eprintln!("skipped: {test} needs {what}");
            return None;
        }
        let root = tempfile::tempdir().expect("a folder");
        make_rootfs(&root.path().join("rootfs"));
        Some(Self { root, installation, mounts_before: host_mounts() })
    }

    fn state_dir(&self) -> PathBuf {
        self.root.path().join("kata-rs/test/p1")
    }

    fn pod_spec(&self) -> PodSpec {
        PodSpec {
            id: "p1".into(),
            state_dir: self.state_dir(),
            vcpus: 1,
            memory_mib: 128,
            hostname: "real".into(),
            sysctls: Default::default(),
            resolv_conf: String::new(),
            network: PodNetwork::None,
            interface_rules: Default::default(),
            extra_cmdline: String::new(),
        }
    }

    async fn launch(&self) -> Result<Pod, PodError> {
        Pod::launch(&self.installation, self.pod_spec()).await
    }

    fn container(&self, script: &str, mounts: serde_json::Value) -> ContainerSpec {
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        ];
        all.extend(mounts.as_array().expect("a list").iter().cloned());
        let oci = json!({
            "ociVersion": "1.0.2",
            "process": process(script),
            "root": {"path": "rootfs"},
            "hostname": "inside",
            "mounts": all,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]}
        });
        ContainerSpec {
            id: "c1".into(),
            oci: serde_json::from_value(oci).expect("a spec"),
            rootfs: RootFs::Folder(self.root.path().join("rootfs")),
            stdio: StdioWanted { stdin: true, stdout: true, stderr: true, terminal: None },
        }
    }

    /// No file, mount or process of the pod is there.
    fn assert_nothing_left(&self) {
        assert!(!self.state_dir().exists() && !self.root.path().join("kata-rs").exists(), "files are left");
        assert_eq!(host_mounts(), self.mounts_before, "mounts are left");
        let ours = self.root.path().to_str().expect("plain").to_owned();
        let left: Vec<String> = std::fs::read_dir("/proc")
            .expect("read")
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
            .filter(|line| line.contains(&ours))
            .collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
    }
}

fn process(script: &str) -> serde_json::Value {
    json!({"cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

/// A root filesystem with busybox and what it is linked to.
fn make_rootfs(rootfs: &Path) {
    let bin = rootfs.join("bin");
    std::fs::create_dir_all(&bin).expect("made");
    ["proc", "dev", "tmp", "data"].iter().for_each(|name| std::fs::create_dir(rootfs.join(name)).expect("made"));
    // By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
    let copied = Command::new("cp").arg("/bin/busybox").arg(bin.join("busybox")).status().expect("cp runs");
    assert!(copied.success());
    for applet in
        ["sh", "echo", "cat", "sleep", "hostname", "uname", "wc", "chown", "stat", "touch", "mkdir", "ls", "head"]
    {
        std::fs::hard_link(bin.join("busybox"), bin.join(applet)).expect("linked");
    }
    let listed = Command::new("ldd").arg("/bin/busybox").output().expect("ldd");
    for library in String::from_utf8_lossy(&listed.stdout).split_ascii_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = rootfs.join(&library[1..]);
        std::fs::create_dir_all(target.parent().expect("has one")).expect("made");
        std::fs::copy(library, target).expect("copied");
    }
}

fn first() -> ProcessId {
    ProcessId::first("c1")
}

async fn read_all(stream: Option<UnixStream>) -> String {
    let mut stream = stream.expect("wanted");
    stream.set_nonblocking(false).expect("a socket");
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    });
    read.await.expect("ran").expect("read")
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

#[tokio::test]
async fn needs_kvm_a_container_runs_in_its_own_kernel_and_leaves_nothing() {
    let Some(stage) = Stage::new("a container on a real machine") else { return };
    let volume = stage.root.path().join("volume");
    std::fs::create_dir(&volume).expect("made");
    std::fs::write(volume.join("from-host"), "hello from the host").expect("written");
    let begun = Instant::now();
    let pod = within(stage.launch()).await.expect("launched");
    let launched = begun.elapsed();
    let volumes = json!([{"destination": "/data", "type": "bind", "source": volume, "options": ["rbind"]}]);
    let script = "echo out; echo err >&2; cat /data/from-host; cat > /data/from-guest; uname -r; hostname; exit 7";
    let (pid, mut streams) = within(pod.create_container(stage.container(script, volumes))).await.expect("created");
    assert!(pid > 0);
    let created = begun.elapsed();
    within(pod.start(&first())).await.expect("started");
    let started = begun.elapsed();
    let mut stdin = streams.stdin.take().expect("wanted");
    stdin.write_all(b"hello from stdin").expect("written");
    drop(stdin);
    let (out, err) =
        within(async { tokio::join!(read_all(streams.stdout.take()), read_all(streams.stderr.take())) }).await;
    let exit = within(pod.wait(&first())).await.expect("ended");
    let ended = begun.elapsed();
    assert_eq!(exit.status, 7, "{out}{err}");
    assert!(out.starts_with("out\nhello from the host") && out.contains("inside"), "{out}");
    assert!(
        !out.contains(rustix::system::uname().release().to_str().expect("plain")),
        "it is the host's kernel: {out}"
    );
    assert_eq!(err, "err\n");
    assert_eq!(std::fs::read_to_string(volume.join("from-guest")).expect("shared"), "hello from stdin");
    assert_eq!(within(pod.delete(&first())).await.expect("deleted").status, 7);
    let deleted = begun.elapsed();
    let report = pod.report().await.expect("told");
    let base = pod.launch_marks()[0].monotonic_nanos;
    let mut marks: Vec<_> = pod
        .launch_marks()
        .iter()
        .chain(&report.marks)
        .map(|m| (m.monotonic_nanos.saturating_sub(base) / 1000, &m.name))
        .collect();
    marks.sort();
    within(pod.stop()).await.expect("stopped");
    eprintln!(
        "launched {launched:?}, created {created:?}, started {started:?}, ended {ended:?}, deleted {deleted:?}, stopped {:?}",
        begun.elapsed()
    );
    marks.iter().for_each(|(micros, name)| eprintln!("{micros:>8} us  {name}"));
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_an_exec_and_a_kill() {
    let Some(stage) = Stage::new("an exec and a kill") else { return };
    let pod = within(stage.launch()).await.expect("launched");
    within(pod.create_container(stage.container("sleep 1000", json!([])))).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let exec = |id: &str, script: &str| ExecSpec {
        container_id: "c1".into(),
        exec_id: id.into(),
        process: serde_json::from_value(process(script)).expect("a process"),
        stdio: StdioWanted { stdout: true, ..Default::default() },
    };
    let e1 = ProcessId { container_id: "c1".into(), exec_id: "e1".into() };
    let mut streams = within(pod.add_exec(exec("e1", "echo from the exec; exit 4"))).await.expect("registered");
    within(pod.start(&e1)).await.expect("started");
    assert_eq!(within(read_all(streams.stdout.take())).await, "from the exec\n");
    assert_eq!(within(pod.wait(&e1)).await.expect("ended").status, 4);
    within(pod.delete(&e1)).await.expect("deleted");
    let mut missing = exec("e2", "");
    missing.process.set_args(Some(vec!["/no/such/command".into()]));
    within(pod.add_exec(missing)).await.expect("registered");
    let e2 = ProcessId { container_id: "c1".into(), exec_id: "e2".into() };
    let error = within(pod.start(&e2)).await.expect_err("missing");
    assert!(error.message.contains("/no/such/command"), "{}", error.message);
    within(pod.delete(&e2)).await.expect("deleted");
    assert!(!within(pod.pids("c1")).await.expect("listed").is_empty());
    assert!(within(pod.stats("c1")).await.expect("read").memory_current > 0);
    within(pod.signal(&first(), 9, true)).await.expect("sent");
    assert_eq!(within(pod.wait(&first())).await.expect("ended").status, 137);
    within(pod.delete(&first())).await.expect("deleted");
    within(pod.stop()).await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_a_killed_vmm_is_an_exit_137_and_leaves_nothing() {
    let Some(stage) = Stage::new("a killed VMM") else { return };
    let pod = within(stage.launch()).await.expect("launched");
    within(pod.create_container(stage.container("sleep 1000", json!([])))).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let vmm = rustix::process::Pid::from_raw(i32::try_from(pod.vmm_pid()).expect("small")).expect("a pid");
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).expect("killed");
    assert_eq!(within(pod.wait(&first())).await.expect("told").status, 137);
    assert!(pod.gone().await.contains("signal: 9"), "{}", pod.gone().await);
    within(pod.stop()).await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_a_killed_file_server_ends_the_machine() {
    let Some(stage) = Stage::new("a killed file server") else { return };
    let pod = within(stage.launch()).await.expect("launched");
    within(pod.create_container(stage.container("sleep 1000", json!([])))).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let folder = stage.state_dir();
    let record = std::fs::read_to_string(folder.join("record")).expect("read");
    let server = record.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let server = server.map(|entry| entry["process"].clone()).find(|p| p["what"] == "file server").expect("recorded");
    let pid = rustix::process::Pid::from_raw(server["pid"].as_i64().expect("a number") as i32).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    assert_eq!(within(pod.wait(&first())).await.expect("told").status, 137);
    eprintln!("{}", pod.gone().await);
    within(pod.stop()).await.expect("stopped");
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_a_machine_too_small_to_boot_is_refused() {
    let Some(stage) = Stage::new("a machine too small to boot") else { return };
    let spec = PodSpec { memory_mib: 8, ..stage.pod_spec() };
    let error = within(Pod::launch(&stage.installation, spec)).await.expect_err("too small");
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("8 MiB of memory asked for"), "{}", error.message);
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_stopping_ends_what_still_runs() {
    let Some(stage) = Stage::new("stop with a living container") else { return };
    let pod = within(stage.launch()).await.expect("launched");
    within(pod.create_container(stage.container("sleep 1000", json!([])))).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let begun = Instant::now();
    within(pod.stop()).await.expect("stopped");
    eprintln!("stop with a living container: {:?}", begun.elapsed());
    assert_eq!(within(pod.wait(&first())).await.expect("told").status, 137);
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_a_guest_image_of_noise_fails_with_the_console_and_leaves_nothing() {
    let Some(stage) = Stage::new("a broken guest image") else { return };
    let mut image = std::fs::read(&stage.installation.guest_image).expect("read");
    image[4096..].fill(0xa5);
    let broken = stage.root.path().join("broken.erofs");
    std::fs::write(&broken, image).expect("written");
    let installation = Installation { guest_image: broken, ..stage.installation.clone() };
    let error = within(Pod::launch(&installation, stage.pod_spec())).await.expect_err("no agent in it");
    eprintln!("{}", error.message);
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded), "{error:?}");
    assert!(error.message.contains("last words of the guest's console"), "{}", error.message);
    stage.assert_nothing_left();
}

/// Processes whose command line or environment names the test's folder, zombies aside.
fn carriers_of(word: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("read").filter_map(Result::ok);
    let said = |path: PathBuf, file: &str| {
        std::fs::read(path.join(file)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    };
    entries
        .map(|entry| said(entry.path(), "cmdline") + &said(entry.path(), "environ"))
        .filter(|text| text.contains(word))
        .collect()
}

const OWNED_FOLDER: &str = "KATA_RS_TEST_OWNED_FOLDER";

/// Not a test of its own: the process that the next test kills. It makes a pod and waits for its death.
#[tokio::test]
#[ignore = "started by needs_kvm_a_killed_owner_leaves_what_clean_up_undoes"]
async fn owner_to_be_killed() {
    let Some(folder) = std::env::var_os(OWNED_FOLDER) else { return };
    let Some(mut stage) = Stage::new("an owner to be killed") else { return };
    let spec = PodSpec { state_dir: PathBuf::from(&folder).join("pod"), ..stage.pod_spec() };
    let pod = Pod::launch(&stage.installation, spec).await.expect("launched");
    stage.mounts_before.clear();
    pod.create_container(stage.container("sleep 1000", json!([]))).await.expect("created");
    pod.start(&first()).await.expect("started");
    std::fs::write(PathBuf::from(&folder).join("ready"), pod.vmm_pid().to_string()).expect("written");
    pod.gone().await;
}

#[test]
fn needs_kvm_a_killed_owner_leaves_what_clean_up_undoes() {
    let Some(stage) = Stage::new("a killed owner") else { return };
    let folder = stage.root.path().join("owned");
    std::fs::create_dir(&folder).expect("made");
    for moment in ["at once", "booting", "running"] {
        let mut owner = Command::new(std::env::current_exe().expect("known"));
        owner
            .args(["--exact", "owner_to_be_killed", "--ignored"])
            .env(OWNED_FOLDER, &folder)
            .stdout(std::process::Stdio::null());
        let mut owner = owner.spawn().expect("spawned");
        let begun = Instant::now();
        let there = |name: &str| folder.join(name).exists();
        while !match moment {
            "at once" => there("pod/record"),
            "booting" => begun.elapsed() > Duration::from_millis(150),
            _ => there("ready"),
        } {
            assert!(begun.elapsed() < Duration::from_secs(20), "the owner does not come {moment}");
            std::thread::sleep(Duration::from_millis(1));
        }
        owner.kill().expect("killed");
        owner.wait().expect("reaped");
        let begun = Instant::now();
        pod::clean_up(&folder.join("pod")).expect("cleaned up");
        let took = begun.elapsed();
        eprintln!("killed {moment}: cleaned up in {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(!there("pod"), "the folder is left");
        let _ = std::fs::remove_file(folder.join("ready"));
        std::thread::sleep(Duration::from_millis(50));
        let left = carriers_of(folder.to_str().expect("plain"));
        assert!(left.is_empty(), "killed {moment}, and left: {left:?}");
        assert_eq!(host_mounts(), stage.mounts_before);
    }
}

/// A thread in a network namespace of its own, which runs command lines there until it has no more to run.
struct Elsewhere {
    path: PathBuf,
    lines: std::sync::mpsc::Sender<(String, std::sync::mpsc::Sender<std::process::Output>)>,
}

impl Elsewhere {
    fn new() -> Self {
        let (lines, inbox) = std::sync::mpsc::channel::<(String, std::sync::mpsc::Sender<std::process::Output>)>();
        let (made, path) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("as root");
            let thread = rustix::thread::gettid().as_raw_nonzero();
            made.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).expect("awaited");
            for (line, answer) in inbox {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let output = Command::new(words[0]).args(&words[1..]).output().expect("the program is there");
                answer.send(output).expect("awaited");
            }
        });
        Self { path: path.recv().expect("made").into(), lines }
    }

    fn run(&self, line: &str) -> String {
        let (answer, answered) = std::sync::mpsc::channel();
        self.lines.send((line.to_owned(), answer)).expect("it runs");
        let output = answered.recv().expect("answered");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A pod's network as a plugin makes it, and the one outside: 10.1.0.2 and 2001:db8::2 with a gateway.
fn plugged() -> (Elsewhere, Elsewhere) {
    let (inside, outside) = (Elsewhere::new(), Elsewhere::new());
    let far = outside.path.display();
    inside.run(&format!("ip link add eth0 mtu 1400 type veth peer name far netns {far}"));
    inside.run("ip address add 10.1.0.2/24 dev eth0");
    inside.run("ip address add 2001:db8::2/64 dev eth0 nodad");
    inside.run("ip link set eth0 up");
    inside.run("ip route add default via 10.1.0.1");
    outside.run("ip address add 10.1.0.1/24 dev far");
    outside.run("ip address add 10.99.0.1/32 dev far");
    outside.run("ip -6 address add 2001:db8::1/64 dev far nodad");
    outside.run("ip link set far mtu 1400 up");
    (inside, outside)
}

#[tokio::test]
async fn needs_kvm_a_pod_is_reached_at_the_addresses_that_a_plugin_gave_it() {
    let Some(stage) = Stage::new("the network of a real machine") else { return };
    let (inside, outside) = plugged();
    let spec = PodSpec { network: PodNetwork::Namespace(inside.path.clone()), ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // From outside to the guest, and from the guest past its gateway.
    outside.run("busybox ping -c 1 -W 5 10.1.0.2");
    outside.run("busybox ping -c 1 -W 5 -s 8000 10.1.0.2");
    outside.run("busybox ping -c 1 -W 5 2001:db8::2");
    let script = "busybox ip -o address show eth0; busybox ip route; busybox ping -c 1 -W 5 10.99.0.1 && echo reached";
    let mut container = stage.container(script, json!([]));
    let mut oci = serde_json::to_value(&container.oci).expect("a spec");
    let raw = json!(["CAP_NET_RAW"]);
    oci["process"]["capabilities"] = json!({"bounding": raw, "effective": raw, "permitted": raw});
    container.oci = serde_json::from_value(oci).expect("a spec");
    let (_, streams) = within(pod.create_container(container)).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let said = within(read_all(streams.stdout)).await;
    for words in ["10.1.0.2/24", "2001:db8::2/64", "default via 10.1.0.1 dev eth0", "reached"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    within(pod.stop()).await.expect("stopped");
    assert!(!inside.run("tc filter show dev eth0 ingress").contains("mirred"));
    assert!(!inside.run("ip -br link").contains("katars"));
    stage.assert_nothing_left();
}

#[tokio::test]
async fn needs_kvm_an_operators_limit_of_rate_holds_frames_back_and_loses_none_of_a_few() {
    let Some(stage) = Stage::new("the limit of a real machine's network") else { return };
    let (inside, outside) = plugged();
    let interface_rules = InterfaceRules { receive_mbit: 1, ..InterfaceRules::default() };
    let network = PodNetwork::Namespace(inside.path.clone());
    let spec = PodSpec { network, interface_rules, ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // More than passes at once.
    outside.run("busybox ping -A -c 5 -W 5 -s 60000 10.1.0.2");
    let report = within(pod.report()).await.expect("told").networks[0];
    assert!(report.held_by_rate > 0, "{report:?}");
    within(pod.stop()).await.expect("stopped");
}

#[tokio::test]
async fn needs_kvm_a_port_of_the_pods_loopback_on_the_host_leads_to_its_server() {
    let Some(stage) = Stage::new("a forwarded port of a real machine") else { return };
    let inside = Elsewhere::new();
    inside.run("ip link set lo up");
    let spec = PodSpec { network: PodNetwork::Namespace(inside.path.clone()), ..stage.pod_spec() };
    let pod = within(Pod::launch(&stage.installation, spec)).await.expect("launched");
    // Counts what it hears, and tells at the end of it.
    let container = stage.container("busybox nc -ll -p 8080 -e /bin/wc -c", json!([]));
    let (_, _streams) = within(pod.create_container(container)).await.expect("created");
    within(pod.start(&first())).await.expect("started");
    let sent = vec![b'x'; 3_000_000];
    let path = inside.path.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        // Nothing tells when it listens; until then each connection is refused or reset.
        loop {
            match count_in(&path, &sent) {
                Ok(count) => break count,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(15), "nobody serves: {error}"),
            }
        }
    });
    assert_eq!(within(counted).await.expect("no panic").trim(), "3000000");
    within(pod.stop()).await.expect("stopped");
    let refused = count_in(&inside.path, b"").expect_err("nobody listens any more");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    stage.assert_nothing_left();
}

/// What a server of the namespace's loopback says of these bytes.
fn count_in(namespace: &Path, bytes: &[u8]) -> std::io::Result<String> {
    let namespace = std::fs::File::open(namespace)?;
    std::thread::scope(|scope| {
        let talk = || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let mut client = std::net::TcpStream::connect("127.0.0.1:8080")?;
            client.write_all(bytes)?;
            client.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        };
        scope.spawn(talk).join().expect("no panic")
    })
}
