//! `shim delete`: undoes what is left of a container whose daemon does not answer.
//!
//! containerd calls this after *every* container, also when the daemon has ended as it should, or serves other containers of the
//! pod. So the daemon is asked first:
//!
//! | the daemon | what is done |
//! |---|---|
//! | is gone | the pod's record is replayed backwards, its socket removed; hooks that it owed run |
//! | serves, and does not know the container | nothing: it was deleted as it should be |
//! | serves, and knows it | it is told to give the container up, and goes on with that after us if need be |
//! | serves, and the pod is named after the container | the same, after which a pod without containers ends |
//! | listens, does not answer, and the container is the one that the pod is named after | it is killed, then as if gone |
//! | listens, does not answer, and the container is another one | as if gone, if it ends within a second, as one just killed does; else nothing, with an error: the pod's own delete comes |
//!
//! Nothing here needs the guest, and everything can be done again.

use std::{
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{
    TaskClient,
    api::{ConnectRequest, DeleteResponse},
};
use pod::ErrorKind;
use protobuf::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::UnmountFlags,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use ttrpc::{Code, context};

use crate::{
    arguments::{ArgumentError, Arguments},
    containers::KILLED_STATUS,
    giving_up,
    group::{Group, GroupLock},
    hooks, pod_cgroup,
    refusal::Refusal,
    sweep::sweep,
    timestamp,
};

/// How long a living daemon has to answer. containerd gives all of `delete` five seconds, of which a daemon's death and the clean-up after it
/// need up to two and a half.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long a daemon that has answered is waited for while it gives a container up.
const GIVE_UP_DEADLINE: Duration = Duration::from_secs(2);
/// How long the kernel has to end a killed daemon.
const END_DEADLINE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// How long hooks have, of the time that is left then.
const HOOKS_DEADLINE: Duration = Duration::from_millis(1500);
/// Mounts on one place that are taken off; containerd makes one.
const STACKED_MOUNTS_MAX: usize = 16;

/// Why something could not be undone; it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The bundle is gone and was not named.
    #[error("cannot find the bundle: the working directory is gone")]
    Bundle(#[source] io::Error),
    /// A bad name.
    #[error("cannot name the pod")]
    Name(#[from] ArgumentError),
    /// The pod's own clean-up.
    #[error("cannot undo what the pod {0} left")]
    CleanUp(String, #[source] Refusal),
    /// The daemon hangs, and may have other containers.
    #[error("the shim of the pod {0} does not answer, and the pod is more than its container {1}: delete the pod")]
    Silent(String, String),
    /// Standard output.
    #[error("cannot tell containerd the outcome")]
    Answer(#[source] io::Error),
}

/// Does `delete`.
///
/// # Errors
/// See [`DeleteError`].
pub fn run(arguments: &Arguments) -> Result<(), DeleteError> {
    let bundle = arguments.bundle_dir().map_err(DeleteError::Bundle)?;
    let mut group = Group::of(arguments, &bundle)?;
    if let Some(socket) = &arguments.socket {
        group.socket.clone_from(socket);
    }
    let mut hooks_are_owed = false;
    let mut clean_up = || {
        hooks_are_owed = true;
        clean_up(&group)
    };
    let undone = match UnixStream::connect(&group.socket) {
        Ok(daemon) => match decide(ask_daemon(&group, &arguments.id), group.id == arguments.id) {
            Deed::Nothing => Ok(()),
            Deed::EndPod => {
                kill_peer(&daemon);
                clean_up()
            }
            // It was killed a moment ago, and its socket still took a connection.
            Deed::Complain if has_ended(&daemon) => clean_up(),
            Deed::Complain => Err(DeleteError::Silent(group.id.clone(), arguments.id.clone())),
        },
        Err(_) => clean_up(),
    };
    unmount_rootfs(&bundle);
    if hooks_are_owed {
        hooks::settle(&arguments.id, &bundle, HOOKS_DEADLINE);
    }
    answer().map_err(DeleteError::Answer)?;
    group.socket.parent().into_iter().for_each(sweep);
    undone
}

/// What became of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// It answered, and does what is left to do.
    Serves,
    /// Not a word.
    Silent,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Nothing,
    EndPod,
    Complain,
}

/// A daemon that answers is never ended from here: others may live in its pod. One that is silent is, for the container that the pod is named
/// after, which ends last (containerd's sandbox, or the only one); no other container is worth the pod. Pure.
fn decide(daemon: Daemon, is_the_pods: bool) -> Deed {
    match (daemon, is_the_pods) {
        (Daemon::Serves, _) => Deed::Nothing,
        (Daemon::Silent, true) => Deed::EndPod,
        (Daemon::Silent, false) => Deed::Complain,
    }
}

// A container that the daemon still knows is given up on the way; it goes on with that after us.
fn ask_daemon(group: &Group, id: &str) -> Daemon {
    let Ok(client) = ttrpc::Client::connect(&group.address()) else { return Daemon::Silent };
    let request = ConnectRequest { id: id.to_owned(), ..ConnectRequest::default() };
    match TaskClient::new(client.clone()).connect(context::with_duration(ANSWER_DEADLINE), &request) {
        // Another container of the pod, deleted as it should be.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND && group.id != id => {}
        Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => {
            let _ = giving_up::give_up(&client, &context::with_duration(GIVE_UP_DEADLINE), id);
        }
        Err(_) => return Daemon::Silent,
    }
    Daemon::Serves
}

// The peer is the daemon itself, which listened last; see daemon.rs.
fn kill_peer(daemon: &UnixStream) {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(daemon) else { return };
    let Ok(process) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return };
    if pidfd_send_signal(&process, Signal::KILL).is_ok() {
        let _ = poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], Some(&END_DEADLINE));
    }
}

/// Whether the process at the other end is no more, or about to be: it was killed, and the kernel may still be at it.
pub(crate) fn has_ended(daemon: &UnixStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(daemon) else { return false };
    let Ok(process) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return true };
    poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], Some(&END_DEADLINE))
        .is_ok_and(|ended| ended > 0)
}

fn clean_up(group: &Group) -> Result<(), DeleteError> {
    let undone = pod::clean_up(&group.state_dir).map_err(Refusal::from);
    // After the processes that the record names: what is left inside the cgroup now is nobody's.
    let removed = pod_cgroup::clean_up(group).map_err(|left| Refusal::new(ErrorKind::Internal, left));
    group.remove_socket(false);
    undone.and(removed).map_err(|refusal| {
        // containerd asks once; others will come by.
        group.lock().into_iter().for_each(GroupLock::leave_behind);
        DeleteError::CleanUp(group.id.clone(), refusal)
    })
}

fn unmount_rootfs(bundle: &Path) {
    let rootfs = bundle.join("rootfs");
    for _ in 0..STACKED_MOUNTS_MAX {
        if rustix::mount::unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err() {
            return;
        }
    }
}

fn answer() -> io::Result<()> {
    let response = DeleteResponse {
        exit_status: KILLED_STATUS,
        exited_at: Some(timestamp::proto(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    let bytes = response.write_to_bytes().map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    out.write_all(&bytes)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delete_of_the_pods_own_container_ends_a_daemon_and_only_a_silent_one() {
        assert_eq!(decide(Daemon::Serves, true), Deed::Nothing);
        assert_eq!(decide(Daemon::Serves, false), Deed::Nothing);
        assert_eq!(decide(Daemon::Silent, true), Deed::EndPod);
        assert_eq!(decide(Daemon::Silent, false), Deed::Complain);
    }
}
