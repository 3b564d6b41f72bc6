//! The folder of a pod's run-time state: made by launch, removed at the end, never followed anywhere.

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use crate::{ErrorKind, PodError, record::RECORD_FILE};

/// Hybrid socket of the machine's vsock.
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";
/// Socket of the file server; its name is gone as soon as both ends are connected.
pub(crate) const SHARE_SOCKET: &str = "share.sock";
/// Where the share tree is built, in the pod's mount namespace.
pub(crate) const TREE_FOLDER: &str = "tree";
/// The share tree as the file server sees it, in the pod's mount namespace.
pub(crate) const SHARE_FOLDER: &str = "share";
/// Everything that we put into the folder; nothing else is ever removed.
const FILES: [&str; 3] = [VSOCK_SOCKET, SHARE_SOCKET, RECORD_FILE];
const FOLDERS: [&str; 2] = [SHARE_FOLDER, TREE_FOLDER];
/// Ancestors with this name and below are ours to remove when they are empty.
const OWN_ANCESTOR: &str = "kata-rs";
/// How often making is tried again when another pod removes the empty parent meanwhile.
const MAKE_ATTEMPTS: usize = 16;

/// An open state folder.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    dir: rustix::fd::OwnedFd,
}

impl StateDir {
    /// Makes the folder (0700), with its parents. It must not be there: two owners of one pod would undo each other.
    pub(crate) fn make(path: &Path) -> Result<Self, PodError> {
        if !path.is_absolute() {
            return Err(PodError::new(
                ErrorKind::InvalidArgument,
                format!("the state folder {} is not absolute", path.display()),
            ));
        }
        make_folder(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PodError::new(
                ErrorKind::AlreadyExists,
                format!(
                    "{} exists: the pod is running, or a crash left it behind (clean it up, or take another id)",
                    path.display()
                ),
            ),
            _ => PodError::host(format!("cannot make the state folder {}", path.display()), error),
        })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| PodError::host(format!("cannot open {}", path.display()), io::Error::from(errno)))?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A name in it that is always short: unix socket addresses hold 108 bytes (unix(7)), and state folders are deep.
    pub(crate) fn short_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()))
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    for _ in 0..MAKE_ATTEMPTS {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            made => return made,
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

/// Removes a state folder and what we put into it. Folders are removed only when empty, so nothing is ever deleted through a mount.
/// Returns what could not be removed.
pub(crate) fn remove(path: &Path) -> Vec<String> {
    let files = FILES.iter().map(|name| (path.join(name), fs::remove_file as fn(PathBuf) -> io::Result<()>));
    let folders =
        FOLDERS.iter().map(|name| path.join(name)).chain([path.to_owned()]).map(|folder| (folder, fs::remove_dir as _));
    let problems: Vec<String> = files
        .chain(folders)
        .filter_map(|(path, remove)| match remove(path.clone()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Some(format!("cannot remove {}: {error}", path.display()))
            }
            _ => None,
        })
        .collect();
    // Other pods may live there: what is not empty stays.
    own_ancestors(path).into_iter().take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
    problems
}

/// The folders above, nearest first, up to one named `kata-rs`; none when there is no such one.
fn own_ancestors(path: &Path) -> Vec<PathBuf> {
    let above: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
    let last = above.iter().position(|folder| folder.file_name().is_some_and(|name| name == OWN_ANCESTOR));
    last.map_or(Vec::new(), |last| above[..=last].to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_state_folder_is_private_and_goes_with_its_empty_ancestors() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("kata-rs/default/pod");
        let state = StateDir::make(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        fs::write(state.short_path(RECORD_FILE), "x").expect("the short name works");
        assert_eq!(remove(&path), Vec::<String>::new());
        assert_eq!(fs::read_dir(root.path()).expect("kept").count(), 0);
        assert_eq!(remove(&path), Vec::<String>::new(), "twice is fine");
    }

    #[test]
    fn a_taken_folder_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let error = StateDir::make(root.path()).expect_err("taken");
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        assert!(root.path().exists());
    }

    #[test]
    fn other_peoples_files_and_ancestors_are_left_alone() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("pods/p");
        StateDir::make(&path).expect("made");
        fs::create_dir(path.join(SHARE_FOLDER)).expect("made");
        fs::write(path.join(SHARE_FOLDER).join("precious"), "x").expect("written");
        assert_eq!(remove(&path).len(), 2, "the share folder and the state folder are not empty");
        assert!(path.join(SHARE_FOLDER).join("precious").exists());
        assert!(own_ancestors(&path).is_empty());
    }
}
