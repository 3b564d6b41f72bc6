//! The birth of a process: work that waits for a child which somebody inside can hold up, so that it must be possible to give it up.
//!
//! Root in a container sees an exec as soon as it exists in there, before it is the program, and can stop it. Nobody else may suffer from that:
//! - each birth has a thread of its own, so none waits for another container's ([`on_a_thread`]);
//! - a container has few at a time ([`BIRTHS_MAX`]), and only its own wait for their turn;
//! - a SIGKILL for a process that is being born ends the wait at once ([`Birth::give_up`]).

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::net::{Shutdown, shutdown};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::refusal::Refusal;

/// Births of one container at a time: two processors are busy with fewer, and each holds a thread.
pub const BIRTHS_MAX: usize = 4;
/// What making a process needs of a stack, generously.
const STACK_BYTES: usize = 256 << 10;

/// A birth that can be given up. Clones are the same birth.
#[derive(Debug, Clone)]
pub struct Birth(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    given_up: watch::Sender<bool>,
    /// The conversation with whoever makes the process.
    conversation: Mutex<Option<OwnedFd>>,
}

impl Default for Birth {
    fn default() -> Self {
        Self(Arc::new(Shared { given_up: watch::Sender::new(false), conversation: Mutex::default() }))
    }
}

impl Birth {
    /// Ends whatever waits for this birth, now and later.
    pub fn give_up(&self) {
        self.0.given_up.send_replace(true);
        self.cut();
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        *self.0.given_up.borrow()
    }

    /// From here on giving up ends this conversation, both directions of it.
    pub fn converses_through(&self, conversation: OwnedFd) {
        *self.held() = Some(conversation);
        if self.is_given_up() {
            self.cut();
        }
    }

    /// Waits for a turn among the container's births.
    ///
    /// # Errors
    /// It was given up first.
    pub async fn turn(&self, turns: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
        let mut given_up = self.0.given_up.subscribe();
        tokio::select! {
            biased;
            _ = given_up.wait_for(|given_up| *given_up) => Err(Refusal::KilledUnborn),
            turn = turns.acquire_owned() => turn.map_err(|closed| Refusal::failed("take a turn", closed)),
        }
    }

    fn cut(&self) {
        if let Some(conversation) = self.held().take() {
            // It may be over already, and then nobody waits.
            let _ = shutdown(conversation, Shutdown::Both);
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.0.conversation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does something that may block for long on a thread of its own, and waits for it.
///
/// # Errors
/// There is no thread left, or the work ended without an outcome.
pub async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("birth".into()).stack_size(STACK_BYTES);
    thread.spawn(move || drop(done.send(work())))?;
    outcome.await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn giving_up_ends_a_conversation_begun_before_or_after() {
        for before in [true, false] {
            let (birth, (mut ours, theirs)) = (Birth::default(), UnixStream::pair().expect("a pair"));
            let copy = ours.try_clone().expect("copied").into();
            if before {
                birth.converses_through(copy);
                birth.give_up();
            } else {
                birth.give_up();
                birth.converses_through(copy);
            }
            assert_eq!(ours.read(&mut [0]).expect("the end"), 0);
            drop(theirs);
        }
    }

    #[tokio::test]
    async fn a_birth_waits_for_its_turn_unless_given_up() {
        let turns = Arc::new(Semaphore::new(1));
        let (first, second) = (Birth::default(), Birth::default());
        let turn = first.turn(turns.clone()).await.expect("free");
        let waiting = tokio::spawn({
            let (second, turns) = (second.clone(), turns.clone());
            async move { second.turn(turns).await.map(drop) }
        });
        tokio::task::yield_now().await;
        second.give_up();
        assert!(matches!(waiting.await.expect("ended"), Err(Refusal::KilledUnborn)));
        drop(turn);
        assert!(Birth::default().turn(turns).await.is_ok());
    }
}
