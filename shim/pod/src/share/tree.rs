//! The tree itself, on its thread: mount points, and which mounts are on them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
};

use nix::sched::CloneFlags;
use rustix::{
    fs::FileType,
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move, mount_remount,
        unmount,
    },
};

use super::{
    Order,
    mounting::{ALWAYS, bind, mount_host, open_source, unshareable},
};
use crate::{
    ErrorKind, PodError, RootFs,
    state_dir::{SHARE_FOLDER, TREE_FOLDER},
    storage::{Bind, StoragePlan},
};

/// The tree holds folders and empty files only; more than this is a leak.
const TREE_TMPFS_DATA: &std::ffi::CStr = c"mode=0755,size=4m,nr_inodes=65536";
const STAGE_FOLDER: &str = "stage-folder";
const STAGE_FILE: &str = "stage-file";
/// The tree, on its thread.
#[derive(Debug)]
pub(super) struct Tree {
    tree: PathBuf,
    /// Where it is served.
    pub(super) share: PathBuf,
    /// Mount points of each container, in the order of mounting.
    mounted: BTreeMap<String, Vec<PathBuf>>,
}

impl Tree {
    /// Gives this thread a mount namespace and makes the tree in it.
    pub(super) fn make(state_dir: &Path) -> Result<Self, PodError> {
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

    /// Obeys until nobody can order any more.
    pub(super) fn serve(mut self, inbox: &mpsc::Receiver<Order>) {
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
                mount_host(mount, &stage)?;
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
