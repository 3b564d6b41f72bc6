//! The guest image: the agent as `/sbin/init`, the directories it mounts things on, and nothing else.
//!
//! Invariants: no shell, no library, no setuid bit, no file that any container could use; the root of the machine is
//! the agent alone. The same agent gives the same image, byte for byte.
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::elf::{Elf, ElfError};
use crate::erofs::{self, ErofsError, Identity};
use crate::tree::{Node, Tree, TreeError};

/// Directories the agent and the kernel mount on; the image is read-only, so they must be there.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "sys", "run", "tmp"];

/// Fixed, so that two builds agree: the letters "kata-rs guest", and the first second of 2026 UTC.
const IDENTITY: Identity = Identity { uuid: *b"kata-rs guest\0\0\0", time_s: 1_767_225_600 };

/// Why no guest image was made.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The agent binary cannot be opened.
    #[error("cannot read the agent {path}; build it first: make build")]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not an x86_64 program.
    #[error("the agent {path} cannot be the guest's init; give an x86_64 Linux program")]
    Elf {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// The guest has no dynamic loader and no libraries.
    #[error(
        "the agent {path} is dynamically linked (it asks for {asks_for}), and the guest image has no libraries; \
         build it static: RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu"
    )]
    Dynamic {
        /// As given.
        path: PathBuf,
        /// The loader or the first library.
        asks_for: String,
    },
    /// The tree could not be made.
    #[error("cannot lay out the guest image")]
    Tree(#[from] TreeError),
    /// The image could not be made.
    #[error("cannot write the guest image")]
    Erofs(#[from] ErofsError),
}

/// Reads and checks the agent at `path`, and returns the guest image's bytes.
pub fn image(path: &Path) -> Result<Vec<u8>, GuestError> {
    let agent = std::fs::read(path).map_err(|source| GuestError::Read { path: path.to_owned(), source })?;
    check_static(path, &agent)?;
    Ok(erofs::image(&tree(agent)?, IDENTITY)?)
}

/// The guest's root file system with these bytes as init.
pub fn tree(agent: Vec<u8>) -> Result<Tree, TreeError> {
    let mut tree = Tree::default();
    tree.insert("sbin/init", Node::file(0o755, agent))?;
    for directory in MOUNT_POINTS {
        tree.insert(directory, Node::directory(0o755))?;
    }
    Ok(tree)
}

fn check_static(path: &Path, agent: &[u8]) -> Result<(), GuestError> {
    let elf = Elf::parse(agent).map_err(|source| GuestError::Elf { path: path.to_owned(), source })?;
    match elf.interpreter.or_else(|| elf.needed.into_iter().next()) {
        Some(asks_for) => Err(GuestError::Dynamic { path: path.to_owned(), asks_for }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::static_program;
    use crate::tree::Kind;

    fn agent_in(directory: &Path) -> PathBuf {
        let path = directory.join("agent");
        std::fs::write(&path, static_program(b"agent")).unwrap();
        path
    }

    #[test]
    fn two_builds_in_different_folders_and_at_different_times_are_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = image(&agent_in(one.path())).unwrap();
        let later = agent_in(two.path());
        let tomorrow = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
        std::fs::File::options().write(true).open(&later).unwrap().set_modified(tomorrow).unwrap();
        assert_eq!(first, image(&later).unwrap());
    }

    #[test]
    fn the_image_holds_the_agent_and_empty_mount_points_only() {
        let tree = tree(b"agent".to_vec()).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["", "dev", "proc", "run", "sbin", "sbin/init", "sys", "tmp"]);
        assert!(tree.iter().all(|(_, node)| node.mode & 0o6000 == 0 && node.uid == 0 && node.gid == 0));
        assert_eq!(tree.iter().filter(|(_, node)| matches!(node.kind, Kind::File(_))).count(), 1);
    }

    #[test]
    fn a_dynamic_agent_is_refused_with_the_way_to_build_a_static_one() {
        let error = image(Path::new("/bin/ls")).unwrap_err().to_string();
        assert!(error.contains("/bin/ls is dynamically linked") && error.contains("crt-static"), "{error}");
    }

    #[test]
    fn a_script_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(matches!(image(&path), Err(GuestError::Elf { source: ElfError::Magic, .. })));
    }
}
