//! The share tree: every file that the guest may see, in a mount namespace of the pod's own.
//!
//! # Why a thread
//! A mount namespace belongs to a thread, so one thread of its own does all mounting, on [orders](Order). It is the only one that sees the
//! pod's mounts: the host's table stays as it is, and when this process dies, however it dies, the kernel takes the mounts down with it.
//!
//! # The tree
//! ```text
//!  <state>/tree    a small tmpfs, writable, seen by this thread only: mount points are made here, mounts are prepared at tree/stage-*
//!  <state>/share   the same tmpfs, read-only and shared (MS_SHARED), what the file server serves:
//!     <container>/rootfs        each prepared mount is moved here, complete with its flags, and so appears
//!     <container>/mounts/<n>    in the file server's namespace, which is a slave of this one
//! ```
//! The guest can write inside what was mounted for it, and nowhere on the way to a mount point: no symbolic link of its making is
//! ever followed by a mount of ours. Flags are set before the move because they do not propagate after it.
//! Every mount is nodev and nosuid: the host never opens the guest's device nodes.

mod mounting;
mod tree;

use std::{io, os::fd::OwnedFd, path::Path, sync::mpsc, time::Duration};

use tokio::sync::oneshot;

pub(crate) use self::mounting::{parse_mounts, unescape};
use self::tree::Tree;
use crate::{ErrorKind, PodError, process::Spawned, record::Carried, share_server, storage::StoragePlan};

/// How long a container's mounts may take. A volume on a dead network file system can hold the thread for ever.
const ADD_DEADLINE: Duration = Duration::from_secs(30);
/// How long taking them away may take: lazily, so it waits for nothing but a thread that hangs.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// Everything that can wake the thread; it ends when nobody can order any more.
#[derive(Debug)]
pub(crate) enum Order {
    /// Mount a container's files.
    Add(StoragePlan, oneshot::Sender<Result<(), PodError>>),
    /// Take them away.
    Remove(String, oneshot::Sender<Result<(), PodError>>),
    /// Take everything away and end.
    End(oneshot::Sender<Vec<String>>),
}

/// Sends orders to the thread, or in tests to whoever plays it.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    orders: mpsc::Sender<Order>,
}

/// Answers when the share tree is there and its server runs; there is no server process in tests.
pub(crate) type ServerReady = oneshot::Receiver<Result<Option<Spawned>, PodError>>;

/// What the thread needs to start the file server.
#[derive(Debug)]
pub(crate) struct ServerStart {
    /// Where the VMM's connection waits.
    pub listener: OwnedFd,
    /// For its last words.
    pub stderr: OwnedFd,
    /// What it is recorded in and carries.
    pub carried: Carried,
}

impl Share {
    /// The share of whoever takes the orders: a test.
    #[cfg(test)]
    pub(crate) fn ordered_by(orders: mpsc::Sender<Order>) -> Self {
        Self { orders }
    }

    /// Starts the thread, which makes the tree and starts the file server; the answer comes when it has.
    pub(crate) fn start(state_dir: &Path, program: &Path, server: ServerStart) -> io::Result<(Self, ServerReady)> {
        let (orders, inbox) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        let (state_dir, program) = (state_dir.to_owned(), program.to_owned());
        std::thread::Builder::new().name("share".to_owned()).stack_size(256 * 1024).spawn(move || {
            let started = Tree::make(&state_dir).and_then(|tree| {
                let share = tree.share.clone();
                let spawned = share_server::spawn(&program, &share, server.listener, server.stderr, &server.carried)?;
                Ok((tree, spawned))
            });
            match started {
                Ok((tree, spawned)) => {
                    let _ = ready.send(Ok(Some(spawned)));
                    tree.serve(&inbox);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        Ok((Self { orders }, is_ready))
    }

    /// Mounts a container's files.
    pub(crate) async fn add(&self, plan: StoragePlan) -> Result<(), PodError> {
        self.order(ADD_DEADLINE, |reply| Order::Add(plan, reply)).await?
    }

    /// Takes a container's files away; fine when there are none.
    pub(crate) async fn remove(&self, container_id: &str) -> Result<(), PodError> {
        match self.order(REMOVE_DEADLINE, |reply| Order::Remove(container_id.to_owned(), reply)).await {
            Err(error) if error.kind == ErrorKind::Unavailable => Ok(()),
            removed => removed?,
        }
    }

    /// Takes everything away; tells what could not be.
    pub(crate) async fn end(&self) -> Vec<String> {
        match self.order(REMOVE_DEADLINE, Order::End).await {
            Err(error) if error.kind == ErrorKind::Unavailable => Vec::new(),
            Err(error) => vec![error.message],
            Ok(problems) => problems,
        }
    }

    /// Unavailable is a thread that has ended, and with it all its mounts.
    async fn order<T>(
        &self,
        deadline: Duration,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, PodError> {
        let gone = || PodError::new(ErrorKind::Unavailable, "the pod's share tree is gone: the pod is being stopped");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).map_err(|_| gone())?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(|_| gone()),
            Err(_) => Err(PodError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "mounting hangs for more than {deadline:?}: is a volume on a network file system that is away?"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
