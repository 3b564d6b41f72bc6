//! A pod's network namespace: by the path that somebody gave, or one that is the pod's own. It is kept open by the pod and by its VMM, which is in it, and never
//! beyond the pod: a namespace ends with its last descriptor, and with it the interfaces that a plugin expects to be gone.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::{OFlags, fstatfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{ErrorKind, PodError, refusals::HOST_NETWORK};

/// NSFS_MAGIC of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The namespace that this process is in, which is the host's.
const OWN: &str = "/proc/self/ns/net";
/// The one that the calling thread is in.
const OWN_OF_THREAD: &str = "/proc/thread-self/ns/net";
/// A conversation with the kernel needs little.
const STACK_LEN: usize = 256 * 1024;

/// Which of all files a namespace is, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Of the file system.
    device: u64,
    /// Of the namespace.
    inode: u64,
}

impl Identity {
    fn of(file: &File) -> std::io::Result<Self> {
        file.metadata().map(|facts| Self { device: facts.dev(), inode: facts.ino() })
    }
}

/// An open network namespace that is not the host's.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl Namespace {
    /// Opens the namespace at the path.
    ///
    /// # Errors
    /// Nothing is there, or it is no namespace, or the host's own.
    pub(crate) fn open(path: &Path) -> Result<Self, PodError> {
        let cannot = |error: std::io::Error| {
            let mut error =
                PodError::host(format!("cannot open the pod's network namespace {}", path.display()), error);
            error.kind = ErrorKind::FailedPrecondition;
            error.message += ": it is made before the pod and goes after it; make the pod again";
            error
        };
        // Looked at before it is opened: the path of a fifo or a device must not be.
        let seen = File::options().read(true).custom_flags(OFlags::PATH.bits() as i32).open(path).map_err(cannot)?;
        if fstatfs(&seen).map_err(|errno| cannot(errno.into()))?.f_type != NSFS_MAGIC {
            return Err(not_one(path));
        }
        let descriptor = seen.as_raw_fd();
        let file = File::open(format!("/proc/self/fd/{descriptor}")).map_err(cannot)?;
        let identity = Identity::of(&file).map_err(cannot)?;
        if File::open(OWN).and_then(|own| Identity::of(&own)).map_err(cannot)? == identity {
            return Err(HOST_NETWORK.of(format!("the pod's network namespace {}", path.display())));
        }
        Ok(Self { file, path: path.to_owned(), identity })
    }

    /// Makes one with nothing in it. Its path is that of our descriptor, and gone with this process; whoever else looks for it finds it at its VMM
    /// (`/proc/<pid>/ns/net`). So a clean-up after a crash finds nothing to undo: the namespace has gone with the VMM, unless somebody else holds it.
    ///
    /// # Errors
    /// There are no more, or making one is not allowed.
    pub(crate) fn make() -> Result<Self, PodError> {
        let made = std::thread::scope(|scope| {
            let made = || -> std::io::Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
                File::open(OWN_OF_THREAD)
            };
            let thread = std::thread::Builder::new().name("network".to_owned()).stack_size(STACK_LEN);
            let thread = thread.spawn_scoped(scope, made)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let cannot = |error| {
            PodError::host(
                "cannot make a network namespace for the pod (CAP_SYS_ADMIN is needed, and sysctl user.max_net_namespaces limits them)",
                error,
            )
        };
        let file = made.map_err(cannot)?;
        let identity = Identity::of(&file).map_err(cannot)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        Ok(Self { file, path, identity })
    }

    /// Which one it is.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something in the namespace: in a thread that enters it, and ends.
    ///
    /// # Errors
    /// It is a namespace of another kind, entering it is not allowed, or what is done fails.
    pub(crate) fn within<T: Send>(&self, act: impl FnOnce() -> Result<T, PodError> + Send) -> Result<T, PodError> {
        std::thread::scope(|scope| {
            let entered = || {
                self.enter()?;
                act()
            };
            let thread = std::thread::Builder::new().name("network".to_owned()).stack_size(STACK_LEN);
            let thread = thread.spawn_scoped(scope, entered);
            let thread = thread.map_err(|e| PodError::host("cannot start a thread for the pod's network", e))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn enter(&self) -> Result<(), PodError> {
        // The kernel checks the kind.
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
            nix::errno::Errno::EINVAL => not_one(&self.path),
            errno => {
                let errno = std::io::Error::from(Errno::from_raw_os_error(errno as i32));
                let sentence = format!(
                    "cannot enter the pod's network namespace {} (CAP_SYS_ADMIN is needed)",
                    self.path.display()
                );
                PodError::host(sentence, errno)
            }
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn not_one(path: &Path) -> PodError {
    let sentence = format!(
        "{} is not a network namespace: give the path of one (/run/netns/NAME as `ip netns add` makes it), or none for a pod with loopback only",
        path.display()
    );
    PodError::new(ErrorKind::InvalidArgument, sentence)
}
