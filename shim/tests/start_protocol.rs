//! `start`, the daemon and `delete` as containerd runs them: the real binary, real pipes, no machine.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    TaskClient,
    api::{ConnectRequest, DeleteResponse, ShutdownRequest},
    bootstrap_api::{BootstrapParams, BootstrapResult, Extension},
    sandbox_api::{CreateSandboxRequest, SandboxStatusRequest, ShutdownSandboxRequest, StartSandboxRequest},
    sandbox_sync::SandboxClient,
    types::introspection::RuntimeInfo,
};
use protobuf::{Message, well_known_types::any::Any};
use rustix::process::Pid;
use ttrpc::context;

/// A state folder and some bundles; the daemons that are left are ended at the end.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.0.path().join("bundles").join(id);
        fs::create_dir_all(&bundle).expect("bundle");
        fs::write(bundle.join("config.json"), config).expect("config");
        bundle
    }

    fn shim(&self, bundle: &Path, id: &str, action: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-rs-v2"));
        command
            .args(["-namespace", "test", "-address", "/c.sock", "-publish-binary", "/bin/true", "-id", id, action])
            .current_dir(bundle)
            .env("KATA_RS_STATE_DIR", self.root())
            // No machine can come of this, and the daemon must serve all the same.
            .env("KATA_RS_PREFIX", "/nowhere")
            .env_remove("TTRPC_ADDRESS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, bundle: &Path, id: &str, input: &[u8]) -> Output {
        run(self.shim(bundle, id, "start"), input)
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root().join(".s")).into_iter().flatten();
        entries.map(|entry| entry.expect("entry").path()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for socket in self.sockets() {
            shut_down(&socket);
        }
    }
}

const ALONE: &str = r#"{"ociVersion":"1.0.2"}"#;
const IN_POD: &str = r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"pod1"}}"#;

fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.spawn().expect("spawned");
    // Closed at the end of the statement; a `start` that does not read it is no reason to fail.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    child.wait_with_output().expect("ended")
}

fn client(socket: &Path) -> TaskClient {
    TaskClient::new(ttrpc::Client::connect(&format!("unix://{}", socket.display())).expect("connected"))
}

fn shut_down(socket: &Path) {
    if let Ok(mut peer) = UnixStream::connect(socket) {
        let _ = client(socket).shutdown(context::with_duration(Duration::from_secs(10)), &ShutdownRequest::default());
        // The daemon's end closes this connection, which it never answered.
        let _ = peer.read(&mut [0]);
    }
}

fn plain_address(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "containerd 1.6 reads both outputs as the address");
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    text.strip_prefix("unix://").expect("a path").into()
}

#[test]
fn a_start_answers_with_an_address_that_serves_whatever_its_input_is() {
    let host = Host::new();
    let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![9; 100], ..Any::default() };
    let inputs = [Vec::new(), b"\xff\xff noise".to_vec(), options.write_to_bytes().expect("bytes"), vec![7; 3 << 20]];
    for (number, input) in inputs.iter().enumerate() {
        let id = format!("c{number}");
        let bundle = host.bundle(&id, ALONE);
        let socket = plain_address(&host.start(&bundle, &id, input));
        assert_eq!(fs::read_to_string(bundle.join("address")).expect("file"), format!("unix://{}", socket.display()));
        let request = ConnectRequest { id, ..ConnectRequest::default() };
        let error =
            client(&socket).connect(context::with_duration(Duration::from_secs(5)), &request).expect_err("empty");
        assert!(matches!(error, ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND));
    }
}

#[test]
fn a_daemon_does_not_hold_what_its_starter_left_open() {
    let host = Host::new();
    let stray = host.0.path().join("stray");
    let left_open = fs::File::create(&stray).expect("made");
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).expect("a descriptor");
    let started = host.start(&host.bundle("c", ALONE), "c", b"");
    drop(left_open);
    let peer = UnixStream::connect(plain_address(&started)).expect("it serves");
    let daemon = rustix::net::sockopt::socket_peercred(&peer).expect("a peer").pid;
    let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", daemon.as_raw_nonzero()))
        .expect("it runs")
        .filter_map(|entry| fs::read_link(entry.expect("listed").path()).ok())
        .collect();
    assert!(!open.is_empty() && !open.contains(&stray), "{open:?}");
}

#[test]
fn newer_containerds_are_answered_in_their_own_way() {
    let host = Host::new();
    let bundle = host.bundle("j", ALONE);
    let mut command = host.shim(&bundle, "j", "start");
    command.env("MAX_SHIM_VERSION", "3");
    let answer: serde_json::Value = serde_json::from_slice(&run(command, b"").stdout).expect("json");
    assert_eq!((answer["version"].as_u64(), answer["protocol"].as_str()), (Some(3), Some("ttrpc")));

    let params = BootstrapParams { instance_id: "p".into(), namespace: "test".into(), ..BootstrapParams::default() };
    let output = host.start(&host.bundle("p", ALONE), "p", &params.write_to_bytes().expect("bytes"));
    let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("protobuf");
    assert!(UnixStream::connect(result.address.strip_prefix("unix://").expect("a path")).is_ok());
}

#[test]
fn containerd_2_3_is_answered_in_protobuf_though_its_variable_says_2() {
    let host = Host::new();
    let bundle = host.bundle("p", ALONE);
    let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![9; 100], ..Any::default() };
    let params = BootstrapParams {
        instance_id: "p".into(),
        namespace: "test".into(),
        containerd_version: "2.3.4".into(),
        containerd_ttrpc_address: "/c.sock.ttrpc".into(),
        containerd_grpc_address: "/c.sock".into(),
        containerd_binary: "/bin/true".into(),
        extensions: vec![Extension { value: Some(options).into(), ..Extension::default() }],
        ..BootstrapParams::default()
    };
    let mut command = host.shim(&bundle, "p", "start");
    command.env("MAX_SHIM_VERSION", "2");
    let output = run(command, &params.write_to_bytes().expect("bytes"));
    let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("protobuf");
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert!(UnixStream::connect(result.address.strip_prefix("unix://").expect("a path")).is_ok());
}

#[test]
fn a_bundle_without_a_configuration_is_a_sandboxes_and_waits_for_it() {
    let host = Host::new();
    let bundle = host.bundle("pod1", "");
    fs::remove_file(bundle.join("config.json")).expect("removed");
    let socket = plain_address(&host.start(&bundle, "pod1", b""));
    let sandbox =
        SandboxClient::new(ttrpc::Client::connect(&format!("unix://{}", socket.display())).expect("connected"));
    let quick = || context::with_duration(Duration::from_secs(5));
    let status = SandboxStatusRequest { sandbox_id: "pod1".into(), ..SandboxStatusRequest::default() };
    let error = sandbox.sandbox_status(quick(), &status).expect_err("not created");
    assert!(matches!(error, ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND));
    let bundle_path = bundle.display().to_string();
    let create = CreateSandboxRequest { sandbox_id: "pod1".into(), bundle_path, ..CreateSandboxRequest::default() };
    sandbox.create_sandbox(quick(), &create).expect("created");
    let start = StartSandboxRequest { sandbox_id: "pod1".into(), ..StartSandboxRequest::default() };
    let error = sandbox.start_sandbox(quick(), &start).expect_err("there is no installation");
    let ttrpc::Error::RpcStatus(status) = error else { panic!("{error:?}") };
    assert!(status.message().contains("/nowhere"), "{}", status.message());
    let down = ShutdownSandboxRequest { sandbox_id: "pod1".into(), ..ShutdownSandboxRequest::default() };
    sandbox.shutdown_sandbox(quick(), &down).expect("shut down");
    let mut peer = UnixStream::connect(&socket).err();
    while peer.is_none() {
        peer = UnixStream::connect(&socket).err();
    }
    assert!(host.sockets().is_empty());
}

#[test]
fn containers_of_one_pod_share_one_daemon_and_others_do_not() {
    let host = Host::new();
    let sandbox = plain_address(&host.start(&host.bundle("pod1", IN_POD), "pod1", b""));
    let member = plain_address(&host.start(&host.bundle("c1", IN_POD), "c1", b""));
    let stranger = plain_address(&host.start(&host.bundle("c2", ALONE), "c2", b""));
    assert_eq!(sandbox, member);
    assert_ne!(sandbox, stranger);
    assert_eq!(host.sockets().len(), 2);
}

#[test]
fn a_container_does_not_make_a_machine_for_a_pod_that_is_gone() {
    let host = Host::new();
    let output = host.start(&host.bundle("c1", IN_POD), "c1", b"");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("pod1"), "{output:?}");
    assert!(host.sockets().is_empty());
}

#[test]
fn the_socket_is_a_path_for_root_alone() {
    let host = Host::new();
    let socket = plain_address(&host.start(&host.bundle("c", ALONE), "c", b""));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().expect("folder"))), (0o600, 0o700));
}

#[test]
fn a_broken_bundle_still_starts_so_that_create_can_say_what_is_wrong() {
    let host = Host::new();
    let bundle = host.bundle("c", "{ broken");
    let socket = plain_address(&host.start(&bundle, "c", b""));
    let request = containerd_shim_protos::api::CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.display().to_string(),
        ..Default::default()
    };
    let error = client(&socket).create(context::with_duration(Duration::from_secs(5)), &request).expect_err("refused");
    let ttrpc::Error::RpcStatus(status) = error else { panic!("{error:?}") };
    assert_eq!(status.code(), ttrpc::Code::INVALID_ARGUMENT);
    assert!(status.message().contains("config.json"), "{}", status.message());
}

#[test]
fn shutdown_ends_the_daemon_and_leaves_no_socket() {
    let host = Host::new();
    let socket = plain_address(&host.start(&host.bundle("c", ALONE), "c", b""));
    shut_down(&socket);
    assert!(host.sockets().is_empty());
}

#[test]
fn delete_answers_137_quickly_and_can_be_repeated() {
    let host = Host::new();
    let bundle = host.bundle("c", ALONE);
    let socket = plain_address(&host.start(&bundle, "c", b""));
    shut_down(&socket);
    for _ in 0..2 {
        let before = Instant::now();
        let output = run(host.shim(&bundle, "c", "delete"), b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let response = DeleteResponse::parse_from_bytes(&output.stdout).expect("protobuf");
        assert_eq!(response.exit_status, 137);
        assert!(response.exited_at.seconds > 0);
        assert!(before.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn delete_of_a_member_leaves_the_pods_daemon_alone() {
    let host = Host::new();
    let socket = plain_address(&host.start(&host.bundle("pod1", IN_POD), "pod1", b""));
    let member = host.bundle("c1", IN_POD);
    plain_address(&host.start(&member, "c1", b""));
    assert!(run(host.shim(&member, "c1", "delete"), b"").status.success());
    assert!(UnixStream::connect(&socket).is_ok());
}

#[test]
fn after_a_killed_daemon_delete_removes_the_socket_and_start_makes_a_new_one() {
    let host = Host::new();
    let bundle = host.bundle("c", ALONE);
    let socket = plain_address(&host.start(&bundle, "c", b""));
    kill_daemon(&socket);
    let again = plain_address(&host.start(&bundle, "c", b""));
    assert_eq!(socket, again);
    kill_daemon(&socket);
    assert!(run(host.shim(&bundle, "c", "delete"), b"").status.success());
    assert!(host.sockets().is_empty());
}

#[test]
fn a_daemon_that_does_not_answer_is_killed_by_delete() {
    let host = Host::new();
    let bundle = host.bundle("c", ALONE);
    let socket = plain_address(&host.start(&bundle, "c", b""));
    let peer = UnixStream::connect(&socket).expect("connected");
    rustix::process::kill_process(daemon_of(&socket), rustix::process::Signal::STOP).expect("stopped");
    let output = run(host.shim(&bundle, "c", "delete"), b"");
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&peer).read(&mut [0]).unwrap_or(0), 0, "nothing answered, and the connection is over");
    assert!(host.sockets().is_empty());
}

#[test]
fn a_start_that_cannot_tell_its_address_takes_its_daemon_back() {
    let host = Host::new();
    let bundle = host.bundle("c", ALONE);
    fs::create_dir(bundle.join(".address")).expect("in the way");
    let output = host.start(&bundle, "c", b"");
    assert!(!output.status.success(), "{output:?}");
    assert!(host.sockets().is_empty(), "a daemon that nobody knows still listens");
}

/// containerd calls `delete` for no start that it did not hear of; the next one to come by has to find what it left.
#[test]
fn a_start_killed_with_its_daemon_before_containerd_has_heard_of_it_is_swept_up() {
    let host = Host::new();
    let bundle = host.bundle("c", ALONE);
    let (_reader, writer) = io::pipe().expect("a pipe");
    // A pipe that is full: the start stands where it tells its address.
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe");
    while (&writer).write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe");
    let mut start = host.shim(&bundle, "c", "start").stdin(Stdio::null()).stdout(writer).spawn().expect("spawned");
    while !bundle.join("address").exists() {
        thread::yield_now();
    }
    let socket = fs::read_to_string(bundle.join("address")).expect("whole");
    start.kill().expect("it waits");
    start.wait().expect("ended");
    kill_daemon(Path::new(socket.trim_start_matches("unix://")));
    assert!(!host.sockets().is_empty(), "nobody has come by");
    run(host.shim(&host.bundle("other", ALONE), "other", "delete"), b"");
    assert_eq!(host.sockets(), Vec::<PathBuf>::new());
}

#[test]
fn the_daemon_is_as_dear_to_the_host_as_its_container_is_said_to_be() {
    let host = Host::new();
    let score = |name: &str, wanted: i64| {
        let config = format!(r#"{{"ociVersion":"1.0.2","process":{{"cwd":"/","user":{{}},"oomScoreAdj":{wanted}}}}}"#);
        let socket = plain_address(&host.start(&host.bundle(name, &config), name, b""));
        fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon_of(&socket).as_raw_nonzero())).expect("it runs")
    };
    assert_eq!(score("expendable", 789).trim(), "789");
    // Dearer than who starts it takes a capability that not every host's containerd has; the container starts all the same.
    let ours = fs::read_to_string("/proc/self/oom_score_adj").expect("read");
    let dear = score("dear", -998);
    assert!(["-998", ours.trim()].contains(&dear.trim()), "{dear}");
    assert_eq!(score("mistaken", 1001), ours, "what is no score changes nothing");
}

#[test]
fn needs_root_a_daemon_that_was_killed_after_it_gave_up_its_socket_leaves_no_cgroup() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root, and in CI nothing is skipped");
        return eprintln!("skipped: needs root");
    }
    let host = Host::new();
    let path = format!("kata-rs-{}-given-up", std::process::id());
    let bundle = host.bundle("c", &format!(r#"{{"ociVersion":"1.0.2","linux":{{"cgroupsPath":"/{path}/c"}}}}"#));
    let socket = plain_address(&host.start(&bundle, "c", b""));
    let inside = fs::read_to_string(format!("/proc/{}/cgroup", daemon_of(&socket).as_raw_nonzero())).expect("it runs");
    assert!(inside.contains(&path), "{inside}");
    kill_daemon(&socket);
    // What an ending daemon does first; the cgroup it leaves last, when nothing is in it any more.
    fs::remove_file(&socket).expect("removed");
    assert!(
        host.sockets().iter().any(|left| left.extension().is_some_and(|name| name == "cgroup")),
        "there is a record"
    );
    assert!(run(host.shim(&bundle, "c", "delete"), b"").status.success());
    assert_eq!(host.sockets(), Vec::<PathBuf>::new());
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("a tree").flatten().map(|entry| entry.path());
    let left: Vec<_> =
        hierarchies.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(&path)).filter(|f| f.exists()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn info_and_version_need_no_containerd() {
    let shim = || Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-rs-v2"));
    let info = shim().arg("-info").stdin(Stdio::null()).output().expect("ran");
    let info = RuntimeInfo::parse_from_bytes(&info.stdout).expect("protobuf");
    assert_eq!(info.name, "io.containerd.kata-rs.v2");
    assert_eq!(info.features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    let features: serde_json::Value = serde_json::from_slice(&info.features.value).expect("json");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    let version = shim().arg("-v").output().expect("ran");
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

// The peer of the socket is the daemon, not the `start` that bound it.
fn daemon_of(socket: &Path) -> Pid {
    let peer = UnixStream::connect(socket).expect("connected");
    rustix::net::sockopt::socket_peercred(&peer).expect("peer").pid
}

fn kill_daemon(socket: &Path) {
    let peer = UnixStream::connect(socket).expect("connected");
    rustix::process::kill_process(daemon_of(socket), rustix::process::Signal::KILL).expect("killed");
    let _ = (&peer).read(&mut [0]);
}
