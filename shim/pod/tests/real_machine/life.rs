//! From the launch to the end, whoever brings it about.

use std::{
    io::Write,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use pod::{ErrorKind, ExecSpec, Installation, Pod, PodSpec, ProcessId, StdioWanted};
use serde_json::json;

use crate::stage::{Stage, first, host_mounts, process, read_all, within};

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
            .args(["--exact", "life::owner_to_be_killed", "--ignored"])
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
