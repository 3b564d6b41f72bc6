//! The real thread, real mounts and the real file server. These need root, and say so.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixStream},
    path::PathBuf,
};

use rustix::mount::MountFlags;

use super::*;
use crate::{HostMount, Installation, RootFs, record, record::Record, state_dir::StateDir, storage::Bind};

/// The staged installation of this build, or the one that KATA_RS_PREFIX names.
fn virtiofsd() -> Option<PathBuf> {
    let staged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stage");
    let prefix = std::env::var_os("KATA_RS_PREFIX").map_or(staged, PathBuf::from);
    Some(Installation::at(&prefix).virtiofsd).filter(|path| path.exists())
}

struct Stage {
    root: tempfile::TempDir,
    state: StateDir,
    share: Share,
    server: Spawned,
    vmm_end: Option<UnixStream>,
}

impl Stage {
    /// `None`, with a word, where a requirement is missing.
    async fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: {test} needs root");
            return None;
        }
        let Some(program) = virtiofsd() else {
            eprintln!("skipped: {test} needs virtiofsd (make build)");
            return None;
        };
        let root = tempfile::tempdir().expect("a folder");
        let state = StateDir::make(&root.path().join("pod")).expect("made");
        let (listener, vmm_end) = crate::launch::server_connection(&state).expect("connected");
        let record = Record::create(state.path()).expect("created");
        let stderr = std::fs::File::options().write(true).open("/dev/null").expect("there");
        let carried = Carried { record, token: "token-of-a-share-test".into() };
        let start = ServerStart { listener: listener.into(), stderr: stderr.into(), carried };
        let (share, ready) = Share::start(state.path(), &program, start).expect("a thread");
        let server = ready.await.expect("answered").expect("started").expect("a process");
        Some(Self { root, state, share, server, vmm_end: Some(vmm_end) })
    }

    /// A folder of the host with a file in it.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(name);
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("file"), name).expect("written");
        folder
    }

    /// What the sandboxed server sees at a path of the share, once it has entered its sandbox.
    fn seen(&self, path: &str) -> PathBuf {
        let children = format!("/proc/{0}/task/{0}/children", self.server.pid());
        for _ in 0..1000 {
            let inner = fs::read_to_string(&children).unwrap_or_default();
            let inner = inner.trim();
            // The server is in its sandbox when its root is the share.
            if !inner.is_empty()
                && !inner.contains(' ')
                && fs::metadata(format!("/proc/{inner}/root/stage-folder")).is_ok()
            {
                return PathBuf::from(format!("/proc/{inner}/root/{path}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the file server does not enter its sandbox");
    }

    async fn add(&self, rootfs: RootFs, binds: Vec<Bind>) -> Result<(), PodError> {
        self.share.add(StoragePlan { container_id: "c1".into(), rootfs, binds, shared_memory: None }).await
    }
}

fn host_mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("read")
}

fn bind_of(source: &Path, name: &str, read_only: bool) -> Bind {
    Bind { source: source.to_owned(), name: name.into(), recursive: true, read_only }
}

#[tokio::test]
async fn needs_root_what_is_mounted_later_reaches_the_server_and_never_the_host() {
    let Some(mut stage) = Stage::new("mounts reach the server").await else { return };
    let (rootfs, volume) = (stage.folder("rootfs"), stage.folder("volume"));
    let before = host_mounts();
    stage.seen("");
    stage
        .add(RootFs::Folder(rootfs), vec![bind_of(&volume, "0", false), bind_of(&volume.join("file"), "1", true)])
        .await
        .expect("added");
    assert_eq!(fs::read_to_string(stage.seen("c1/rootfs/file")).expect("seen"), "rootfs");
    assert_eq!(fs::read_to_string(stage.seen("c1/mounts/0/file")).expect("seen"), "volume");
    assert_eq!(fs::read_to_string(stage.seen("c1/mounts/1")).expect("seen"), "volume");
    assert_eq!(host_mounts(), before, "the host's mount table is as it was");
    stage.share.remove("c1").await.expect("removed");
    assert!(!stage.seen("c1").exists(), "it is gone for the server, too");
    assert!(volume.join("file").exists(), "the volume is as it was");
    drop(stage.vmm_end.take());
    assert!(stage.server.ended_within(Duration::from_secs(5)).await, "the server ends when the VMM hangs up");
    assert_eq!(stage.share.end().await, Vec::<String>::new());
    assert_eq!(state_dir_left(&stage), Vec::<String>::new());
}

fn state_dir_left(stage: &Stage) -> Vec<String> {
    crate::state_dir::remove(stage.state.path())
}

#[tokio::test]
async fn needs_root_an_overlay_of_containerd_is_the_root() {
    let Some(stage) = Stage::new("an overlay is the root").await else { return };
    let (lower, upper, work) = (stage.folder("lower"), stage.folder("upper"), stage.folder("work"));
    fs::remove_file(work.join("file")).expect("removed");
    fs::remove_file(upper.join("file")).expect("removed");
    let options = [
        "index=off".to_owned(),
        format!("workdir={}", work.display()),
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lower.display()),
    ];
    let overlay = HostMount { fs_type: "overlay".into(), source: "overlay".into(), options: options.into() };
    stage.add(RootFs::Mounts(vec![overlay]), vec![]).await.expect("added");
    fs::write(stage.seen("c1/rootfs/new"), "x").expect("writable");
    assert!(upper.join("new").exists(), "writes go to the upper layer");
    assert_eq!(fs::read_to_string(stage.seen("c1/rootfs/file")).expect("seen"), "lower");
}

#[tokio::test]
async fn needs_root_read_only_is_the_hosts_word() {
    let Some(stage) = Stage::new("read-only is enforced").await else { return };
    let (rootfs, volume) = (stage.folder("rootfs"), stage.folder("volume"));
    stage.add(RootFs::Folder(rootfs), vec![bind_of(&volume, "0", true)]).await.expect("added");
    let refused = fs::write(stage.seen("c1/mounts/0/file"), "changed").expect_err("read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    fs::write(stage.seen("c1/rootfs/file"), "changed").expect("the root is writable");
    let refused = fs::write(stage.seen("c1/planted"), "x").expect_err("nothing is planted beside the mounts");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[tokio::test]
async fn needs_root_links_planted_by_the_guest_lead_nowhere() {
    let Some(stage) = Stage::new("planted links").await else { return };
    let (rootfs, target) = (stage.folder("rootfs"), stage.folder("target"));
    stage.add(RootFs::Folder(rootfs.clone()), vec![]).await.expect("added");
    // Inside its root the guest may do as it likes.
    fs::remove_file(rootfs.join("file")).expect("removed");
    symlink(&target, rootfs.join("file")).expect("linked");
    let before = host_mounts();
    stage.share.remove("c1").await.expect("removed");
    assert_eq!(host_mounts(), before);
    assert!(
        target.join("file").exists() && rootfs.join("file").is_symlink(),
        "nothing of the host was followed or deleted"
    );
}

#[tokio::test]
async fn needs_root_what_cannot_be_shared_is_refused_and_undone() {
    let Some(stage) = Stage::new("refusals").await else { return };
    let rootfs = stage.folder("rootfs");
    let socket = stage.root.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    for (root, volume, words) in [
        (RootFs::Folder(rootfs.join("file")), None, "is a file: give a folder"),
        (RootFs::Folder(rootfs.join("none")), None, "cannot be opened"),
        (RootFs::Folder(rootfs.clone()), Some(Path::new("/dev/null")), "is a device"),
        (RootFs::Folder(rootfs.clone()), Some(socket.as_path()), "is a socket"),
        (RootFs::Folder(rootfs.clone()), Some(Path::new("/does/not/exist")), "cannot be opened"),
    ] {
        let binds = volume.map(|v| bind_of(v, "0", false)).into_iter().collect();
        let error = stage.add(root, binds).await.expect_err(words);
        assert!(error.message.contains(words), "{}", error.message);
        let special = words.starts_with("is a ") && volume.is_some();
        assert_eq!(error.kind, if special { ErrorKind::Unimplemented } else { ErrorKind::InvalidArgument });
    }
    stage.add(RootFs::Folder(rootfs), vec![]).await.expect("the refused ones left nothing in the way");
}

#[tokio::test]
async fn needs_root_clean_up_ends_the_whole_sandbox() {
    let Some(stage) = Stage::new("clean-up of the server").await else { return };
    stage.seen("");
    let (state, pid) = (stage.state.path().to_owned(), stage.server.pid());
    assert!(
        record::read(&state)
            .expect("read")
            .iter()
            .any(|e| matches!(e, record::Entry::Process { pid: p, .. } if *p == pid))
    );
    stage.share.end().await;
    crate::clean_up(&state).expect("cleaned up");
    assert!(!state.exists());
    assert!(stage.server.reap().is_some(), "the server was killed");
}

#[test]
fn mount_points_are_read_with_their_escapes_and_flags() {
    let table = b"36 35 98:0 / /mnt\\040a\\134b ro,nosuid,noatime shared:1 - ext4 /dev/x rw\nshort line\n";
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOATIME;
    assert_eq!(parse_mounts(table), [(PathBuf::from("/mnt a\\b"), flags)]);
}
