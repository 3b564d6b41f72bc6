//! Single mounts: what is looked at is what is mounted, and flags are set before anybody sees it.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount},
};

use crate::{
    ErrorKind, HostMount, PodError,
    mount_options::{MountOptions, overlay_data},
    refusals,
};

/// Flags of every mount that the guest sees.
pub(super) const ALWAYS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);

/// Something to share, looked at and held by one descriptor, so that what is checked is what is mounted.
pub(super) struct Source {
    /// O_PATH.
    pub file: OwnedFd,
    /// What it is.
    pub kind: FileType,
}

/// Opens something to share; symbolic links in the host's path are followed, as every runtime does.
pub(super) fn open_source(path: &Path, whose: &str) -> Result<Source, PodError> {
    let open = || {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok(Source { file, kind })
    };
    open().map_err(|errno: rustix::io::Errno| PodError {
        kind: ErrorKind::InvalidArgument,
        message: format!("{whose} is {}, which cannot be opened: {}", path.display(), io::Error::from(errno)),
        source: Some(Box::new(io::Error::from(errno))),
    })
}

/// The refusal of what only works in the host's kernel.
pub(super) fn unshareable(path: &Path, kind: FileType) -> PodError {
    let what = match kind {
        FileType::BlockDevice | FileType::CharacterDevice => "a device",
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        _ => "neither a folder nor a file",
    };
    refusals::SPECIAL_FILE.of(format!("the volume {} is {what}", path.display()))
}

/// Binds an open source onto a stage, with flags on every mount of it.
pub(super) fn bind(
    source: &OwnedFd,
    name: &Path,
    stage: &Path,
    recursive: bool,
    flags: MountFlags,
) -> Result<(), PodError> {
    let failed = |errno: rustix::io::Errno| {
        let _ = unmount(stage, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        PodError::host(format!("cannot bind {}", name.display()), io::Error::from(errno))
    };
    let held = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    if recursive { mount_bind_recursive(&held, stage) } else { mount_bind(&held, stage) }.map_err(failed)?;
    let points = mounts_at(stage).map_err(|e| PodError::host("cannot read /proc/thread-self/mountinfo", e))?;
    for (point, kept) in points {
        mount_remount(&point, MountFlags::BIND | ALWAYS | flags | kept, c"").map_err(failed)?;
    }
    Ok(())
}

/// Mounts what containerd names onto a stage.
pub(super) fn mount_host(wanted: &HostMount, stage: &Path) -> Result<(), PodError> {
    let options = MountOptions::parse(&wanted.options);
    if wanted.fs_type == "bind" || options.bind {
        let path = Path::new(&wanted.source);
        let source = open_source(path, "the root filesystem")?;
        if source.kind != FileType::Directory {
            let message = format!("the root filesystem {} is not a folder: unpack the image again", path.display());
            return Err(PodError::new(ErrorKind::InvalidArgument, message));
        }
        return bind(&source.file, path, stage, options.recursive, options.flags);
    }
    let failed = |cause: io::Error| {
        PodError::host(
            format!("cannot mount the {} root filesystem ({})", wanted.fs_type, wanted.options.join(",")),
            cause,
        )
    };
    let overlay = overlay_data(&options.data).ok_or_else(|| {
        PodError::new(ErrorKind::InvalidArgument, "the image has too many layers for one overlay mount: squash it")
    })?;
    let data = std::ffi::CString::new(overlay.data).map_err(|e| failed(e.into()))?;
    // The working directory is this thread's own since it unshared.
    rustix::process::chdir(overlay.relative_to.as_deref().unwrap_or("/")).map_err(|e| failed(e.into()))?;
    let mounted = mount(&wanted.source, stage, &wanted.fs_type, options.flags | ALWAYS, data.as_c_str());
    let back = rustix::process::chdir("/");
    mounted.and(back).map_err(|e| failed(e.into()))
}

/// Mount points at and below a path in this thread's namespace, with the flags that a remount must repeat to keep.
fn mounts_at(path: &Path) -> io::Result<Vec<(PathBuf, MountFlags)>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    Ok(parse_mounts(&table).into_iter().filter(|(point, _)| point.starts_with(path)).collect())
}

/// Mount point and per-mount options of each line (proc(5), fields 5 and 6).
pub(crate) fn parse_mounts(mountinfo: &[u8]) -> Vec<(PathBuf, MountFlags)> {
    let lines = mountinfo.split(|b| *b == b'\n');
    let fields = lines.map(|line| line.split(|b| *b == b' ').skip(4).take(2).collect::<Vec<_>>());
    fields
        .filter_map(|fields| {
            let [point, options] = fields[..] else { return None };
            let options = String::from_utf8_lossy(options).into_owned();
            Some((unescape(point), MountOptions::parse(&[options]).flags))
        })
        .collect()
}

/// Octal escapes of space, tab, newline and backslash (proc(5)).
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal =
            || tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        let escaped = (*first == b'\\').then(octal).flatten();
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}
