//! What a killed `start` or an unfinished `delete` left of its pod, taken away by whoever comes next.
//!
//! containerd calls `delete` for a pod whose daemon died, once, but not for one whose `start` did: nobody would come back for what that had made, or for
//! what was not done in the seconds that a `delete` has. A lock file that nobody holds is the trace of such an end, since a holder removes its own. So
//! every new daemon, and every `delete`, looks for these once, off the way of what it is there for.

use std::{fs, io, os::unix::net::UnixStream, path::Path};

use pod::host_cgroup::HostCgroup;

use crate::{delete::has_ended, group::GroupLock};

/// Takes away what killed holders of the locks in this folder left. A pod whose daemon lives is let be.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        match GroupLock::abandoned(&path) {
            Ok(Some(lock)) => take_away(&path.with_extension(""), lock),
            // Somebody is at it, or was until now.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("cannot look at the lock {}: {error}", path.display()),
        }
    }
}

// In the order of `delete`: processes that the record names, then what else is in the cgroup, then the socket; the lock goes last, as it is dropped.
fn take_away(socket: &Path, lock: GroupLock) {
    // One that was killed a moment ago may still take a connection; with its lock went the last trace of what it left.
    if UnixStream::connect(socket).is_ok_and(|daemon| !has_ended(&daemon)) {
        return;
    }
    let undone = lock.state_dir().map_or(Ok(()), |state_dir| pod::clean_up(&state_dir));
    let record = socket.with_extension("cgroup");
    let mut left = HostCgroup::read_record(&record).map(|cgroup| cgroup.end()).unwrap_or_default();
    left.extend(undone.err().map(|error| error.to_string()));
    let _ = fs::remove_file(socket);
    if left.is_empty() {
        log::info!("took away what a pod had left at {}", socket.display());
        let _ = fs::remove_file(record);
    } else {
        left.iter().for_each(|problem| log::warn!("left of a pod: {problem}"));
        lock.leave_behind();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::group::Group;

    /// A group that looks as if its start had been killed when it had bound the socket and made the pod's folder.
    fn killed(root: &Path, id: &str) -> (Group, UnixListener) {
        let group = Group::named(root, "", "ns", id);
        let lock = group.lock().expect("locked");
        let listener = UnixListener::bind(&group.socket).expect("bound");
        fs::create_dir_all(&group.state_dir).expect("made");
        lock.leave_behind();
        (group, listener)
    }

    #[test]
    fn what_a_killed_start_left_is_taken_away() {
        let root = tempfile::tempdir().expect("a folder");
        let (group, listener) = killed(root.path(), "one");
        drop(listener);
        let folder = group.socket.parent().expect("in a folder");
        sweep(folder);
        assert!(!group.state_dir.exists() && !folder.exists());
    }

    #[test]
    fn a_pod_whose_daemon_lives_is_let_be_but_for_the_lock() {
        let root = tempfile::tempdir().expect("a folder");
        let (group, _listener) = killed(root.path(), "one");
        sweep(group.socket.parent().expect("in a folder"));
        assert!(group.state_dir.exists() && group.socket.exists());
        assert!(!group.socket.with_extension("lock").exists());
    }

    #[test]
    fn a_start_that_goes_on_is_let_be() {
        let root = tempfile::tempdir().expect("a folder");
        let group = Group::named(root.path(), "", "ns", "one");
        let lock = group.lock().expect("locked");
        drop(UnixListener::bind(&group.socket).expect("bound"));
        sweep(group.socket.parent().expect("in a folder"));
        assert!(group.socket.exists() && group.socket.with_extension("lock").exists());
        drop(lock);
    }
}
