//! The one wait of a device's thread: epoll, with a token per source.

use std::{io, os::fd::AsRawFd, time::Duration};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken from the kernel in one call; the others come with the next.
const EVENTS_PER_WAIT: usize = 32;

/// A set of file descriptors to wait for.
pub(crate) struct Events {
    epoll: Epoll,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Reports `token` whenever `source` is in one of the states of `interest`.
    pub(crate) fn watch(&self, source: &impl AsRawFd, interest: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, source.as_raw_fd(), EpollEvent::new(interest, token))
    }

    /// Must come before `source` is closed: another process may hold the same open file, and then closing our number alone
    /// would leave a watch that nobody can remove.
    pub(crate) fn forget(&self, source: &impl AsRawFd) {
        if let Err(error) = self.epoll.ctl(ControlOperation::Delete, source.as_raw_fd(), EpollEvent::default()) {
            log::debug!("a watch could not be removed: {error}");
        }
    }

    /// Waits, forever when `timeout` is `None`. A signal ends the wait with no events.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
    ) -> io::Result<impl ExactSizeIterator<Item = EpollEvent> + use<>> {
        let mut taken = [EpollEvent::default(); EVENTS_PER_WAIT];
        let count = match self.epoll.wait(millis_rounded_up(timeout), &mut taken) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(taken.into_iter().take(count))
    }
}

// Rounding down would spin through the last millisecond before a deadline.
fn millis_rounded_up(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn a_written_eventfd_is_reported_with_its_token() {
        let events = Events::new().expect("epoll");
        let source = EventFd::new(0).expect("eventfd");
        events.watch(&source, EventSet::IN, 7).expect("watch");
        source.write(1).expect("write");
        let tokens: Vec<u64> = events.wait(None).expect("wait").map(|event| event.data()).collect();
        assert_eq!(tokens, [7]);
        events.forget(&source);
        assert_eq!(events.wait(Some(Duration::ZERO)).expect("wait").len(), 0);
    }

    #[test]
    fn timeouts_round_up_to_the_next_millisecond() {
        assert_eq!(millis_rounded_up(None), -1);
        assert_eq!(millis_rounded_up(Some(Duration::ZERO)), 0);
        assert_eq!(millis_rounded_up(Some(Duration::from_micros(1))), 1);
        assert_eq!(millis_rounded_up(Some(Duration::from_secs(u64::MAX))), i32::MAX);
    }
}
