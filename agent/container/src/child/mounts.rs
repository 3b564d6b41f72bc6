//! Mounts inside the root, each made detached and attached by descriptor: no path is looked up while mounting.

use super::rootfs::{attach, clone_tree, propagation_flag};
use super::{Newborn, StepError};
use crate::in_root::{self, Leaf, Root};
use crate::plan::{MountAttributes, MountKind, MountPlan};
use crate::procfs::is_procfs;
use crate::sys;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// MOUNT_ATTR_RDONLY of linux/mount.h.
const RDONLY: u64 = 1;

impl Newborn {
    pub(super) fn mount(&mut self, plan: &MountPlan) -> Result<(), StepError> {
        let (tree, leaf) = match &plan.what {
            MountKind::Bind { source, recursive } => bind(source, *recursive)?,
            MountKind::New { fstype, source, options } => {
                let flags = MountAttrFlags::from_bits_retain(low_bits(plan.attributes.set));
                (new_file_system(fstype, source, options, flags)?, Leaf::Directory)
            }
        };
        let destination = self.destination(plan, leaf)?;
        if plan.is_bind() {
            change(&tree, plan.attributes, false)?;
        }
        change(&tree, plan.recursive_attributes, true)?;
        self.check_proc_destination(plan, &tree, &destination)?;
        attach(&tree, &destination)?;
        if let Some(propagation) = plan.propagation {
            sys::set_mount_attributes(tree.as_fd(), 0, 0, propagation_flag(propagation.kind), propagation.recursive)?;
        }
        if plan.readonly_at_last {
            self.readonly_at_last.push(tree);
        }
        Ok(())
    }

    /// Where the mount goes. The places of procfs and sysfs must be what they seem: through a link, the container's real
    /// /proc would be somewhere its image chose (CVE-2023-27561).
    fn destination(&self, plan: &MountPlan, leaf: Leaf) -> Result<OwnedFd, StepError> {
        let root = Root::new(self.root_fd()?);
        let place = root.open_or_make(&plan.destination, leaf)?;
        if plan.is_new("proc") || plan.is_new("sysfs") {
            return root
                .open_without_links(&plan.destination, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|errno| StepError::from(errno).noting("it must be a directory, not a link"));
        }
        Ok(place)
    }

    /// The plan has looked at the name of the destination; a link elsewhere may lead to /proc all the same. There, only a bind
    /// the plan has allowed by name may go, and on /proc itself only a procfs.
    fn check_proc_destination(&self, plan: &MountPlan, tree: &OwnedFd, destination: &OwnedFd) -> Result<(), StepError> {
        let named_proc = plan.destination.starts_with("/proc");
        if named_proc && plan.destination == Path::new("/proc") && !is_procfs(tree)? {
            return Err(StepError::because("only a procfs may be mounted on /proc"));
        }
        if !named_proc && self.leads_into_proc(destination)? {
            return Err(StepError::because("a link leads into /proc, where this may not be mounted"));
        }
        Ok(())
    }

    /// Most destinations are in the root file system itself, which is no procfs. Their device number says so for nothing, while
    /// statfs(2) on a share asks the host each time.
    fn leads_into_proc(&self, destination: &OwnedFd) -> Result<bool, StepError> {
        let here = rustix::fs::fstat(destination)?.st_dev;
        Ok(self.root_device != Some(here) && is_procfs(destination)?)
    }

    pub(super) fn finish_mounts(&mut self) -> Result<(), StepError> {
        for mount in self.readonly_at_last.drain(..) {
            sys::set_mount_attributes(mount.as_fd(), RDONLY, 0, 0, false)?;
        }
        Ok(())
    }

    pub(super) fn make_readonly(&self, path: &Path) -> Result<(), StepError> {
        let Some(place) = self.existing(path)? else { return Ok(()) };
        let tree = clone_tree(&place, true)?;
        sys::set_mount_attributes(tree.as_fd(), RDONLY, 0, 0, true)?;
        Ok(attach(&tree, &place)?)
    }

    pub(super) fn mask(&self, path: &Path) -> Result<(), StepError> {
        let Some(place) = self.existing(path)? else { return Ok(()) };
        let cover = if in_root::file_type(&place)? == FileType::Directory {
            let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            let options = [("size".to_owned(), Some("0".to_owned())), ("nr_inodes".to_owned(), Some("1".to_owned()))];
            new_file_system("tmpfs", "tmpfs", &options, flags)?
        } else {
            let null = self.null.as_ref().ok_or_else(|| StepError::because("the guest's /dev/null is out of reach"))?;
            clone_tree(null, false)?
        };
        Ok(attach(&cover, &place)?)
    }

    /// Paths to mask that do not exist are hidden already.
    fn existing(&self, path: &Path) -> Result<Option<OwnedFd>, StepError> {
        match Root::new(self.root_fd()?).open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            outcome => Ok(Some(outcome?)),
        }
    }
}

fn bind(source: &Path, recursive: bool) -> Result<(OwnedFd, Leaf), StepError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let note = |errno: Errno| StepError::from(errno).noting(format!("source {}", source.display()));
    let file = rustix::fs::openat2(rustix::fs::CWD, source, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .map_err(note)?;
    let leaf = if in_root::file_type(&file)? == FileType::Directory { Leaf::Directory } else { Leaf::File };
    Ok((clone_tree(&file, recursive).map_err(note)?, leaf))
}

fn new_file_system(
    fstype: &str,
    source: &str,
    options: &[(String, Option<String>)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, StepError> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| StepError::from(errno).noting(format!("the guest's kernel has no file system {fstype}")))?;
    fsconfig_set_string(&context, "source", source)?;
    for (key, value) in options {
        let outcome = match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        outcome.map_err(|errno| explain(&context, errno, &format!("option {key} of {fstype}")))?;
    }
    fsconfig_create(&context).map_err(|errno| explain(&context, errno, fstype))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The kernel leaves its reason in the context, when it has one.
fn explain(context: &OwnedFd, errno: Errno, what: &str) -> StepError {
    let mut text = [0; 256];
    let note = match rustix::io::read(context, &mut text) {
        Ok(len) => format!("{what}: {}", String::from_utf8_lossy(&text[..len]).trim()),
        Err(_) => what.to_owned(),
    };
    StepError::from(errno).noting(note)
}

fn change(tree: &OwnedFd, attributes: MountAttributes, recursive: bool) -> Result<(), StepError> {
    if attributes.is_empty() {
        return Ok(());
    }
    Ok(sys::set_mount_attributes(tree.as_fd(), attributes.set, attributes.clear, 0, recursive)?)
}

/// All attribute bits are below 2^32; fsmount takes them as an int.
fn low_bits(set: u64) -> u32 {
    u32::try_from(set).unwrap_or(u32::MAX)
}
