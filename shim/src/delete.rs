//! `shim delete`: undoes what is left of a container whose daemon does not answer.
//!
//! containerd calls this after *every* container, also when the daemon has ended as it should, or serves other containers of the
//! pod. So the daemon is asked first:
//!
//! | the daemon | what is done |
//! |---|---|
//! | is gone | the pod's record is replayed backwards, its socket removed |
//! | serves, and does not know the container | nothing: it was deleted as it should be |
//! | serves, and knows it | the container is killed and deleted through the daemon |
//! | listens, and does not answer | it is killed, then as if gone |
//!
//! Nothing here needs the guest, and everything can be done again.

use std::{
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use containerd_shim_protos::{
    TaskClient,
    api::{ConnectRequest, DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest},
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
    group::Group,
    pod_cgroup,
    refusal::Refusal,
    timestamp,
};

/// How long a living daemon has to answer its first question, and all of them together. containerd gives all of `delete` five seconds, of which
/// a daemon's death and the clean-up after it need up to two and a half.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
const ANSWERS_DEADLINE: Duration = Duration::from_secs(2);
/// How long the kernel has to end a killed daemon.
const END_DEADLINE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Mounts on one place that are taken off; containerd makes one.
const STACKED_MOUNTS_MAX: usize = 16;
const SIGKILL: u32 = 9;

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
    let undone = match UnixStream::connect(&group.socket) {
        Ok(daemon) if ask_daemon(&group, &arguments.id) => {
            drop(daemon);
            Ok(())
        }
        Ok(daemon) => {
            kill_peer(&daemon);
            clean_up(&group)
        }
        Err(_) => clean_up(&group),
    };
    unmount_rootfs(&bundle);
    answer().map_err(DeleteError::Answer)?;
    undone
}

// Whether the daemon answers; a container that it still knows is ended on the way.
fn ask_daemon(group: &Group, id: &str) -> bool {
    let Ok(client) = ttrpc::Client::connect(&group.address()) else { return false };
    let client = TaskClient::new(client);
    let begun = Instant::now();
    let deadline = || context::with_duration(what_is_left(begun.elapsed()));
    let id = || id.to_owned();
    match client
        .connect(context::with_duration(ANSWER_DEADLINE), &ConnectRequest { id: id(), ..ConnectRequest::default() })
    {
        Ok(_) => {}
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => return true,
        Err(_) => return false,
    }
    let kill = KillRequest { id: id(), signal: SIGKILL, all: true, ..KillRequest::default() };
    let _ = client.kill(deadline(), &kill);
    let _ = client.wait(deadline(), &WaitRequest { id: id(), ..WaitRequest::default() });
    let deleted = client.delete(deadline(), &DeleteRequest { id: id(), ..DeleteRequest::default() });
    let _ = client.shutdown(deadline(), &ShutdownRequest { id: id(), ..ShutdownRequest::default() });
    deleted.is_ok()
}

// Never nothing: ttrpc takes that for no deadline at all.
fn what_is_left(elapsed: Duration) -> Duration {
    ANSWERS_DEADLINE.saturating_sub(elapsed).max(Duration::from_millis(10))
}

// The peer is the daemon itself, which listened last; see daemon.rs.
fn kill_peer(daemon: &UnixStream) {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(daemon) else { return };
    let Ok(process) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return };
    if pidfd_send_signal(&process, Signal::KILL).is_ok() {
        let _ = poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], Some(&END_DEADLINE));
    }
}

fn clean_up(group: &Group) -> Result<(), DeleteError> {
    let undone = pod::clean_up(&group.state_dir).map_err(Refusal::from);
    // After the processes that the record names: what is left inside the cgroup now is nobody's.
    let removed = pod_cgroup::clean_up(group).map_err(|left| Refusal::new(ErrorKind::Internal, left));
    group.remove_socket(false);
    undone.and(removed).map_err(|refusal| DeleteError::CleanUp(group.id.clone(), refusal))
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
    fn a_daemon_that_answers_nothing_leaves_time_for_the_clean_up() {
        let (mut elapsed, calls) = (ANSWER_DEADLINE, 4);
        for _ in 0..calls {
            let call = what_is_left(elapsed);
            assert!(call > Duration::ZERO);
            elapsed += call;
        }
        assert!(elapsed < Duration::from_millis(2500), "{elapsed:?} and 2.5 s more are over containerd's five");
    }
}
