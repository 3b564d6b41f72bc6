//! What a dead owner left behind is undone from the record alone: no guest is asked, and nothing is waited for that could hang.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{Signal, pidfd_send_signal},
};

use crate::{
    ErrorKind, PodError,
    process::{open_pidfd, start_ticks, wait_for_end},
    record::{self, Entry, TOKEN_VARIABLE},
    share::parse_mounts,
    state_dir,
};

/// All processes together may take so long to be gone after SIGKILL.
const DEATH_DEADLINE: Duration = Duration::from_millis(1500);
/// A process may spawn another while /proc is being read; it cannot do so for ever once its parents are dead.
const SEARCHES_MAX: usize = 8;

/// Undoes what a dead shim or command left behind, from the record in `state_dir`. Needs no guest, well inside 5 s. Fine when there is nothing.
///
/// Its owner must be dead: it would go on using what is taken from it.
pub fn clean_up(state_dir: &Path) -> Result<(), PodError> {
    let entries = record::read(state_dir).map_err(|e| {
        PodError::host(format!("cannot read the record of {}; remove the folder by hand", state_dir.display()), e)
    })?;
    let deadline = Instant::now() + DEATH_DEADLINE;
    let mut problems = Vec::new();
    for entry in entries.iter().rev() {
        match entry {
            Entry::Process { what, pid, start_ticks } => {
                problems.extend(end_recorded(what, *pid, *start_ticks, deadline).err())
            }
            Entry::Token(token) => problems.extend(end_all_with(token, deadline).err()),
            Entry::Network(joined) => problems.extend(joined.undo().err()),
        }
    }
    problems.extend(unmount_below(state_dir));
    problems.extend(state_dir::remove(state_dir));
    if problems.is_empty() {
        return Ok(());
    }
    Err(PodError::new(
        ErrorKind::Internal,
        format!(
            "{} is not cleaned up: {}; try again, or see what still runs",
            state_dir.display(),
            problems.join("; ")
        ),
    ))
}

/// Kills a process if it is still the one that was recorded. The pidfd is taken first: what is checked is then what is killed.
fn end_recorded(what: &str, pid: i32, recorded_ticks: u64, deadline: Instant) -> Result<(), String> {
    let Ok(pidfd) = open_pidfd(pid) else { return Ok(()) };
    match start_ticks(pid) {
        Ok(ticks) if ticks == recorded_ticks => end(what, pid, &pidfd, deadline),
        _ => Ok(()),
    }
}

fn end(what: &str, pid: i32, pidfd: &OwnedFd, deadline: Instant) -> Result<(), String> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => return Err(format!("cannot kill the {what} (pid {pid}): {errno}")),
    }
    if wait_for_end(pidfd, deadline.saturating_duration_since(Instant::now())) {
        Ok(())
    } else {
        Err(format!("the {what} (pid {pid}) does not die of SIGKILL"))
    }
}

/// Kills every process that carries the pod's token, also one that was spawned and not yet recorded.
fn end_all_with(token: &str, deadline: Instant) -> Result<(), String> {
    let wanted = format!("{TOKEN_VARIABLE}={token}");
    for _ in 0..SEARCHES_MAX {
        let found = carriers(wanted.as_bytes()).map_err(|e| format!("cannot look through /proc: {e}"))?;
        if found.is_empty() {
            return Ok(());
        }
        for (pid, pidfd) in &found {
            end("process", *pid, pidfd, deadline)?;
        }
    }
    Err("new processes of the pod keep appearing".to_owned())
}

/// Living processes with this word in their environment. The pidfd is opened before the environment is read.
fn carriers(wanted: &[u8]) -> io::Result<Vec<(i32, OwnedFd)>> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let carrying = |pid: i32| {
        let pidfd = open_pidfd(pid).ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        environment.split(|b| *b == 0).any(|word| word == wanted).then_some((pid, pidfd))
    };
    Ok(pids.filter_map(carrying).collect())
}

/// Takes down mounts at or below the folder in the caller's namespace, deepest first, without following a link. There are none unless somebody made
/// them by hand: a pod's own mounts live in its own namespace. They are made private first, so that nothing outside is taken down along with them.
fn unmount_below(state_dir: &Path) -> Vec<String> {
    let Ok(table) = fs::read("/proc/thread-self/mountinfo") else { return Vec::new() };
    let mut points: Vec<_> =
        parse_mounts(&table).into_iter().map(|(point, _)| point).filter(|p| p.starts_with(state_dir)).collect();
    points.reverse();
    points
        .into_iter()
        .filter_map(|point| {
            let _ = mount_change(&point, MountPropagationFlags::PRIVATE);
            let down = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            down.err().map(|errno| format!("cannot unmount {}: {errno}", point.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::record::Record;

    fn state() -> (tempfile::TempDir, std::path::PathBuf, Record) {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("pod");
        state_dir::StateDir::make(&path).expect("made");
        let record = Record::create(&path).expect("created");
        (root, path, record)
    }

    /// Children of a test are not reaped by init, so ended ones stay as zombies until here.
    fn has_ended(mut child: std::process::Child) -> bool {
        child.try_wait().expect("waited").is_some()
    }

    #[test]
    fn nothing_to_clean_up_is_fine() {
        clean_up(Path::new("/run/kata-rs/of-a-pod-that-never-was")).expect("fine");
    }

    #[test]
    fn recorded_processes_die_and_the_folder_goes() {
        let (_root, path, record) = state();
        let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
        let pid = i32::try_from(child.id()).expect("small");
        let entry = Entry::Process { what: "vmm".into(), pid, start_ticks: start_ticks(pid).expect("read") };
        record.write(&entry).expect("written");
        clean_up(&path).expect("cleaned up");
        assert!(has_ended(child));
        assert!(!path.exists());
        clean_up(&path).expect("twice is fine");
    }

    #[test]
    fn a_reused_pid_is_left_alone() {
        let (_root, path, record) = state();
        let mut child = Command::new("sleep").arg("1000").spawn().expect("spawned");
        let pid = i32::try_from(child.id()).expect("small");
        record.write(&Entry::Process { what: "vmm".into(), pid, start_ticks: 1 }).expect("written");
        clean_up(&path).expect("cleaned up");
        assert!(child.try_wait().expect("waited").is_none(), "a stranger was killed");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    #[test]
    fn needs_root_a_mount_is_taken_down_and_what_it_showed_is_not_deleted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: unmounting needs root");
            return;
        }
        // In a thread with mounts of its own, so that the host's table stays as it is whatever happens.
        let story = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("as root");
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).expect("as root");
            let (root, path, _record) = state();
            let precious = root.path().join("precious");
            fs::create_dir(&precious).expect("made");
            fs::write(precious.join("file"), "x").expect("written");
            let point = path.join(state_dir::SHARE_FOLDER);
            fs::create_dir(&point).expect("made");
            rustix::mount::mount_bind(&precious, &point).expect("bound");
            std::os::unix::fs::symlink(&precious, path.join(state_dir::TREE_FOLDER)).expect("linked");
            let error = clean_up(&path).expect_err("a link is where a folder should be");
            assert!(error.message.contains("tree"), "{}", error.message);
            assert!(precious.join("file").exists(), "nothing is deleted through a mount or a link");
            fs::remove_file(path.join(state_dir::TREE_FOLDER)).expect("removed");
            clean_up(&path).expect("the second time nothing is in the way");
            assert!(!path.exists() && precious.join("file").exists());
        });
        story.join().expect("as told");
    }

    #[test]
    fn a_process_spawned_just_before_the_crash_is_found_by_its_token() {
        let (_root, path, record) = state();
        record.write(&Entry::Token("token-of-this-test".into())).expect("written");
        let child =
            Command::new("sleep").arg("1000").env(TOKEN_VARIABLE, "token-of-this-test").spawn().expect("spawned");
        let begun = Instant::now();
        clean_up(&path).expect("cleaned up");
        assert!(has_ended(child));
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
