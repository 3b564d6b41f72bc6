//! Mounts: fstab-style words to the attributes and options of the kernel's mount interface, fsopen(2) and mount_setattr(2).

use super::{MountAttributes, MountKind, MountPlan, PlanError, Propagation};
use oci_spec::runtime::Mount;
use std::path::Path;

/// MOUNT_ATTR_* of linux/mount.h.
pub(crate) mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// The field that the three ways of access times share.
    pub const ATIME_MASK: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// Each word, the bits it sets and the bits it clears. With an `r` in front it holds for the mounts below too.
const ATTRIBUTE_WORDS: [(&str, u64, u64); 18] = [
    ("ro", attr::RDONLY, 0),
    ("rw", 0, attr::RDONLY),
    ("nosuid", attr::NOSUID, 0),
    ("suid", 0, attr::NOSUID),
    ("nodev", attr::NODEV, 0),
    ("dev", 0, attr::NODEV),
    ("noexec", attr::NOEXEC, 0),
    ("exec", 0, attr::NOEXEC),
    ("nodiratime", attr::NODIRATIME, 0),
    ("diratime", 0, attr::NODIRATIME),
    ("relatime", 0, attr::ATIME_MASK),
    ("norelatime", attr::STRICTATIME, attr::ATIME_MASK),
    ("noatime", attr::NOATIME, attr::ATIME_MASK),
    ("atime", 0, attr::ATIME_MASK),
    ("strictatime", attr::STRICTATIME, attr::ATIME_MASK),
    ("nostrictatime", 0, attr::ATIME_MASK),
    ("nosymfollow", attr::NOSYMFOLLOW, 0),
    ("symfollow", 0, attr::NOSYMFOLLOW),
];

/// Words that ask for something this runtime does not do, each with its reason.
const REFUSED_WORDS: [(&str, &str); 4] = [
    ("remount", "a mount is made once, with its final options; leave the word out"),
    ("tmpcopyup", "copying the image's files into a tmpfs is not supported; leave the word out"),
    ("idmap", "id-mapped mounts need user namespaces, which are not supported inside the machine"),
    ("ridmap", "id-mapped mounts need user namespaces, which are not supported inside the machine"),
];

/// Files of procfs that may be covered by a bind mount (what lxcfs provides); everything else below /proc must stay real,
/// because the runtime and the kernel's security modules trust it.
#[rustfmt::skip]
const PROC_BINDS: [&str; 10] = [
    "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
    "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid",
];

/// All mounts in the order of the specification.
pub(super) fn plan(mounts: &[Mount]) -> Result<Vec<MountPlan>, PlanError> {
    mounts.iter().map(one).collect()
}

fn one(mount: &Mount) -> Result<MountPlan, PlanError> {
    let destination = super::absolute("mounts.destination", mount.destination())?;
    let refuse = |value: &str, hint| PlanError::Invalid {
        field: format!("mount at {}", destination.display()),
        value: value.to_owned(),
        hint,
    };
    if destination == Path::new("/") {
        return Err(refuse("/", "the root is given by `root`, not by a mount"));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refuse("uidMappings", REFUSED_WORDS[2].1));
    }
    let mut words = Words::default();
    for word in mount.options().as_deref().unwrap_or_default() {
        if let Some((_, why)) = REFUSED_WORDS.iter().find(|(refused, _)| refused == word) {
            return Err(refuse(word, why));
        }
        words.read(word);
    }
    let what = kind(mount, &mut words).map_err(|(value, hint)| refuse(&value, hint))?;
    let is_bind = matches!(what, MountKind::Bind { .. });
    check_proc(&destination, &what).map_err(|hint| refuse(&destination.display().to_string(), hint))?;
    // What is put below a new file system later needs it writable until then.
    let readonly_at_last = !is_bind && words.attributes.set & attr::RDONLY != 0;
    if readonly_at_last {
        words.attributes.set &= !attr::RDONLY;
    }
    Ok(MountPlan {
        destination,
        what,
        attributes: words.attributes,
        recursive_attributes: words.recursive,
        propagation: words.propagation,
        readonly_at_last,
    })
}

#[derive(Default)]
struct Words {
    attributes: MountAttributes,
    recursive: MountAttributes,
    propagation: Option<Propagation>,
    /// Some(recursive) once `bind` or `rbind` is read.
    bind: Option<bool>,
    data: Vec<(String, Option<String>)>,
}

impl Words {
    fn read(&mut self, word: &str) {
        match word {
            "" | "defaults" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            _ if Propagation::from_word(word).is_some() => self.propagation = Propagation::from_word(word),
            _ => match (attribute(word), word.strip_prefix('r').and_then(attribute)) {
                (Some(bits), _) => merge(&mut self.attributes, bits),
                (None, Some(bits)) => merge(&mut self.recursive, bits),
                (None, None) => self.data.push(match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                }),
            },
        }
    }
}

fn attribute(word: &str) -> Option<(u64, u64)> {
    ATTRIBUTE_WORDS.iter().find(|(known, ..)| *known == word).map(|&(_, set, clear)| (set, clear))
}

/// The last word wins, as it does in fstab.
fn merge(attributes: &mut MountAttributes, (set, clear): (u64, u64)) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !set) | clear;
    if (set | clear) & attr::ATIME_MASK != 0 {
        // The kernel takes the whole field or nothing of it.
        attributes.clear |= attr::ATIME_MASK;
    }
}

fn kind(mount: &Mount, words: &mut Words) -> Result<MountKind, (String, &'static str)> {
    let fstype = mount.typ().clone().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    if let Some(recursive) = words.bind.or((fstype == "bind").then_some(false)) {
        let source = super::absolute("mounts.source", &source)
            .map_err(|_| (source.display().to_string(), "a bind mount needs an absolute source without '..'"))?;
        // Options of a file system mean nothing for a bind; containerd passes some along, and the kernel ignores them too.
        words.data.clear();
        return Ok(MountKind::Bind { source, recursive });
    }
    let fstype = match fstype.as_str() {
        "" => return Err((String::new(), "give the mount a type, or `bind` among its options")),
        // Whatever the host has, the guest has version 2 alone.
        "cgroup" | "cgroup2" => {
            words.data.clear();
            "cgroup2".to_owned()
        }
        _ => fstype,
    };
    let source = match source.to_string_lossy() {
        text if text.is_empty() => fstype.clone(),
        text => text.into_owned(),
    };
    Ok(MountKind::New { fstype, source, options: std::mem::take(&mut words.data) })
}

fn check_proc(destination: &Path, what: &MountKind) -> Result<(), &'static str> {
    if !destination.starts_with("/proc") {
        return Ok(());
    }
    let allowed = match what {
        MountKind::New { fstype, .. } => destination == Path::new("/proc") && fstype == "proc",
        MountKind::Bind { .. } if destination == Path::new("/proc") => true,
        MountKind::Bind { .. } => PROC_BINDS.iter().any(|path| destination == Path::new(path)),
    };
    if allowed { Ok(()) } else { Err("only /proc itself, or one of the files lxcfs provides, may be mounted there") }
}
