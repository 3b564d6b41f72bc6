//! When the driver hears that what it sent is out.
//!
//! Linux asks for an interrupt as soon as a frame or packet is out, only to free its memory: there is nothing else in the news. When it comes is for the
//! device to say, as with the moderation of interrupts of any network card (virtio 1.2 names it for its own, section 5.1.6.5.9). Where little was sent, an
//! answer is likely to come within [`NEWS_WAITS_NANOS`], and its interrupt tells of both: half as many interrupts for whoever asks and
//! answers. Where much was sent, its memory is much and the sender may wait for it: it hears at once.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use vm_memory::GuestMemoryMmap;

use crate::{fault::Fault, served_queue::ServedQueue, timer::Timer};

/// Longest that the news waits: more than an answer takes within a host.
pub(crate) const NEWS_WAITS_NANOS: u64 = if cfg!(test) { 3_000_000_000 } else { 100_000 };
/// Most frames whose news waits.
const FRAMES_MAX: u32 = 32;
/// Most of their bytes. TCP holds back what it has to send while too much of it is on its way through a device (tcp_output.c, tcp_small_queue_check).
const BYTES_MAX: u64 = 8192;

/// What a driver is to hear of what is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing: it has not asked.
    Unwanted,
    /// All, with the next interrupt, or after [`NEWS_WAITS_NANOS`].
    Later,
    /// All, at once.
    Now,
}

/// What is out of one queue, and of which the driver has not heard. Pure but for the question whether it wants to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Finished {
    frames: u32,
    bytes: u64,
}

impl Finished {
    /// One more.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// What the driver of this queue is to hear of it.
    pub(crate) fn news(&self, queue: &ServedQueue, memory: &GuestMemoryMmap) -> Result<News, Fault> {
        Ok(match queue.is_due(memory)? {
            false => News::Unwanted,
            true if self.can_wait() => News::Later,
            true => News::Now,
        })
    }

    fn can_wait(&self) -> bool {
        self.frames <= FRAMES_MAX && self.bytes <= BYTES_MAX
    }
}

/// News of a device that wait, and the alarm for the time when they are due.
pub(crate) struct HeldNews {
    timer: Timer,
    held: bool,
}

impl HeldNews {
    /// None. Fails when there is no descriptor to be had.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { timer: Timer::new()?, held: false })
    }

    /// They wait; the time runs from the first of them on.
    pub(crate) fn hold(&mut self) -> Result<(), Fault> {
        if std::mem::replace(&mut self.held, true) {
            return Ok(());
        }
        self.timer.set(NEWS_WAITS_NANOS).map_err(Fault::io("timerfd_settime"))
    }

    /// The driver has heard. An alarm that is still set is set anew by the next ones, or ends in a look at nothing.
    pub(crate) fn told(&mut self) {
        self.held = false;
    }

    /// The alarm has come, and is ready for the next time.
    pub(crate) fn clear_alarm(&self) {
        self.timer.clear();
    }
}

/// Readable when they are due.
impl AsRawFd for HeldNews {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u32, bytes: u64) -> Finished {
        let mut finished = Finished::default();
        (0..count).for_each(|_| finished.add(bytes));
        finished
    }

    #[test]
    fn a_few_small_frames_can_wait_and_many_or_large_ones_cannot() {
        assert!(of(0, 0).can_wait() && of(1, 60).can_wait() && of(5, 1500).can_wait() && of(32, 60).can_wait());
        assert!(!of(33, 60).can_wait() && !of(6, 1500).can_wait() && !of(1, 65_000).can_wait());
        assert!(!of(2, u64::MAX).can_wait());
    }
}
