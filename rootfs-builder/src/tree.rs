//! A file tree as a value: what the writers write.
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use thiserror::Error;

/// The largest file a tree takes, in bytes: all of it is held in memory, and nothing built here comes near.
const FILE_SIZE_MAX: u64 = 1 << 30;

/// Why something could not be put in a tree.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The path climbs out of the tree, or is empty.
    #[error("{path:?} is not a path inside an image; give one without '..'")]
    BadPath {
        /// As given.
        path: String,
    },
    /// A package or a folder has a device, socket or fifo.
    #[error("{path} is neither file, directory nor link; images here hold no other kind")]
    Kind {
        /// Inside the tree.
        path: String,
    },
    /// A file beyond what fits in memory sensibly.
    #[error("{path} has {size} bytes, more than {FILE_SIZE_MAX}; leave it out of the image")]
    TooLarge {
        /// Inside the tree.
        path: String,
        /// In bytes.
        size: u64,
    },
    /// A host file or a tar stream could not be read.
    #[error("cannot read {path}")]
    Read {
        /// On the host, or inside the archive.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file and all of its bytes.
    File(Vec<u8>),
    /// A symbolic link and its target, which is not interpreted.
    Symlink(String),
    /// Another name of the file at this path of the same tree.
    HardLink(String),
}

/// One path's metadata and content. There is no time: every writer uses one fixed time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
}

impl Node {
    /// A directory of root.
    pub fn directory(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, kind: Kind::Directory }
    }

    /// A file of root.
    pub fn file(mode: u16, content: impl Into<Vec<u8>>) -> Self {
        Self { mode, uid: 0, gid: 0, kind: Kind::File(content.into()) }
    }

    /// A symbolic link of root.
    pub fn symlink(target: impl Into<String>) -> Self {
        Self { mode: 0o777, uid: 0, gid: 0, kind: Kind::Symlink(target.into()) }
    }

    /// Another name for the file at `target`, a path of the same tree.
    pub fn hard_link(target: impl Into<String>) -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, kind: Kind::HardLink(target.into()) }
    }

    /// The same node with another owner and group.
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }
}

/// A file tree, sorted by path. Paths have no leading slash; the root directory is the empty path and always there.
/// A parent sorts before what is in it, so writers can go through once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([(String::new(), Node::directory(0o755))]) }
    }
}

impl Tree {
    /// Puts a node at `path`, with the directories above it where they are missing. A directory laid over a symbolic
    /// link leaves the link, as dpkg does; everything else replaces.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<(), TreeError> {
        let path = inside(path)?;
        if node.kind == Kind::Directory && self.is_symlink(&path) {
            return Ok(());
        }
        for (slash, _) in path.match_indices('/') {
            self.nodes.entry(path[..slash].to_owned()).or_insert_with(|| Node::directory(0o755));
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// The node at `path`, links not followed.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_matches('/'))
    }

    /// All paths with their nodes, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Drops every path for which `keep` says no. Directories left without content stay.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.nodes.retain(|path, _| path.is_empty() || keep(path));
    }

    /// Adds the entries of a tar stream, each path passed through `rename` (`None` leaves the entry out).
    pub fn add_tar(&mut self, stream: impl Read, rename: impl Fn(&str) -> Option<String>) -> Result<(), TreeError> {
        let unreadable = |source| TreeError::Read { path: "the package's file archive".to_owned(), source };
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
            let Some(place) = rename(path.trim_start_matches("./").trim_matches('/')) else { continue };
            let node = tar_node(&mut entry, &place, &rename)?;
            self.insert(&place, node)?;
        }
        Ok(())
    }

    /// Adds a file or folder of the host at `place`, owned by root, with the host's permission bits.
    pub fn add_host(&mut self, host: &Path, place: &str) -> Result<(), TreeError> {
        let unreadable = |source| TreeError::Read { path: host.display().to_string(), source };
        let metadata = host.symlink_metadata().map_err(unreadable)?;
        let mode = (metadata.permissions().mode() & 0o7777) as u16;
        if metadata.is_symlink() {
            let target = host.read_link().map_err(unreadable)?;
            return self.insert(place, Node::symlink(target.to_string_lossy()));
        }
        if metadata.is_file() {
            check_size(place, metadata.len())?;
            return self.insert(place, Node::file(mode, std::fs::read(host).map_err(unreadable)?));
        }
        if !metadata.is_dir() {
            return Err(TreeError::Kind { path: host.display().to_string() });
        }
        if !place.trim_matches('/').is_empty() {
            self.insert(place, Node::directory(mode))?;
        }
        for entry in std::fs::read_dir(host).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            self.add_host(&entry.path(), &format!("{place}/{}", entry.file_name().to_string_lossy()))?;
        }
        Ok(())
    }

    fn is_symlink(&self, path: &str) -> bool {
        matches!(self.nodes.get(path), Some(Node { kind: Kind::Symlink(_), .. }))
    }
}

fn tar_node(
    entry: &mut tar::Entry<'_, impl Read>,
    place: &str,
    rename: &impl Fn(&str) -> Option<String>,
) -> Result<Node, TreeError> {
    let unreadable = |source| TreeError::Read { path: place.to_owned(), source };
    let link = entry.link_name().map_err(unreadable)?.map(|link| link.to_string_lossy().into_owned());
    let header = entry.header();
    let mode = (header.mode().map_err(unreadable)? & 0o7777) as u16;
    let uid = u32::try_from(header.uid().map_err(unreadable)?).unwrap_or(0);
    let gid = u32::try_from(header.gid().map_err(unreadable)?).unwrap_or(0);
    let kind = match (header.entry_type(), link) {
        (tar::EntryType::Directory, _) => Kind::Directory,
        (tar::EntryType::Symlink, Some(target)) => Kind::Symlink(target),
        (tar::EntryType::Link, Some(target)) => {
            let target = target.trim_start_matches("./");
            Kind::HardLink(rename(target).unwrap_or_else(|| target.to_owned()))
        }
        (tar::EntryType::Regular | tar::EntryType::Continuous, _) => {
            check_size(place, entry.size())?;
            let mut content = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
            entry.read_to_end(&mut content).map_err(unreadable)?;
            Kind::File(content)
        }
        _ => return Err(TreeError::Kind { path: place.to_owned() }),
    };
    Ok(Node { mode, uid, gid, kind })
}

fn check_size(path: &str, size: u64) -> Result<(), TreeError> {
    if size > FILE_SIZE_MAX {
        return Err(TreeError::TooLarge { path: path.to_owned(), size });
    }
    Ok(())
}

/// The path without its outer slashes, or an error when it is not a plain path below the root.
fn inside(path: &str) -> Result<String, TreeError> {
    let trimmed = path.trim_matches('/');
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if trimmed.split('/').all(plain) || trimmed.is_empty() && path.contains('/') {
        return Ok(trimmed.to_owned());
    }
    Err(TreeError::BadPath { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_parent_always_comes_before_what_is_in_it() {
        let mut tree = Tree::default();
        tree.insert("/a/b/c", Node::file(0o644, "x")).unwrap();
        tree.insert("a-b", Node::file(0o644, "x")).unwrap();
        assert_eq!(paths(&tree), ["", "a", "a-b", "a/b", "a/b/c"]);
    }

    #[test]
    fn a_path_that_climbs_out_is_refused() {
        for path in ["../x", "a/../../x", "a/./b", ""] {
            assert!(Tree::default().insert(path, Node::directory(0o755)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_directory_does_not_replace_a_symbolic_link() {
        let mut tree = Tree::default();
        tree.insert("bin", Node::symlink("usr/bin")).unwrap();
        tree.insert("bin", Node::directory(0o755)).unwrap();
        assert_eq!(tree.node("bin"), Some(&Node::symlink("usr/bin")));
    }

    #[test]
    fn a_tar_stream_keeps_owners_modes_and_hard_links() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(9);
        header.set_size(2);
        builder.append_data(&mut header.clone(), "./bin/one", &b"hi"[..]).unwrap();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, "./bin/two", "./bin/one").unwrap();
        let bytes = builder.into_inner().unwrap();

        let mut tree = Tree::default();
        tree.add_tar(bytes.as_slice(), |path| Some(format!("usr/{path}"))).unwrap();
        assert_eq!(tree.node("usr/bin/one"), Some(&Node::file(0o4755, "hi").owned_by(7, 9)));
        assert_eq!(tree.node("usr/bin/two").unwrap().kind, Kind::HardLink("usr/bin/one".to_owned()));
    }
}
