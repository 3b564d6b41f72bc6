//! A rate limit for log lines that a guest can cause.
//!
//! Without it a guest that breaks the rules in a loop would fill the host's log. Each place that logs has its own limit, so that one
//! noisy place cannot silence another.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

/// Lines that one place may log in one window.
const LINES_PER_WINDOW: u32 = 5;
/// Length of a window.
const WINDOW_MS: u64 = 10_000;

/// Counts the lines of one place in the source.
pub(crate) struct LogLimit {
    window_start_ms: AtomicU64,
    lines: AtomicU32,
    muted: AtomicU64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self { window_start_ms: AtomicU64::new(0), lines: AtomicU32::new(0), muted: AtomicU64::new(0) }
    }

    /// Whether to log now, and how many lines were left out since the last one that was logged.
    pub(crate) fn admit_now(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let elapsed = START.get_or_init(Instant::now).elapsed();
        self.admit(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    // Two threads at the edge of a window may both open it; a few lines more or less do no harm, so relaxed counters are enough.
    fn admit(&self, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.window_start_ms.load(Ordering::Relaxed)) >= WINDOW_MS {
            self.window_start_ms.store(now_ms, Ordering::Relaxed);
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES_PER_WINDOW {
            return Some(self.muted.swap(0, Ordering::Relaxed));
        }
        self.lines.store(LINES_PER_WINDOW, Ordering::Relaxed);
        self.muted.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// `log::warn!` for what a guest can cause.
macro_rules! warn_limited {
    ($($argument:tt)*) => {{
        static LIMIT: $crate::log_limit::LogLimit = $crate::log_limit::LogLimit::new();
        if let Some(muted) = LIMIT.admit_now() {
            log::warn!("{} ({muted} like it left out)", format_args!($($argument)*));
        }
    }};
}
pub(crate) use warn_limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_limit_and_counted_in_the_next_window() {
        let limit = LogLimit::new();
        let logged = (0..1000).filter(|_| limit.admit(1).is_some()).count();
        assert_eq!(logged, LINES_PER_WINDOW as usize);
        assert_eq!(limit.admit(1 + WINDOW_MS), Some(1000 - u64::from(LINES_PER_WINDOW)));
    }
}
