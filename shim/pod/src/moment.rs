//! Moments of a launch, on the clock that the VMM's boot marks are on, too.

use rustix::time::{ClockId, clock_gettime};
use vmm_control::Mark;

/// A moment, now.
pub(crate) fn mark(name: &str) -> Mark {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = u64::try_from(now.tv_sec).unwrap_or_default().saturating_mul(1_000_000_000)
        + u64::try_from(now.tv_nsec).unwrap_or_default();
    Mark { name: name.to_owned(), monotonic_nanos: nanos }
}
