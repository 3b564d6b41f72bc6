//! The news that nobody wants a container any more, which comes once and stays true.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use rustix::event::{EventfdFlags, eventfd};

/// Told by who deletes a container, heard by who is making it.
#[derive(Debug, Default)]
pub struct Doom {
    told: AtomicBool,
    event: OnceLock<OwnedFd>,
}

impl Doom {
    /// From now on nobody wants it.
    pub fn tell(&self) {
        self.told.store(true, Ordering::SeqCst);
        // Either this sees the descriptor, or whoever makes it sees what was told.
        fence(Ordering::SeqCst);
        self.event.get().into_iter().for_each(ring);
    }

    /// Whether nobody wants it.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::SeqCst)
    }

    /// A descriptor that is readable from the moment on at which nobody wants it, for poll(2). Made for the first who asks.
    ///
    /// # Errors
    /// This process has no room for one more descriptor.
    pub fn event(&self) -> io::Result<BorrowedFd<'_>> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let event = self.event.get_or_init(|| made);
        // Who told meanwhile may have found no descriptor.
        fence(Ordering::SeqCst);
        if self.is_told() {
            ring(event);
        }
        Ok(event.as_fd())
    }
}

fn ring(event: &OwnedFd) {
    // Only a counter at its maximum takes no more, and then it is readable.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(doom: &Doom) -> bool {
        let event = doom.event().expect("a descriptor");
        poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&Timespec::default())).expect("polled") == 1
    }

    #[test]
    fn the_news_reaches_who_waits_before_and_who_comes_after() {
        let doom = Doom::default();
        assert!(!doom.is_told() && !readable(&doom));
        doom.tell();
        assert!(doom.is_told() && readable(&doom) && readable(&doom));
        let late = Doom::default();
        late.tell();
        assert!(readable(&late));
    }
}
