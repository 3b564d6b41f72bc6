//! A group: the containers that share one pod, hence one daemon, one socket and one machine.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
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
/// Longest path that is read from a lock (PATH_MAX).
const STATE_DIR_LEN_MAX: u64 = 4096;
/// How often a lock that others remove is made again.
const LOCK_ATTEMPTS_MAX: u32 = 1000;

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

    /// Takes the lock that orders the starts, the end and the deletes of this group, making the socket folder if need be. Other groups have locks
    /// of their own: a start holds its lock until the daemon serves, and a node may start many pods at once.
    ///
    /// # Errors
    /// The folder cannot be made or is not ours alone.
    pub fn lock(&self) -> io::Result<GroupLock> {
        let folder = self.socket.parent().ok_or_else(|| io::Error::other("a socket path without a folder"))?;
        let path = self.socket.with_extension("lock");
        let mut attempts = 0;
        loop {
            match GroupLock::take(folder, &path, &self.state_dir) {
                Ok(Some(lock)) => return Ok(lock),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Whoever held it last removed it, or the last of all removed the folder, between two of our steps.
                _ => attempts += 1,
            }
            if attempts >= LOCK_ATTEMPTS_MAX {
                return Err(io::Error::other("the lock is removed again and again"));
            }
        }
    }

    /// Removes the socket, and with the last one our folder of sockets; a socket that somebody still listens to stays
    /// unless it is the caller's own.
    pub fn remove_socket(&self, ours: bool) {
        if !self.socket.exists() && !self.socket.with_extension("lock").exists() {
            return;
        }
        let _lock = self.lock();
        if ours || UnixStream::connect(&self.socket).is_err() {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// The lock of one group: a file beside its socket, with the path of the pod's folder in it. Dropping it removes the file, and the folder when
/// nothing else is in it. What a killed holder leaves holds up nobody, and goes with the next holder, or is swept up.
#[derive(Debug)]
pub struct GroupLock {
    path: PathBuf,
    file: File,
    stays: bool,
}

impl GroupLock {
    // Nothing, when the file that was locked is no longer the one that has the name.
    fn take(folder: &Path, path: &Path, state_dir: &Path) -> io::Result<Option<Self>> {
        make_folder(folder)?;
        if folder.ends_with(SOCKET_DIR) && fs::metadata(folder)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        let lock = Self::of(path, file)?;
        if let Some(lock) = &lock {
            lock.file.write_all_at(state_dir.as_os_str().as_bytes(), 0)?;
        }
        Ok(lock)
    }

    /// Takes a lock that is there and that nobody holds: its holder was killed.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn abandoned(path: &Path) -> io::Result<Option<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Self::of(path, file),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn of(path: &Path, file: File) -> io::Result<Option<Self>> {
        let (locked, named) = (file.metadata()?, fs::metadata(path)?);
        let same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
        Ok(same.then(|| Self { path: path.to_owned(), file, stays: false }))
    }

    /// The folder of the pod whose lock it is, as a holder has written it.
    pub fn state_dir(&self) -> Option<PathBuf> {
        let mut path = Vec::new();
        (&self.file).take(STATE_DIR_LEN_MAX).read_to_end(&mut path).ok()?;
        let path = PathBuf::from(OsString::from_vec(path));
        path.is_absolute().then_some(path)
    }

    /// Lets it go as a holder who is killed does: the next one to look finds it abandoned, and tries what could not be done.
    pub fn leave_behind(mut self) {
        self.stays = true;
    }
}

impl Drop for GroupLock {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent().filter(|folder| folder.ends_with(SOCKET_DIR)) {
            let _ = fs::remove_dir(folder);
        }
    }
}

// Whoever gives up a lock removes the folder when it is empty, so it may go while it is being made: `create` finds it there, then no folder any
// more, and says `AlreadyExists`. That is a folder to be made again, unless something that is no folder has its name.
fn make_folder(folder: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(folder) {
            Ok(found) if !found.is_dir() => Err(error),
            _ => Err(io::ErrorKind::NotFound.into()),
        },
        made => made,
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
    use std::{
        os::unix::net::UnixListener,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        time::Duration,
    };

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
        let lock = one.lock().expect("locked");
        let listener = UnixListener::bind(&one.socket).expect("bound");
        drop(lock);
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
        assert!(!dir.path().join(SOCKET_DIR).exists());
    }

    #[test]
    fn a_folder_that_comes_and_goes_fails_no_start() {
        let dir = tempfile::tempdir().expect("folder");
        let folder = dir.path().join(SOCKET_DIR);
        let ends = Arc::new(AtomicU32::new(0));
        let others = {
            let (folder, ends) = (folder.clone(), Arc::clone(&ends));
            std::thread::spawn(move || {
                while ends.load(Ordering::SeqCst) == 0 {
                    let _ = fs::create_dir(&folder);
                    let _ = fs::remove_dir(&folder);
                }
            })
        };
        let group = Group::named(dir.path(), "", "ns", "id");
        let failed = (0..2000).find_map(|_| group.lock().err());
        ends.store(1, Ordering::SeqCst);
        others.join().expect("ran");
        assert!(failed.is_none(), "{failed:?}");
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told_as_such() {
        let dir = tempfile::tempdir().expect("folder");
        fs::write(dir.path().join(SOCKET_DIR), "").expect("written");
        let refused = Group::named(dir.path(), "", "ns", "id").lock().expect_err("no folder");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_group_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().expect("folder");
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (group, inside) = (Group::named(dir.path(), "", "ns", "id"), Arc::clone(&inside));
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        let lock = group.lock().expect("locked");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("one at a time"));
    }

    #[test]
    fn a_group_that_starts_holds_up_no_other_group() {
        let dir = tempfile::tempdir().expect("folder");
        let (one, two) = (Group::named(dir.path(), "", "ns", "one"), Group::named(dir.path(), "", "ns", "two"));
        let starting = one.lock().expect("locked");
        let (told, heard) = mpsc::channel();
        let other = std::thread::spawn(move || told.send(two.lock().expect("locked")).is_ok());
        let both = heard.recv_timeout(Duration::from_secs(5));
        drop(starting);
        assert!(both.is_ok(), "the second start waits for the first");
        drop(both);
        assert!(other.join().expect("ran"));
        assert!(!dir.path().join(SOCKET_DIR).exists());
    }

    #[test]
    fn a_killed_holder_holds_up_nobody() {
        let dir = tempfile::tempdir().expect("folder");
        let group = Group::named(dir.path(), "", "ns", "id");
        drop(group.lock().expect("locked"));
        fs::create_dir(dir.path().join(SOCKET_DIR)).expect("made");
        fs::write(group.socket.with_extension("lock"), "").expect("written");
        drop(group.lock().expect("locked"));
        assert!(!dir.path().join(SOCKET_DIR).exists());
    }
}
