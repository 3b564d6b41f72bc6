//! The folders of one run: state in /run, the container's writes on disk; both go when the run ends.
//!
//! A run that was killed cannot clean up after itself. Each run holds a lock on its folder for as long as it lives, so the next run
//! can tell the dead from the living, and cleans up after the dead from their records.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// State: the pod's record, share tree and sockets. Gone with a reboot.
const STATE_ROOT: &str = "/run/kata-rs/cli";
/// What containers write: as large as they like, so not in memory.
const WRITES_ROOT: &str = "/var/lib/kata-rs/cli";

/// Folders of one run.
pub struct Scratch {
    id: String,
    state: PathBuf,
    writes: PathBuf,
    _lock: File,
}

/// The two folders overlayfs writes to, on one file system.
#[derive(Debug, Clone)]
pub struct Writes {
    /// What the container changed.
    pub upper: PathBuf,
    /// overlayfs's own.
    pub work: PathBuf,
}

impl Scratch {
    /// Makes the folders, after cleaning up behind runs that died.
    pub fn make(id: &str) -> io::Result<Self> {
        Self::make_in(Path::new(STATE_ROOT), Path::new(WRITES_ROOT), id)
    }

    fn make_in(state_root: &Path, writes_root: &Path, id: &str) -> io::Result<Self> {
        sweep(state_root, writes_root);
        let (state, writes) = (state_root.join(id), writes_root.join(id));
        create_all(&state)?;
        let lock = File::create(state.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        create_all(&writes.join("upper"))?;
        create_all(&writes.join("work"))?;
        Ok(Self { id: id.to_owned(), state, writes, _lock: lock })
    }

    /// Name of the run.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the pod library keeps its state; it makes and removes this folder.
    pub fn pod_state(&self) -> PathBuf {
        self.state.join("pod")
    }

    /// Where the container's name servers are written, if it has any.
    pub fn resolv_conf(&self) -> PathBuf {
        self.state.join("resolv.conf")
    }

    /// Where the container's writes go.
    pub fn writes(&self) -> Writes {
        Writes { upper: self.writes.join("upper"), work: self.writes.join("work") }
    }

    /// Removes both folders. What cannot be removed is told.
    pub fn remove(self) -> io::Result<()> {
        remove_run(&self.state, &self.writes)
    }
}

fn sweep(state_root: &Path, writes_root: &Path) {
    let Ok(runs) = fs::read_dir(state_root) else { return };
    for run in runs.flatten() {
        let state = run.path();
        let Ok(lock) = File::open(state.join("lock")) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if let Err(error) = pod::clean_up(&state.join("pod")) {
            eprintln!("kata-rs: an earlier run left something behind: {error}");
            continue;
        }
        // A later sweep tries again; this run does not depend on it.
        let _ = remove_run(&state, &writes_root.join(run.file_name()));
    }
}

fn remove_run(state: &Path, writes: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(fs::remove_dir_all(writes))?;
    gone(fs::remove_dir_all(state))?;
    [writes, state].into_iter().for_each(remove_empty_ancestors);
    Ok(())
}

/// The folders of all runs go with the last run; one that is not empty stays, and so does everything above the folder of ours.
fn remove_empty_ancestors(run: &Path) {
    for folder in run.ancestors().skip(1).take_while(|folder| folder.ends_with("cli") || folder.ends_with("kata-rs")) {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// As create_dir_all, beside runs that remove the same ancestors when they are empty.
fn create_all(folder: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 16;
    let missing = |outcome: &io::Result<()>| matches!(outcome, Err(error) if error.kind() == io::ErrorKind::NotFound);
    let mut outcome = fs::create_dir_all(folder);
    for _ in 1..ATTEMPTS {
        if !missing(&outcome) {
            break;
        }
        outcome = fs::create_dir_all(folder);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_takes_the_folders_of_all_runs_with_it() {
        let root = tempfile::tempdir().expect("temporary folder");
        let (state, writes) = (root.path().join("run/kata-rs/cli"), root.path().join("lib/kata-rs/cli"));
        let first = Scratch::make_in(&state, &writes, "first").expect("made");
        let second = Scratch::make_in(&state, &writes, "second").expect("made");
        first.remove().expect("removed");
        assert!(state.join("second").exists());
        second.remove().expect("removed");
        assert!(!root.path().join("run/kata-rs").exists() && !root.path().join("lib/kata-rs").exists());
        assert!(root.path().join("run").exists(), "what is not ours stays");
    }

    #[test]
    fn the_next_run_sweeps_up_the_dead_and_leaves_the_living() {
        let root = tempfile::tempdir().expect("temporary folder");
        let (state, writes) = (root.path().join("state"), root.path().join("writes"));
        let living = Scratch::make_in(&state, &writes, "living").expect("made");
        let dead = Scratch::make_in(&state, &writes, "dead").expect("made");
        // As after SIGKILL: the lock is gone, the folders are not.
        drop(dead);
        assert!(state.join("dead").exists());
        let next = Scratch::make_in(&state, &writes, "next").expect("made");
        assert!(!state.join("dead").exists() && !writes.join("dead").exists());
        assert!(living.writes().upper.exists());
        next.remove().expect("removed");
        living.remove().expect("removed");
        assert_eq!(fs::read_dir(&writes).expect("there").count(), 0);
    }
}
