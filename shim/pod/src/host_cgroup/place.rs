//! The pod's folder in one hierarchy: made, entered, left, removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::{MARK, hierarchy::Hierarchy};

/// How often folders that others remove are made again: whoever was last below one takes it along, between two of our steps.
const ATTEMPTS_MAX: u32 = 100;

/// One hierarchy, and the pod's path in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub hierarchy: Hierarchy,
    path: PathBuf,
}

impl Place {
    pub fn new(hierarchy: Hierarchy, path: &Path) -> Self {
        Self { hierarchy, path: path.to_owned() }
    }

    /// The pod's folder.
    pub fn folder(&self) -> PathBuf {
        self.hierarchy.point.join(&self.path)
    }

    /// Makes the folder with what is above it, and moves this process in.
    pub fn enter(&self) -> io::Result<()> {
        let mut attempts = 0;
        loop {
            match self.make().and_then(|()| self.join()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS_MAX => attempts += 1,
                outcome => return outcome,
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        let mut at = self.hierarchy.point.clone();
        for name in &self.path {
            if self.hierarchy.unified {
                hand_down_controllers(&at);
            }
            let above = at.clone();
            at.push(name);
            match fs::create_dir(&at) {
                Ok(()) => mark(&at),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(said("cannot make", &at, &error)),
            }
            if self.has("cpuset") {
                inherit_cpuset(&above, &at)?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn make_for_test(&self) {
        self.make().expect("made");
    }

    fn join(&self) -> io::Result<()> {
        // Zero is the writer itself, so a pid of another pid namespace cannot be meant.
        let file = match self.hierarchy.unified || !alone() {
            true => "cgroup.procs",
            false => "tasks",
        };
        fs::write(self.folder().join(file), "0").map_err(|error| said("cannot enter", &self.folder(), &error))
    }

    /// Moves this process back; the root takes processes where the old place does not any more.
    pub fn leave(&self) {
        let back = self.hierarchy.point.join(&self.hierarchy.from).join("cgroup.procs");
        if fs::write(back, "0").is_err() {
            let _ = fs::write(self.hierarchy.point.join("cgroup.procs"), "0");
        }
    }

    /// Pids inside; none when it is gone.
    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.folder().join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Removes the folder, then those above it that we made, until one is in use.
    pub fn remove(&self, busy_is_fine: bool) -> Result<(), String> {
        let folder = self.folder();
        let marks_work = is_marked(&folder).is_some();
        if marks_work && is_marked(&folder) == Some(false) {
            return Ok(());
        }
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if busy_is_fine && error.kind() == io::ErrorKind::ResourceBusy => return Ok(()),
            Err(error) => return Err(format!("the cgroup {} stays: {error}", folder.display())),
            Ok(()) => {}
        }
        let above = self.path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        for path in above.map(|path| self.hierarchy.point.join(path)) {
            if is_marked(&path) != Some(true) || fs::remove_dir(&path).is_err() {
                break;
            }
        }
        Ok(())
    }

    pub fn has(&self, controller: &str) -> bool {
        self.hierarchy.controllers.iter().any(|name| name == controller)
    }
}

/// Every controller that a version 2 cgroup has. Those that it cannot hand down (one with processes of its own cannot) are counted above.
fn hand_down_controllers(at: &Path) {
    let read = |file: &str| fs::read_to_string(at.join(file)).unwrap_or_default();
    let (has, hands_down) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for controller in has.split_whitespace().filter(|name| !hands_down.split_whitespace().any(|other| other == *name)) {
        if let Err(error) = fs::write(at.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::debug!("{} hands {controller} down to nobody: {error}", at.display());
        }
    }
}

/// A new cpuset of version 1 has no CPUs and takes no process before it has (cpusets(7)).
fn inherit_cpuset(above: &Path, at: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(at.join(file)).map_err(|error| said("cannot read", &at.join(file), &error))?;
        if own.trim().is_empty() {
            let given = fs::read_to_string(above.join(file))?;
            fs::write(at.join(file), given).map_err(|error| said("cannot fill", &at.join(file), &error))?;
        }
    }
    Ok(())
}

fn mark(folder: &Path) {
    if let Err(errno) = rustix::fs::setxattr(folder, MARK, b"1", XattrFlags::empty()) {
        log::debug!("{} cannot be marked as ours: {errno}", folder.display());
    }
}

/// Whether the folder has our mark; nothing where it cannot be told.
fn is_marked(folder: &Path) -> Option<bool> {
    let mut value = [0_u8; 8];
    match rustix::fs::getxattr(folder, MARK, &mut value[..]) {
        Ok(_) => Some(true),
        Err(rustix::io::Errno::NODATA) => Some(false),
        Err(_) => None,
    }
}

/// Whether this process has one thread.
fn alone() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

fn said(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
