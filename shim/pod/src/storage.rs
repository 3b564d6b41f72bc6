//! The storage plan: how each mount of an OCI spec reaches the guest. Pure.
//!
//! Every mount goes one of four ways:
//! - *made in the guest* (proc, sysfs, tmpfs, devpts, mqueue, cgroup): passed on unchanged;
//! - *the pod's shared memory* (what a runtime made on the host to be shown at /dev/shm): one tmpfs of the guest, of the same size, for all of
//!   the pod's containers. Over a share, two containers would each map pages of their own, and nobody would count them;
//! - *the guest's own* (a bind of something below /proc, /sys or /dev): the guest has its own, and the host's would be a leak;
//! - *shared* (every other bind): bound into the share tree by the host, which also enforces read-only, and named by its guest path.
//!
//! ```text
//!  host: <share>/<container>/rootfs      guest: /run/kata-rs/share/<container>/rootfs
//!        <share>/<container>/mounts/<n>         /run/kata-rs/share/<container>/mounts/<n>
//! ```

use std::path::{Component, Path, PathBuf};

use agent_protocol::SHARE_MOUNT_POINT;
use oci_spec::runtime::Mount;

use crate::{ErrorKind, HostMount, PodError, RootFs, membership::Membership, mount_options::MountOptions, refusals};

/// Most mounts of one container; Kubernetes pods have tens.
pub(crate) const MOUNTS_MAX: usize = 1024;

/// File systems that the guest makes itself.
const MADE_IN_GUEST: [&str; 9] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "ramfs"];
/// Trees of which the guest has its own; a bind from there stays in the guest.
const GUESTS_OWN: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Except these, which are ordinary folders of the host.
const SHARED_AFTER_ALL: [&str; 1] = ["/dev/shm"];
/// Where shared memory is, in every container and in the guest.
const SHARED_MEMORY: &str = "/dev/shm";

/// One path of the host, bound into the share tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    /// The host's path; symbolic links in it are followed, as every runtime does.
    pub source: PathBuf,
    /// Name below the container's `mounts` folder.
    pub name: String,
    /// With the mounts below it.
    pub recursive: bool,
    /// The host refuses writes.
    pub read_only: bool,
}

/// What the host has to do before the container is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoragePlan {
    /// Whose it is.
    pub container_id: String,
    /// The root file system.
    pub rootfs: RootFs,
    /// The volumes.
    pub binds: Vec<Bind>,
    /// The host's folder in whose place the guest's shared memory is; its size counts.
    pub shared_memory: Option<PathBuf>,
}

impl StoragePlan {
    /// Plans a container's storage and rewrites the sources of its mounts into guest paths.
    pub(crate) fn make(
        container_id: &str,
        membership: &Membership,
        rootfs: RootFs,
        mounts: &mut [Mount],
    ) -> Result<Self, PodError> {
        check_rootfs(&rootfs)?;
        if mounts.len() > MOUNTS_MAX {
            return Err(refused(format!("the container has {} mounts, more than {MOUNTS_MAX}", mounts.len())));
        }
        let mut binds = Vec::new();
        let mut shared_memory = None;
        let pod = match membership {
            Membership::Member { sandbox } => sandbox,
            Membership::Alone | Membership::Sandbox => container_id,
        };
        for mount in mounts {
            if is_shared_memory(mount, pod) {
                shared_memory = mount.source().clone();
                mount.set_source(Some(SHARED_MEMORY.into()));
                mount.set_typ(Some("bind".to_owned()));
            } else if let Some(bind) = plan_mount(mount, binds.len())? {
                mount.set_source(Some(guest_mount_path(container_id, &bind.name)));
                mount.set_typ(Some("bind".to_owned()));
                binds.push(bind);
            }
        }
        Ok(Self { container_id: container_id.to_owned(), rootfs, binds, shared_memory })
    }
}

/// Is this the tmpfs that the runtime made for the pod (`.../<pod's id>/shm`, `.../<pod's id>/userdata/shm`, `.../<id>/mounts/shm`)? A
/// volume that its owner wants at /dev/shm has a path of another form, and stays a volume.
fn is_shared_memory(mount: &Mount, pod: &str) -> bool {
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    let is_bind = options.bind || mount.typ().as_deref() == Some("bind");
    let source = mount.source().as_deref().filter(|source| source.is_absolute() && source.ends_with("shm"));
    let of_the_pod = |source: &Path| source.components().any(|part| part == Component::Normal(pod.as_ref()));
    is_bind && mount.destination() == Path::new(SHARED_MEMORY) && source.is_some_and(of_the_pod)
}

/// Where the container's root is in the guest.
pub(crate) fn guest_rootfs_path(container_id: &str) -> PathBuf {
    Path::new(SHARE_MOUNT_POINT).join(container_id).join("rootfs")
}

fn guest_mount_path(container_id: &str, name: &str) -> PathBuf {
    Path::new(SHARE_MOUNT_POINT).join(container_id).join("mounts").join(name)
}

fn plan_mount(mount: &Mount, number: usize) -> Result<Option<Bind>, PodError> {
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    let fs_type = mount.typ().as_deref().unwrap_or_default();
    let destination = mount.destination().display();
    if !options.bind && fs_type != "bind" {
        return if MADE_IN_GUEST.contains(&fs_type) {
            Ok(None)
        } else {
            Err(refusals::MOUNT_TYPE.of(format!("the mount of type {fs_type:?} at {destination}")))
        };
    }
    let source = mount.source().as_deref().filter(|s| s.is_absolute());
    let source = source.ok_or_else(|| refused(format!("the bind mount at {destination} has no absolute source")))?;
    if is_guests_own(source) {
        return Ok(None);
    }
    Ok(Some(Bind {
        source: source.to_owned(),
        name: number.to_string(),
        // runc binds `bind` alone too, but a type of "bind" without either word means the whole tree there as well.
        recursive: options.recursive || !options.bind,
        read_only: options.read_only(),
    }))
}

fn is_guests_own(source: &Path) -> bool {
    let below = |roots: &[&str]| roots.iter().any(|root| source.starts_with(root));
    // `..` could lead out of the tree again; such a path is the host's, and shared as what it is.
    let plain = source.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    plain && below(&GUESTS_OWN) && !below(&SHARED_AFTER_ALL)
}

fn check_rootfs(rootfs: &RootFs) -> Result<(), PodError> {
    match rootfs {
        RootFs::Folder(folder) if folder.is_absolute() => Ok(()),
        RootFs::Folder(folder) => {
            Err(refused(format!("the root filesystem {} is not an absolute path", folder.display())))
        }
        RootFs::Mounts(mounts) if mounts.is_empty() => Err(refused(
            "the container has no root filesystem: its image has no layers, or its snapshot no mounts".to_owned(),
        )),
        RootFs::Mounts(mounts) => mounts.iter().try_for_each(check_host_mount),
    }
}

/// Only file systems whose bytes the guest never writes itself: a block device's would be parsed by the host's kernel.
fn check_host_mount(mount: &HostMount) -> Result<(), PodError> {
    match mount.fs_type.as_str() {
        "overlay" | "bind" => Ok(()),
        other => Err(refusals::ROOTFS_TYPE.of(format!("the root filesystem of type {other:?} ({})", mount.source))),
    }
}

fn refused(message: String) -> PodError {
    PodError::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(typ: &str, source: &str, options: &[&str]) -> Mount {
        MountBuilder::default()
            .destination("/d")
            .typ(typ)
            .source(source)
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
            .expect("a mount")
    }

    fn folder() -> RootFs {
        RootFs::Folder("/rootfs".into())
    }

    fn plan(mounts: &mut [Mount]) -> Result<StoragePlan, PodError> {
        StoragePlan::make("c1", &Membership::Alone, folder(), mounts)
    }

    #[test]
    fn what_the_guest_makes_itself_passes_unchanged() {
        let mut mounts = [
            mount("proc", "proc", &["nosuid"]),
            mount("tmpfs", "shm", &["size=65536k"]),
            mount("cgroup", "cgroup", &["ro"]),
        ];
        let before = mounts.clone();
        assert_eq!(plan(&mut mounts).expect("planned").binds, []);
        assert_eq!(mounts, before);
    }

    fn at_dev_shm(source: &str) -> Mount {
        let mut mount = mount("bind", source, &["rbind", "ro", "nosuid"]);
        mount.set_destination(SHARED_MEMORY.into());
        mount
    }

    #[test]
    fn the_pods_shared_memory_is_the_guests() {
        let member = Membership::Member { sandbox: "p".into() };
        for (membership, source) in [
            (&member, "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/p/shm"),
            (&member, "/run/containers/storage/overlay-containers/p/userdata/shm"),
            (&Membership::Sandbox, "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/c1/shm"),
            (&Membership::Alone, "/var/lib/docker/containers/c1/mounts/shm"),
        ] {
            let mut mounts = [at_dev_shm(source)];
            let plan = StoragePlan::make("c1", membership, folder(), &mut mounts).expect("planned");
            assert_eq!((plan.binds, plan.shared_memory.as_deref()), (vec![], Some(Path::new(source))));
            assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/dev/shm")));
            assert_eq!(mounts[0].options().as_deref().expect("kept"), ["rbind", "ro", "nosuid"]);
        }
    }

    #[test]
    fn a_volume_at_dev_shm_stays_a_volume() {
        let member = Membership::Member { sandbox: "p".into() };
        for source in
            ["/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/shm", "/dev/shm", "/srv/p/data", "/p/shm/x"]
        {
            let mut mounts = [at_dev_shm(source)];
            let plan = StoragePlan::make("c1", &member, folder(), &mut mounts).expect("planned");
            assert_eq!((plan.binds.len(), plan.shared_memory), (1, None), "{source}");
        }
    }

    #[test]
    fn a_volume_is_bound_and_named_by_its_guest_path() {
        let mut mounts = [
            mount("proc", "proc", &[]),
            mount("bind", "/data", &["rbind", "rw"]),
            mount("bind", "/etc/hosts", &["bind", "ro"]),
        ];
        let plan = plan(&mut mounts).expect("planned");
        let data = Bind { source: "/data".into(), name: "0".into(), recursive: true, read_only: false };
        let hosts = Bind { source: "/etc/hosts".into(), name: "1".into(), recursive: false, read_only: true };
        assert_eq!(plan.binds, [data, hosts]);
        assert_eq!(mounts[2].source().as_deref(), Some(Path::new("/run/kata-rs/share/c1/mounts/1")));
        assert_eq!(mounts[2].options().as_deref().expect("kept"), ["bind", "ro"]);
    }

    #[test]
    fn the_hosts_proc_sys_and_dev_never_leave_the_host() {
        for source in ["/proc", "/sys/fs/cgroup", "/dev/null", "/dev"] {
            let mut mounts = [mount("bind", source, &["rbind"])];
            assert_eq!(plan(&mut mounts).expect("planned").binds, [], "{source}");
            assert_eq!(mounts[0].source().as_deref(), Some(Path::new(source)));
        }
        for source in ["/dev/shm/x", "/proc/../etc", "/device"] {
            assert_eq!(plan(&mut [mount("bind", source, &["rbind"])]).expect("planned").binds.len(), 1, "{source}");
        }
    }

    #[test]
    fn mounts_without_a_way_into_the_guest_are_refused_by_name() {
        for (mount, kind, words) in [
            (mount("nfs", "server:/x", &[]), ErrorKind::Unimplemented, "\"nfs\" at /d"),
            (mount("bind", "relative", &["bind"]), ErrorKind::InvalidArgument, "no absolute source"),
        ] {
            let error = plan(&mut [mount]).expect_err(words);
            assert_eq!(error.kind, kind);
            assert!(error.message.contains(words), "{}", error.message);
        }
    }

    #[test]
    fn a_root_filesystem_that_is_none_is_refused() {
        let ext4 = HostMount { fs_type: "ext4".into(), source: "/dev/vda".into(), options: vec![] };
        for (rootfs, words) in [
            (RootFs::Mounts(vec![]), "no root filesystem"),
            (RootFs::Mounts(vec![ext4]), "\"ext4\""),
            (RootFs::Folder("rootfs".into()), "not an absolute path"),
        ] {
            let error = StoragePlan::make("c1", &Membership::Alone, rootfs, &mut []).expect_err(words);
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
