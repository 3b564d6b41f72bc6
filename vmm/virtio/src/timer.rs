//! An alarm of a device's thread, to the microsecond: its wait takes milliseconds only.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::Instant,
};

use rustix::{
    fs::Timespec,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

const SECOND_NANOS: u64 = 1_000_000_000;
/// Longest alarm; whoever needs a longer one sets it again.
const LONGEST_NANOS: u64 = 10 * SECOND_NANOS;

/// A timer descriptor, and the clock that limits are measured by.
pub(crate) struct Timer {
    fd: OwnedFd,
    start: Instant,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { fd: timerfd_create(TimerfdClockId::Monotonic, flags)?, start: Instant::now() })
    }

    /// Nanoseconds since the timer was made: enough for 500 years.
    pub(crate) fn now_nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Readable after `nanos`, or after ten seconds if that is sooner. Takes the place of an earlier alarm, due or not.
    pub(crate) fn set(&self, nanos: u64) -> io::Result<()> {
        // Zero would switch the timer off.
        let nanos = nanos.clamp(1, LONGEST_NANOS);
        let it_value = Timespec { tv_sec: (nanos / SECOND_NANOS) as i64, tv_nsec: (nanos % SECOND_NANOS) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
        Ok(())
    }

    /// Makes it wait for the next alarm.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        if let Err(error) = rustix::io::read(&self.fd, &mut count) {
            log::trace!("no alarm to clear: {error}");
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
