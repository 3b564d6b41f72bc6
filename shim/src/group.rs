//! A group: the containers that share one pod, hence one daemon, one socket and one machine.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
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

    /// Takes the lock that orders the starts and deletes of all groups, making the socket folder if need be.
    /// It is held for moments only, and the kernel lets go of it when the process ends.
    ///
    /// # Errors
    /// The folder cannot be made or is not ours alone.
    pub fn lock(&self) -> io::Result<File> {
        let folder = self.socket.parent().ok_or_else(|| io::Error::other("a socket path without a folder"))?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = File::open(folder)?;
        if lock.metadata()?.permissions().mode() & 0o077 != 0 {
            lock.set_permissions(std::fs::Permissions::from_mode(0o700))?;
        }
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }
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
}
