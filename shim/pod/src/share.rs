//! The share tree: every file that the guest may see, in a mount namespace of the pod's own.
//!
//! # Why a thread
//! A mount namespace belongs to a thread, so one thread of its own does all mounting, on [orders](Order). It is the only one that sees the
//! pod's mounts: the host's table stays as it is, and when this process dies, however it dies, the kernel takes the mounts down with it.
//!
//! # The tree
//! ```text
//!  <state>/tree    a small tmpfs, writable, seen by this thread only: mount points are made here, mounts are prepared at tree/stage-*
//!  <state>/share   the same tmpfs, read-only and shared (MS_SHARED), what the file server serves:
//!     <container>/rootfs        each prepared mount is moved here, complete with its flags, and so appears
//!     <container>/mounts/<n>    in the file server's namespace, which is a slave of this one
//! ```
//! The guest can write inside what was mounted for it, and nowhere on the way to a mount point: no symbolic link of its making is
//! ever followed by a mount of ours. Flags are set before the move because they do not propagate after it.
//! Every mount is nodev and nosuid: the host never opens the guest's device nodes.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use nix::sched::CloneFlags;
use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
        mount_move, mount_remount, unmount,
    },
};
use tokio::sync::oneshot;

use crate::{
    ErrorKind, HostMount, PodError, RootFs,
    launcher::Carried,
    mount_options::{MountOptions, overlay_data},
    process::Spawned,
    share_server,
    state_dir::{SHARE_FOLDER, TREE_FOLDER},
    storage::{Bind, StoragePlan},
};

/// The tree holds folders and empty files only; more than this is a leak.
const TREE_TMPFS_DATA: &std::ffi::CStr = c"mode=0755,size=4m,nr_inodes=65536";
const STAGE_FOLDER: &str = "stage-folder";
const STAGE_FILE: &str = "stage-file";
/// Flags of every mount that the guest sees.
const ALWAYS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);

/// How long a container's mounts may take. A volume on a dead network file system can hold the thread for ever.
const ADD_DEADLINE: Duration = Duration::from_secs(30);
/// How long taking them away may take: lazily, so it waits for nothing but a thread that hangs.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// Everything that can wake the thread; it ends when nobody can order any more.
#[derive(Debug)]
pub(crate) enum Order {
    /// Mount a container's files.
    Add(StoragePlan, oneshot::Sender<Result<(), PodError>>),
    /// Take them away.
    Remove(String, oneshot::Sender<Result<(), PodError>>),
    /// Take everything away and end.
    End(oneshot::Sender<Vec<String>>),
}

/// Sends orders to the thread, or in tests to whoever plays it.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    orders: mpsc::Sender<Order>,
}

/// Answers when the share tree is there and its server runs; there is no server process in tests.
pub(crate) type ServerReady = oneshot::Receiver<Result<Option<Spawned>, PodError>>;

/// What the thread needs to start the file server.
#[derive(Debug)]
pub(crate) struct ServerStart {
    /// Where the VMM's connection waits.
    pub listener: OwnedFd,
    /// For its last words.
    pub stderr: OwnedFd,
    /// What it is recorded in and carries.
    pub carried: Carried,
}

impl Share {
    /// The share of whoever takes the orders: a test.
    #[cfg(test)]
    pub(crate) fn ordered_by(orders: mpsc::Sender<Order>) -> Self {
        Self { orders }
    }

    /// Starts the thread, which makes the tree and starts the file server; the answer comes when it has.
    pub(crate) fn start(state_dir: &Path, program: &Path, server: ServerStart) -> io::Result<(Self, ServerReady)> {
        let (orders, inbox) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        let (state_dir, program) = (state_dir.to_owned(), program.to_owned());
        std::thread::Builder::new().name("share".to_owned()).stack_size(256 * 1024).spawn(move || {
            let started = Tree::make(&state_dir).and_then(|tree| {
                let share = tree.share.clone();
                let spawned = share_server::spawn(&program, &share, server.listener, server.stderr, &server.carried)?;
                Ok((tree, spawned))
            });
            match started {
                Ok((tree, spawned)) => {
                    let _ = ready.send(Ok(Some(spawned)));
                    tree.serve(&inbox);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        Ok((Self { orders }, is_ready))
    }

    /// Mounts a container's files.
    pub(crate) async fn add(&self, plan: StoragePlan) -> Result<(), PodError> {
        self.order(ADD_DEADLINE, |reply| Order::Add(plan, reply)).await?
    }

    /// Takes a container's files away; fine when there are none.
    pub(crate) async fn remove(&self, container_id: &str) -> Result<(), PodError> {
        match self.order(REMOVE_DEADLINE, |reply| Order::Remove(container_id.to_owned(), reply)).await {
            Err(error) if error.kind == ErrorKind::Unavailable => Ok(()),
            removed => removed?,
        }
    }

    /// Takes everything away; tells what could not be.
    pub(crate) async fn end(&self) -> Vec<String> {
        match self.order(REMOVE_DEADLINE, Order::End).await {
            Err(error) if error.kind == ErrorKind::Unavailable => Vec::new(),
            Err(error) => vec![error.message],
            Ok(problems) => problems,
        }
    }

    /// Unavailable is a thread that has ended, and with it all its mounts.
    async fn order<T>(
        &self,
        deadline: Duration,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, PodError> {
        let gone = || PodError::new(ErrorKind::Unavailable, "the pod's share tree is gone: the pod is being stopped");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).map_err(|_| gone())?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(|_| gone()),
            Err(_) => Err(PodError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "mounting hangs for more than {deadline:?}: is a volume on a network file system that is away?"
                ),
            )),
        }
    }
}

/// The tree, on its thread.
#[derive(Debug)]
struct Tree {
    tree: PathBuf,
    share: PathBuf,
    /// Mount points of each container, in the order of mounting.
    mounted: BTreeMap<String, Vec<PathBuf>>,
}

impl Tree {
    fn make(state_dir: &Path) -> Result<Self, PodError> {
        let (tree, share) = (state_dir.join(TREE_FOLDER), state_dir.join(SHARE_FOLDER));
        let step = |what: &str, done: rustix::io::Result<()>| {
            done.map_err(|errno| {
                PodError::host(format!("cannot {what} in {}; run as root", state_dir.display()), io::Error::from(errno))
            })
        };
        for folder in [&tree, &share] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .map_err(|e| PodError::host(format!("cannot make {}", folder.display()), e))?;
        }
        step("have a mount namespace", unshare_mounts())?;
        // Volumes that the host mounts later still come in; nothing of ours goes out.
        step(
            "leave the host's mounts",
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC),
        )?;
        step("mount a tmpfs", mount("kata-rs", &tree, "tmpfs", ALWAYS | MountFlags::NOEXEC, TREE_TMPFS_DATA))?;
        step("show the tree", mount_bind(&tree, &share))?;
        step(
            "protect the tree",
            mount_remount(&share, MountFlags::BIND | MountFlags::RDONLY | ALWAYS | MountFlags::NOEXEC, c""),
        )?;
        step("share the tree", mount_change(&share, MountPropagationFlags::SHARED))?;
        make_dir(&tree.join(STAGE_FOLDER))?;
        make_file(&tree.join(STAGE_FILE))?;
        Ok(Self { tree, share, mounted: BTreeMap::new() })
    }

    fn serve(mut self, inbox: &mpsc::Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            match order {
                Order::Add(plan, reply) => drop(reply.send(self.add(plan))),
                Order::Remove(container, reply) => drop(reply.send(self.remove(&container))),
                Order::End(reply) => {
                    let _ = reply.send(self.end());
                    return;
                }
            }
        }
        self.end();
    }

    fn add(&mut self, plan: StoragePlan) -> Result<(), PodError> {
        let id = plan.container_id.clone();
        let added = self.try_add(plan);
        if added.is_err()
            && let Err(error) = self.remove(&id)
        {
            log::warn!("{error}");
        }
        added
    }

    fn try_add(&mut self, plan: StoragePlan) -> Result<(), PodError> {
        let id = &plan.container_id;
        if self.mounted.contains_key(id) {
            return Err(PodError::new(ErrorKind::AlreadyExists, format!("container {id} has its files already")));
        }
        self.mounted.insert(id.clone(), Vec::new());
        let folder = self.tree.join(id);
        make_dir(&folder)?;
        make_dir(&folder.join("rootfs"))?;
        make_dir(&folder.join("mounts"))?;
        self.mount_rootfs(id, &plan.rootfs)?;
        plan.binds.iter().try_for_each(|bind| self.mount_volume(id, bind))
    }

    fn mount_rootfs(&mut self, id: &str, rootfs: &RootFs) -> Result<(), PodError> {
        let stage = self.tree.join(STAGE_FOLDER);
        match rootfs {
            RootFs::Folder(folder) => {
                let source = open_source(folder, &format!("the root filesystem of container {id}"))?;
                if source.kind != FileType::Directory {
                    let message =
                        format!("the root filesystem {} of container {id} is a file: give a folder", folder.display());
                    return Err(PodError::new(ErrorKind::InvalidArgument, message));
                }
                bind(&source.file, folder, &stage, true, MountFlags::empty())?;
                self.show(id, &stage, "rootfs")
            }
            RootFs::Mounts(mounts) => mounts.iter().try_for_each(|mount| {
                stage_host_mount(mount, &stage)?;
                self.show(id, &stage, "rootfs")
            }),
        }
    }

    fn mount_volume(&mut self, id: &str, wanted: &Bind) -> Result<(), PodError> {
        let source = open_source(&wanted.source, &format!("a volume of container {id}"))?;
        let point = self.tree.join(id).join("mounts").join(&wanted.name);
        let stage = match source.kind {
            FileType::Directory => {
                make_dir(&point)?;
                self.tree.join(STAGE_FOLDER)
            }
            FileType::RegularFile => {
                make_file(&point)?;
                self.tree.join(STAGE_FILE)
            }
            kind => return Err(unshareable(&wanted.source, kind)),
        };
        let flags = if wanted.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        bind(&source.file, &wanted.source, &stage, wanted.recursive, flags)?;
        self.show(id, &stage, &format!("mounts/{}", wanted.name))
    }

    /// Moves what is prepared at `stage` to its place in the share, from where it propagates to the file server.
    fn show(&mut self, id: &str, stage: &Path, place: &str) -> Result<(), PodError> {
        let point = self.share.join(id).join(place);
        mount_move(stage, &point).map_err(|errno| {
            let _ = unmount(stage, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            PodError::host(format!("cannot show {place} of container {id} to the guest"), io::Error::from(errno))
        })?;
        self.mounted.entry(id.to_owned()).or_default().push(point);
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), PodError> {
        let Some(mut points) = self.mounted.remove(id) else { return Ok(()) };
        while let Some(point) = points.pop() {
            if let Err(errno) = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                let error = PodError::host(format!("cannot unmount {}", point.display()), io::Error::from(errno));
                points.push(point);
                self.mounted.insert(id.to_owned(), points);
                return Err(error);
            }
        }
        // Only empty folders and files of our own making are in the tree; no mount is left on them.
        fs::remove_dir_all(self.tree.join(id))
            .map_err(|e| PodError::host(format!("cannot remove the share of container {id}"), e))
    }

    fn end(&mut self) -> Vec<String> {
        let containers: Vec<String> = self.mounted.keys().cloned().collect();
        let problems = containers.iter().filter_map(|id| self.remove(id).err()).map(|e| e.message);
        let mut problems: Vec<String> = problems.collect();
        for point in [&self.share, &self.tree] {
            if let Err(errno) = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                problems.push(format!("cannot unmount {}: {errno}", point.display()));
            }
        }
        problems
    }
}

/// From here on this thread has mounts of its own. (With CLONE_NEWNS the kernel also gives it a working directory of its own.)
fn unshare_mounts() -> rustix::io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// Something to share, looked at and held by one descriptor, so that what is checked is what is mounted.
struct Source {
    file: OwnedFd,
    kind: FileType,
}

fn open_source(path: &Path, whose: &str) -> Result<Source, PodError> {
    let open = || {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok(Source { file, kind })
    };
    open().map_err(|errno: rustix::io::Errno| PodError {
        kind: ErrorKind::InvalidArgument,
        message: format!("{whose} is {}, which cannot be opened: {}", path.display(), io::Error::from(errno)),
        source: Some(Box::new(io::Error::from(errno))),
    })
}

fn unshareable(path: &Path, kind: FileType) -> PodError {
    let what = match kind {
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        _ => "neither a folder nor a file",
    };
    PodError::new(
        ErrorKind::InvalidArgument,
        format!(
            "the volume {} is {what}, which works in the host's kernel only: share a folder or a regular file",
            path.display()
        ),
    )
}

/// Binds an open source onto a stage, with flags on every mount of it.
fn bind(source: &OwnedFd, name: &Path, stage: &Path, recursive: bool, flags: MountFlags) -> Result<(), PodError> {
    let failed = |errno: rustix::io::Errno| {
        let _ = unmount(stage, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        PodError::host(format!("cannot bind {}", name.display()), io::Error::from(errno))
    };
    let held = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    if recursive { mount_bind_recursive(&held, stage) } else { mount_bind(&held, stage) }.map_err(failed)?;
    let points = mounts_at(stage).map_err(|e| PodError::host("cannot read /proc/thread-self/mountinfo", e))?;
    for (point, kept) in points {
        mount_remount(&point, MountFlags::BIND | ALWAYS | flags | kept, c"").map_err(failed)?;
    }
    Ok(())
}

fn stage_host_mount(wanted: &HostMount, stage: &Path) -> Result<(), PodError> {
    let options = MountOptions::parse(&wanted.options);
    if wanted.fs_type == "bind" || options.bind {
        let path = Path::new(&wanted.source);
        let source = open_source(path, "the root filesystem")?;
        if source.kind != FileType::Directory {
            let message = format!("the root filesystem {} is not a folder: unpack the image again", path.display());
            return Err(PodError::new(ErrorKind::InvalidArgument, message));
        }
        return bind(&source.file, path, stage, options.recursive, options.flags);
    }
    let failed = |cause: io::Error| {
        PodError::host(
            format!("cannot mount the {} root filesystem ({})", wanted.fs_type, wanted.options.join(",")),
            cause,
        )
    };
    let overlay = overlay_data(&options.data).ok_or_else(|| {
        PodError::new(ErrorKind::InvalidArgument, "the image has too many layers for one overlay mount: squash it")
    })?;
    let data = std::ffi::CString::new(overlay.data).map_err(|e| failed(e.into()))?;
    // The working directory is this thread's own since it unshared.
    rustix::process::chdir(overlay.relative_to.as_deref().unwrap_or("/")).map_err(|e| failed(e.into()))?;
    let mounted = mount(&wanted.source, stage, &wanted.fs_type, options.flags | ALWAYS, data.as_c_str());
    let back = rustix::process::chdir("/");
    mounted.and(back).map_err(|e| failed(e.into()))
}

/// Mount points at and below a path in this thread's namespace, with the flags that a remount must repeat to keep.
fn mounts_at(path: &Path) -> io::Result<Vec<(PathBuf, MountFlags)>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    Ok(parse_mounts(&table).into_iter().filter(|(point, _)| point.starts_with(path)).collect())
}

/// Mount point and per-mount options of each line (proc(5), fields 5 and 6).
pub(crate) fn parse_mounts(mountinfo: &[u8]) -> Vec<(PathBuf, MountFlags)> {
    let lines = mountinfo.split(|b| *b == b'\n');
    let fields = lines.map(|line| line.split(|b| *b == b' ').skip(4).take(2).collect::<Vec<_>>());
    fields
        .filter_map(|fields| {
            let [point, options] = fields[..] else { return None };
            let options = String::from_utf8_lossy(options).into_owned();
            Some((unescape(point), MountOptions::parse(&[options]).flags))
        })
        .collect()
}

/// Octal escapes of space, tab, newline and backslash (proc(5)).
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal =
            || tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        let escaped = (*first == b'\\').then(octal).flatten();
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn make_dir(path: &Path) -> Result<(), PodError> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(|e| PodError::host(format!("cannot make {}", path.display()), e))
}

fn make_file(path: &Path) -> Result<(), PodError> {
    let made = fs::File::options().write(true).create_new(true).mode(0o644).open(path);
    made.map(drop).map_err(|e| PodError::host(format!("cannot make {}", path.display()), e))
}

#[cfg(test)]
mod tests;
