//! Applies one layer's tar to a folder (OCI image-spec 1.1, layer.md): whiteouts, hard links, owners, modes, times, xattrs.
//!
//! A layer is not trusted: no member may be written through a symlink that leads out of the folder. The tar crate checks that
//! for what it unpacks; whiteouts are checked here.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use tar::EntryType;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Applies the (uncompressed) tar onto `root`. The error is a sentence that names the member.
pub fn apply(tar: impl Read, root: &Path) -> Result<(), String> {
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(true);
    archive.set_overwrite(true);
    for entry in archive.entries().map_err(|e| format!("not a tar: {e}"))? {
        let mut entry = entry.map_err(|e| format!("its tar is broken: {e}"))?;
        let path = entry.path().map_err(|e| format!("a member has no valid name: {e}"))?.into_owned();
        if let Some(whiteout) = Whiteout::of(&path) {
            whiteout.apply(root)?;
            continue;
        }
        match entry.header().entry_type() {
            // A device or socket means nothing inside a layer: the agent makes the guest's /dev.
            EntryType::Char | EntryType::Block | EntryType::Fifo => continue,
            EntryType::Directory => {}
            _ => replace_folder(root, &path)?,
        }
        let inside = entry.unpack_in(root).map_err(|e| format!("member {} cannot be unpacked: {e}", path.display()))?;
        if !inside {
            return Err(format!("member {} leads out of the layer", path.display()));
        }
    }
    Ok(())
}

/// What a `.wh.` member takes away from the layers below.
#[derive(Debug, PartialEq, Eq)]
enum Whiteout {
    /// One file or folder.
    One(PathBuf),
    /// All that is in a folder.
    Contents(PathBuf),
}

impl Whiteout {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        match name {
            OPAQUE => Some(Self::Contents(folder)),
            _ => name.strip_prefix(WHITEOUT).map(|name| Self::One(folder.join(name))),
        }
    }

    fn apply(self, root: &Path) -> Result<(), String> {
        match self {
            Self::One(path) => remove(&inside(root, &path)?),
            Self::Contents(folder) => {
                let Ok(entries) = fs::read_dir(inside(root, &folder)?) else { return Ok(()) };
                entries.flatten().try_for_each(|entry| remove(&entry.path()))
            }
        }
    }
}

/// `root/path`, where no component but the last is a symlink and none climbs.
fn inside(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let mut full = root.to_owned();
    let mut components = path.components().filter(|c| *c != Component::CurDir).peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            return Err(format!("member {} leads out of the layer", path.display()));
        };
        full.push(name);
        let last = components.peek().is_none();
        if !last && full.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            return Err(format!("member {} passes through a symlink", path.display()));
        }
    }
    Ok(full)
}

fn remove(path: &Path) -> Result<(), String> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|e| format!("{} cannot be removed: {e}", path.display()))
}

/// A file that takes the place of a folder of a lower layer.
fn replace_folder(root: &Path, path: &Path) -> Result<(), String> {
    let Ok(full) = inside(root, path) else { return Ok(()) };
    match full.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && full != *root => remove(&full),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_uid(u64::from(rustix::process::getuid().as_raw()));
            header.set_gid(u64::from(rustix::process::getgid().as_raw()));
            let name_field = &mut header.as_gnu_mut().expect("gnu").name;
            name_field[..name.len()].copy_from_slice(name.as_bytes());
            match kind {
                EntryType::Symlink | EntryType::Link => {
                    header.set_link_name(content).expect("short");
                    header.set_size(0);
                    header.set_cksum();
                    builder.append(&header, &[][..]).expect("in memory");
                }
                _ => {
                    header.set_size(content.len() as u64);
                    header.set_cksum();
                    builder.append(&header, content.as_bytes()).expect("in memory");
                }
            }
        }
        builder.into_inner().expect("in memory")
    }

    #[test]
    fn a_whiteout_removes_what_a_lower_layer_had() {
        let root = tempfile::tempdir().expect("temporary folder");
        let lower = tar_of(&[
            ("etc/", EntryType::Directory, ""),
            ("etc/gone", EntryType::Regular, "x"),
            ("etc/kept", EntryType::Regular, "y"),
            ("opaque/", EntryType::Directory, ""),
            ("opaque/old", EntryType::Regular, "z"),
        ]);
        apply(lower.as_slice(), root.path()).expect("lower layer");
        let upper =
            tar_of(&[("etc/.wh.gone", EntryType::Regular, ""), ("opaque/.wh..wh..opq", EntryType::Regular, "")]);
        apply(upper.as_slice(), root.path()).expect("upper layer");
        assert!(!root.path().join("etc/gone").exists());
        assert!(root.path().join("etc/kept").exists());
        assert!(!root.path().join("opaque/old").exists());
    }

    #[test]
    fn a_layer_that_climbs_out_is_refused() {
        let outer = tempfile::tempdir().expect("temporary folder");
        let root = outer.path().join("root");
        fs::create_dir(&root).expect("made");
        let climbing = tar_of(&[("../escaped", EntryType::Regular, "x")]);
        assert!(apply(climbing.as_slice(), &root).is_err());
        let linked = tar_of(&[("out", EntryType::Symlink, ".."), ("out/escaped", EntryType::Regular, "x")]);
        assert!(apply(linked.as_slice(), &root).is_err());
        assert!(!outer.path().join("escaped").exists());
    }

    #[test]
    fn a_whiteout_through_a_symlink_removes_nothing_outside() {
        let outer = tempfile::tempdir().expect("temporary folder");
        let root = outer.path().join("root");
        fs::create_dir(&root).expect("made");
        fs::write(outer.path().join("precious"), "x").expect("written");
        let bad = tar_of(&[("out", EntryType::Symlink, ".."), ("out/.wh.precious", EntryType::Regular, "")]);
        assert!(apply(bad.as_slice(), &root).is_err());
        assert!(outer.path().join("precious").exists());
    }

    #[test]
    fn hard_links_stay_one_file() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().expect("temporary folder");
        let layer = tar_of(&[("busybox", EntryType::Regular, "binary"), ("sh", EntryType::Link, "busybox")]);
        apply(layer.as_slice(), root.path()).expect("applied");
        assert_eq!(fs::metadata(root.path().join("sh")).expect("there").nlink(), 2);
    }
}
