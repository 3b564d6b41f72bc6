//! What a run leaves behind: processes, mounts, sockets, cgroups and files, counted before and after.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::prefix;

/// Longest that the host may take to settle: a dead process stays a zombie until its parent has looked.
const SETTLE: Duration = Duration::from_secs(5);
/// Folders in which nothing of a run may stay.
const OUR_FOLDERS: [&str; 4] = ["/run/kata-rs", "/var/lib/kata-rs", "/run/containerd/s", "/tmp"];

/// A count of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residue {
    things: BTreeSet<String>,
}

impl Residue {
    /// Counts now.
    pub fn now() -> Self {
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(mounts());
        things.extend(sockets());
        things.extend(cgroups());
        OUR_FOLDERS.iter().for_each(|folder| files(Path::new(folder), &mut things));
        Self { things }
    }

    /// Fails, naming each thing, when something is there now that was not there then.
    pub fn assert_nothing_new(&self) {
        let left = self.left_after(SETTLE);
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }

    /// What is new, after waiting for it to go.
    pub fn left_after(&self, settle: Duration) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left: Vec<_> = Self::now().things.difference(&self.things).cloned().collect();
            if left.is_empty() || start.elapsed() > settle {
                return left;
            }
            // The kernel offers no event for "nothing of a kind is left".
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Processes that run a program of ours, zombies of ours included.
fn processes() -> Vec<String> {
    let stage = prefix::path().canonicalize().unwrap_or_else(|_| prefix::path());
    let names = ["kata-rs", "kata-rs-vmm", "virtiofsd", "containerd-shim"];
    let of = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let ours = exe.starts_with(&stage) || names.iter().any(|name| comm.starts_with(name));
        ours.then(|| format!("process {pid} {}", comm.trim()))
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The mount's number names it; its place and type are for the reader.
    text.lines().map(|line| format!("mount {line}")).collect()
}

fn sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let ours = |path: &&str| path.contains("kata-rs") || path.contains("/run/containerd/s");
    text.lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(ours)
        .map(|path| format!("socket {path}"))
        .collect()
}

fn cgroups() -> Vec<String> {
    let mut found = BTreeSet::new();
    folders_below(Path::new("/sys/fs/cgroup"), 6, &mut found);
    found.into_iter().map(|path| format!("cgroup {path}")).collect()
}

fn folders_below(folder: &Path, depth: usize, found: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.insert(entry.path().display().to_string());
            folders_below(&entry.path(), depth - 1, found);
        }
    }
}

fn files(folder: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Of /tmp only what bears our name is ours to count.
        if folder == Path::new("/tmp") && !path.to_string_lossy().contains("kata-rs") {
            continue;
        }
        things.insert(format!("file {}", path.display()));
        if folder != Path::new("/tmp") && entry.file_type().is_ok_and(|t| t.is_dir()) {
            files(&path, things);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_left_behind_is_named() {
        let before = Residue::now();
        let left = tempfile::Builder::new().prefix("kata-rs-left-").tempfile().expect("a file");
        let found = before.left_after(Duration::ZERO);
        let name = left.path().display().to_string();
        assert!(found.iter().any(|thing| thing.contains(&name)), "{found:?}");
    }

    #[test]
    fn a_socket_left_behind_is_named() {
        let before = Residue::now();
        let folder = tempfile::Builder::new().prefix("kata-rs-left-").tempdir().expect("a folder");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).expect("bound");
        assert!(before.left_after(Duration::ZERO).iter().any(|thing| thing.starts_with("socket ")));
    }
}
