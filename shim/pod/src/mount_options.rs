//! Options in the style of fstab, taken apart. Pure.

use rustix::mount::MountFlags;

/// Options as mount(2) wants them: flags, and the file system's own words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Flags of the mount.
    pub flags: MountFlags,
    /// `bind` or `rbind` was said.
    pub bind: bool,
    /// `rbind` was said.
    pub recursive: bool,
    /// The rest, for the file system.
    pub data: Vec<String>,
}

impl MountOptions {
    /// Reads a list of options; the last word on a flag counts. Propagation words are dropped: propagation inside the share tree is ours.
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self { flags: MountFlags::empty(), bind: false, recursive: false, data: Vec::new() };
        for option in options.iter().flat_map(|o| o.split(',')).filter(|o| !o.is_empty()) {
            match option {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable" | "runbindable"
                | "defaults" => {}
                _ => match flag(option) {
                    Some((flag, set)) => parsed.flags.set(flag, set),
                    None => parsed.data.push(option.to_owned()),
                },
            }
        }
        parsed
    }

    /// Is this a read-only mount?
    pub(crate) fn read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" | "rro" => (MountFlags::RDONLY, true),
        "rw" | "rrw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        _ => return None,
    })
}

/// mount(2) reads at most one page of data, its end included.
pub(crate) const MOUNT_DATA_MAX: usize = 4095;

/// An overlay's data, and the folder its lower directories are relative to when the absolute names would not fit into a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverlayData {
    /// Work in this folder while mounting.
    pub relative_to: Option<String>,
    /// The data.
    pub data: String,
}

/// Joins an overlay's options; many layers are named relative to the deepest folder they have in common.
pub(crate) fn overlay_data(options: &[String]) -> Option<OverlayData> {
    let data = options.join(",");
    if data.len() <= MOUNT_DATA_MAX {
        return Some(OverlayData { relative_to: None, data });
    }
    let lower = options.iter().find_map(|o| o.strip_prefix("lowerdir="))?;
    let common = common_folder(lower.split(':'))?;
    let shortened = lower.split(':').map(|l| &l[common.len()..]).collect::<Vec<_>>().join(":");
    let rest = options.iter().filter(|o| !o.starts_with("lowerdir=")).cloned();
    let data = rest.chain([format!("lowerdir={shortened}")]).collect::<Vec<_>>().join(",");
    (data.len() <= MOUNT_DATA_MAX).then_some(OverlayData { relative_to: Some(common), data })
}

/// The longest common beginning that ends in a slash.
fn common_folder<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let first = paths.next()?;
    let shared = paths.fold(first, |shared, path| {
        let same = shared.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
        shared.get(..same).unwrap_or_default()
    });
    let end = shared.rfind('/')? + 1;
    shared.starts_with('/').then(|| shared[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let parsed = parse(&["ro", "nosuid", "index=off", "lowerdir=/a:/b"]);
        assert_eq!(parsed.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(parsed.data, ["index=off", "lowerdir=/a:/b"]);
        assert!(parsed.read_only() && !parsed.bind);
    }

    #[test]
    fn the_last_word_counts_and_propagation_is_ours() {
        let parsed = parse(&["rbind", "ro", "rshared", "rw"]);
        assert_eq!(parsed, MountOptions { flags: MountFlags::empty(), bind: true, recursive: true, data: vec![] });
    }

    #[test]
    fn a_few_layers_keep_their_names() {
        let options = ["lowerdir=/l/1:/l/2".to_owned(), "upperdir=/u".to_owned()];
        let data = overlay_data(&options).expect("fits");
        assert_eq!(data, OverlayData { relative_to: None, data: "lowerdir=/l/1:/l/2,upperdir=/u".into() });
    }

    #[test]
    fn a_hundred_layers_are_named_from_their_common_folder() {
        let folder = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let layers = (100..200).map(|n| format!("{folder}/{n}/fs")).collect::<Vec<_>>().join(":");
        let data = overlay_data(&["upperdir=/u".into(), format!("lowerdir={layers}")]).expect("fits");
        assert_eq!(data.relative_to.as_deref(), Some(&format!("{folder}/1")[..folder.len() + 1]));
        assert!(data.data.starts_with("upperdir=/u,lowerdir=100/fs:101/fs:"), "{}", data.data);
        assert!(data.data.len() <= MOUNT_DATA_MAX);
    }

    #[test]
    fn layers_that_never_fit_are_refused() {
        let layers = (0..1000).map(|n| format!("/somewhere/else{n}/{n}")).collect::<Vec<_>>().join(":");
        assert_eq!(overlay_data(&[format!("lowerdir={layers}")]), None);
    }
}
