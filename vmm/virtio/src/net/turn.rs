//! One turn of a network device's thread, as its queues see it.

use vm_memory::GuestMemoryMmap;

use super::{counters::NetCounters, rate::Limiter};
use crate::timer::Timer;

/// Most frames that one queue moves in one turn: after that the stop event, the other queues and the interrupt have theirs.
pub(super) const FRAMES_PER_TURN: usize = 64;

/// What every queue needs in a turn.
pub(super) struct Turn<'a> {
    pub(super) name: &'a str,
    pub(super) memory: &'a GuestMemoryMmap,
    pub(super) counters: &'a NetCounters,
    pub(super) timer: &'a Timer,
}

/// The limits of a device, which hold for all its queues together and go on from one life to the next: a reset refills nothing.
pub(super) struct Limits {
    pub(super) transmit: Limiter,
    pub(super) receive: Limiter,
    /// The clock that they are measured by.
    pub(super) timer: Timer,
}

/// Nanoseconds until a frame of `bytes` may pass, when it may not now.
pub(super) fn held(limiter: &mut Limiter, turn: &Turn<'_>, bytes: u64) -> Option<u64> {
    if !limiter.limits() {
        return None;
    }
    let wait = limiter.wait_nanos(bytes, turn.timer.now_nanos());
    (wait > 0).then_some(wait)
}

/// Why a queue's turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// It had its share; there may be more.
    Share,
    /// Nothing is left to move.
    Drained,
    /// Frames wait for buffers of the guest, which was asked for a kick.
    NoBuffers,
    /// Frames wait for this many nanoseconds, as a limit wants.
    Limit(u64),
    /// The interface is gone.
    Gone,
}
