//! A group: the containers that share one pod, hence one daemon, one socket and one machine.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::{
    arguments::{ArgumentError, Arguments, check_identifier},
    bundle,
};

/// Where pods' run-time state lives unless the variable says otherwise.
pub const STATE_ROOT: &str = "/run/kata-rs";
/// Environment variable that moves [`STATE_ROOT`], for tests.
pub const STATE_ROOT_VARIABLE: &str = "KATA_RS_STATE_DIR";
/// Folder of the sockets below the state root. A namespace cannot begin with a dot, so it meets none.
const SOCKET_DIR: &str = ".s";
/// How often a folder that others remove is made again.
const FOLDER_ATTEMPTS_MAX: u32 = 100;

/// A group's names and paths; pure, so that start, daemon and delete agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The pod's id: the sandbox's, or the container's own.
    pub id: String,
    /// The pod's folder, as [`pod::PodSpec::state_dir`].
    pub state_dir: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
}

impl Group {
    /// The group of the container that `arguments` and the bundle describe.
    ///
    /// # Errors
    /// A name that could lead out of our folders.
    pub fn of(arguments: &Arguments, bundle: &Path) -> Result<Self, ArgumentError> {
        let root = std::env::var_os(STATE_ROOT_VARIABLE).map_or_else(|| PathBuf::from(STATE_ROOT), PathBuf::from);
        let id = bundle::sandbox_id(bundle).unwrap_or_else(|| arguments.id.clone());
        check_identifier("sandbox id", &id)?;
        Ok(Self::named(&root, &arguments.address, &arguments.namespace, &id))
    }

    /// The group `id` of one namespace of the containerd at `address`.
    pub fn named(root: &Path, address: &str, namespace: &str, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            state_dir: root.join(namespace).join(id),
            socket: root.join(SOCKET_DIR).join(socket_name(address, namespace, id)),
        }
    }

    /// The address that containerd is told.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Where the record of the pod's cgroup on the host is: beside the socket.
    pub fn cgroup_record(&self) -> PathBuf {
        self.socket.with_extension("cgroup")
    }

    /// Takes the lock that orders the starts and deletes of all groups, making the socket folder if need be.
    /// It is held for moments only, and the kernel lets go of it when the process ends.
    ///
    /// # Errors
    /// The folder cannot be made or is not ours alone.
    pub fn lock(&self) -> io::Result<File> {
        let folder = self.socket.parent().ok_or_else(|| io::Error::other("a socket path without a folder"))?;
        let mut attempts = 0;
        loop {
            match lock_folder(folder) {
                Ok(Some(lock)) => return Ok(lock),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Whoever removed its last socket removed the folder too, between two of our steps.
                _ => attempts += 1,
            }
            if attempts >= FOLDER_ATTEMPTS_MAX {
                return Err(io::Error::other("the folder is removed again and again"));
            }
        }
    }

    /// Removes the socket, and our folder of sockets if it was the last; a socket that somebody still listens to stays
    /// unless it is the caller's own.
    pub fn remove_socket(&self, ours: bool) {
        if !self.socket.exists() {
            return;
        }
        let _lock = self.lock();
        if ours || UnixStream::connect(&self.socket).is_err() {
            let _ = fs::remove_file(&self.socket);
        }
        self.remove_folder();
    }

    /// Removes our folder of sockets if nothing is in it any more. Hold the lock.
    pub fn remove_folder(&self) {
        if let Some(folder) = self.socket.parent().filter(|folder| folder.ends_with(SOCKET_DIR)) {
            let _ = fs::remove_dir(folder);
        }
    }
}

// Nothing, when the folder that was locked is no longer the one that has the name.
fn lock_folder(folder: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = File::open(folder)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let (locked, named) = (lock.metadata()?, fs::metadata(folder)?);
    if (locked.dev(), locked.ino()) != (named.dev(), named.ino()) {
        return Ok(None);
    }
    if folder.ends_with(SOCKET_DIR) && locked.permissions().mode() & 0o077 != 0 {
        lock.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(Some(lock))
}

// A path of a socket ends at 107 bytes, two identifiers alone can be longer: hence a digest.
fn socket_name(address: &str, namespace: &str, id: &str) -> String {
    let mut digest = Sha256::new();
    for part in [address, namespace, id] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn containers_of_one_sandbox_share_socket_and_state() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"pod1"}}"#,
        )
        .expect("written");
        let line = |id: &str| {
            Arguments::parse(["-namespace", "k8s.io", "-id", id, "start"].map(str::to_owned)).expect("parsed")
        };
        let one = Group::of(&line("c1"), dir.path()).expect("group");
        let two = Group::of(&line("c2"), dir.path()).expect("group");
        assert_eq!(one, two);
        assert!(one.state_dir.ends_with("k8s.io/pod1"));
    }

    #[test]
    fn a_sandbox_id_cannot_lead_out_of_our_folders() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"../../etc"}}"#,
        )
        .expect("written");
        let line = Arguments::parse(["-namespace", "k8s.io", "-id", "c1", "start"].map(str::to_owned)).expect("parsed");
        assert!(Group::of(&line, dir.path()).is_err());
    }

    #[test]
    fn socket_paths_fit_and_differ_wherever_a_name_does() {
        let long = "x".repeat(76);
        let path = |address: &str, namespace: &str, id: &str| {
            Group::named(Path::new(STATE_ROOT), address, namespace, id).socket
        };
        assert!(path(&long, &long, &long).as_os_str().len() < 108);
        let base = path("/a", "ns", "id");
        for other in [path("/b", "ns", "id"), path("/a", "nsi", "d"), path("/a", "ns", "id2")] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_socket_folder_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let group = Group::named(dir.path(), "", "ns", "id");
        let _lock = group.lock().expect("locked");
        let mode = std::fs::metadata(dir.path().join(SOCKET_DIR)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn the_last_socket_takes_the_folder_with_it_and_one_that_is_used_stays() {
        let dir = tempfile::tempdir().expect("folder");
        let group = |id| Group::named(dir.path(), "", "ns", id);
        let (one, two) = (group("one"), group("two"));
        drop(one.lock().expect("locked"));
        let listener = UnixListener::bind(&one.socket).expect("bound");
        drop(UnixListener::bind(&two.socket).expect("bound"));
        one.remove_socket(false);
        two.remove_socket(false);
        assert!(one.socket.exists() && !two.socket.exists());
        drop(listener);
        one.remove_socket(false);
        assert!(!dir.path().join(SOCKET_DIR).exists());
    }

    #[test]
    fn a_lock_is_always_that_of_the_folder_with_the_name() {
        let dir = tempfile::tempdir().expect("folder");
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let group = Group::named(dir.path(), "", "ns", &format!("c{number}"));
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        let lock = group.lock().expect("locked");
                        let listener = UnixListener::bind(&group.socket).expect("the folder stays while it is locked");
                        drop((lock, listener));
                        group.remove_socket(true);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no start fails"));
    }
}
