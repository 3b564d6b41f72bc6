//! Paths inside a container's root, which its image and its neighbours may have filled with anything.
//!
//! Every look-up is one openat2(2) with RESOLVE_IN_ROOT: symbolic links and `..` stay below the root, magic links are refused,
//! and the descriptor that comes back is what is mounted on or created in. No path is looked up twice.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Links followed by hand while creating what they point to; the kernel's own bound.
const MAX_LINKS: u8 = 40;
/// openat2 answers EAGAIN when something was renamed during the look-up, so a hostile neighbour can make it repeat.
const MAX_ATTEMPTS: u8 = 64;

/// What is created when a path is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Directory,
    File,
}

/// A root directory that look-ups cannot leave.
#[derive(Clone, Copy, Debug)]
pub struct Root<'fd>(BorrowedFd<'fd>);

impl<'fd> Root<'fd> {
    pub fn new(directory: BorrowedFd<'fd>) -> Self {
        Self(directory)
    }

    /// Opens a path, following links inside the root.
    pub fn open(self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::empty())
    }

    /// Opens a path of which no part may be a link.
    pub fn open_without_links(self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    fn open_with(self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..MAX_ATTEMPTS {
            match rustix::fs::openat2(self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                outcome => return outcome,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a path for mounting on it, and makes what is missing of it: directories 0755, and at its end a directory or an
    /// empty file 0644.
    ///
    /// A link that points to nothing is followed inside the root and its target made, as for /etc/resolv.conf of many images.
    pub fn open_or_make(self, path: &Path, leaf: Leaf) -> Result<OwnedFd, Errno> {
        self.make(path, leaf, 0)
    }

    fn make(self, path: &Path, leaf: Leaf, links: u8) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            outcome => return outcome,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
        let directory = self.make(parent, Leaf::Directory, links)?;
        match create(&directory, Path::new(name), leaf) {
            Ok(()) => self.open(path, OFlags::PATH),
            Err(Errno::EXIST) => match rustix::fs::readlinkat(&directory, name, Vec::new()) {
                Ok(_) if links == MAX_LINKS => Err(Errno::LOOP),
                Ok(target) => {
                    let target = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
                    self.make(&parent.join(target), leaf, links + 1)
                }
                // Not a link: somebody else has made it meanwhile.
                Err(Errno::INVAL) => self.open(path, OFlags::PATH),
                Err(errno) => Err(errno),
            },
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory a path is in, making it if missing, for the path's last name to be created there.
    pub fn parent_of(self, path: &Path) -> Result<(OwnedFd, &Path), Errno> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
        Ok((self.open_or_make(parent, Leaf::Directory)?, Path::new(name)))
    }
}

fn create(directory: &OwnedFd, name: &Path, leaf: Leaf) -> Result<(), Errno> {
    match leaf {
        Leaf::Directory => rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Leaf::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    }
}

/// The kind of file a descriptor refers to.
pub fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Removes a name that is not a directory; a missing one is no error.
pub fn remove(directory: &OwnedFd, name: &Path) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn with_root(check: impl FnOnce(Root<'_>, &Path)) {
        let directory = tempfile::tempdir().expect("a directory");
        let fd = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("opened");
        check(Root::new(fd.as_fd()), directory.path());
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        with_root(|root, outside| {
            let fd = root.open_or_make(Path::new("/a/b/c"), Leaf::File).expect("made");
            assert_eq!(file_type(&fd).expect("stat"), FileType::RegularFile);
            assert!(outside.join("a/b/c").is_file());
        });
    }

    #[test]
    fn a_link_that_leads_out_leads_back_to_the_root() {
        with_root(|root, outside| {
            symlink("/etc", outside.join("etc")).expect("a link to itself, seen from inside");
            symlink("../../../../tmp/x", outside.join("up")).expect("a link");
            root.open_or_make(Path::new("/up/made"), Leaf::Directory).expect("made inside");
            assert!(outside.join("tmp/x/made").is_dir());
            assert_eq!(root.open_or_make(Path::new("/etc/passwd"), Leaf::File).err(), Some(Errno::LOOP));
        });
    }

    #[test]
    fn the_target_of_a_dangling_link_is_made_inside() {
        with_root(|root, outside| {
            fs::create_dir(outside.join("etc")).expect("a directory");
            symlink("../run/systemd/resolve/stub-resolv.conf", outside.join("etc/resolv.conf")).expect("a link");
            root.open_or_make(Path::new("/etc/resolv.conf"), Leaf::File).expect("made");
            assert!(outside.join("run/systemd/resolve/stub-resolv.conf").is_file());
        });
    }

    #[test]
    fn a_chain_of_dangling_links_ends_with_an_error() {
        with_root(|root, outside| {
            for number in 0..=u32::from(MAX_LINKS) + 2 {
                symlink(format!("link{}", number + 1), outside.join(format!("link{number}"))).expect("a link");
            }
            assert_eq!(root.open_or_make(Path::new("/link0"), Leaf::File).err(), Some(Errno::LOOP));
        });
    }

    #[test]
    fn a_path_without_links_refuses_one() {
        with_root(|root, outside| {
            symlink("elsewhere", outside.join("proc")).expect("a link");
            let refused = root.open_without_links(Path::new("/proc"), OFlags::PATH);
            assert_eq!(refused.err(), Some(Errno::LOOP));
        });
    }
}
