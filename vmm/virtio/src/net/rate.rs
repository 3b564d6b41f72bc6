//! Token buckets. Pure: time comes in as nanoseconds of a clock that never goes back.

/// Nanoseconds of a second: buckets count in units times this, so that nothing is ever rounded away.
const SECOND: u128 = 1_000_000_000;

/// At most `burst + per_second * t` units in any time of t seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Units in the long run, at least one.
    pub per_second: u64,
    /// Units at once after a pause. A single thing larger than this never passes.
    pub burst: u64,
}

/// Limits of one direction; both hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Of bytes.
    pub bytes: Option<Bucket>,
    /// Of frames.
    pub frames: Option<Bucket>,
}

/// A bucket and what is in it.
#[derive(Debug, Clone)]
struct TokenBucket {
    limit: Bucket,
    scaled: u128,
    at_nanos: u64,
}

impl TokenBucket {
    fn full(limit: Bucket, now_nanos: u64) -> Self {
        Self { limit, scaled: u128::from(limit.burst) * SECOND, at_nanos: now_nanos }
    }

    fn refill(&mut self, now_nanos: u64) {
        let elapsed = now_nanos.saturating_sub(self.at_nanos);
        self.at_nanos = self.at_nanos.max(now_nanos);
        let new = u128::from(elapsed).saturating_mul(u128::from(self.limit.per_second));
        self.scaled = self.scaled.saturating_add(new).min(u128::from(self.limit.burst) * SECOND);
    }

    /// Nanoseconds until `units` are in the bucket; zero when they are.
    fn wait_nanos(&self, units: u64) -> u64 {
        let missing = (u128::from(units) * SECOND).saturating_sub(self.scaled);
        u64::try_from(missing.div_ceil(u128::from(self.limit.per_second.max(1)))).unwrap_or(u64::MAX)
    }

    fn take(&mut self, units: u64) {
        self.scaled = self.scaled.saturating_sub(u128::from(units) * SECOND);
    }
}

/// The buckets of one direction.
#[derive(Debug, Clone)]
pub(super) struct Limiter {
    bytes: Option<TokenBucket>,
    frames: Option<TokenBucket>,
}

impl Limiter {
    /// Full buckets.
    pub(super) fn new(limit: RateLimit, now_nanos: u64) -> Self {
        let full = |bucket: Option<Bucket>| bucket.map(|limit| TokenBucket::full(limit, now_nanos));
        Self { bytes: full(limit.bytes), frames: full(limit.frames) }
    }

    /// Whether anything is limited at all. If not, no clock need be read.
    pub(super) fn limits(&self) -> bool {
        self.bytes.is_some() || self.frames.is_some()
    }

    /// Nanoseconds until a frame of `bytes` may pass; zero when it may now.
    pub(super) fn wait_nanos(&mut self, bytes: u64, now_nanos: u64) -> u64 {
        let wait = |bucket: &mut Option<TokenBucket>, units| {
            bucket.as_mut().map_or(0, |bucket| {
                bucket.refill(now_nanos);
                bucket.wait_nanos(units)
            })
        };
        wait(&mut self.bytes, bytes).max(wait(&mut self.frames, 1))
    }

    /// A frame of `bytes` passes.
    pub(super) fn take(&mut self, bytes: u64) {
        self.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        self.frames.iter_mut().for_each(|bucket| bucket.take(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_only(per_second: u64, burst: u64) -> Limiter {
        Limiter::new(RateLimit { bytes: Some(Bucket { per_second, burst }), frames: None }, 0)
    }

    #[test]
    fn a_full_bucket_lets_its_burst_pass_and_then_the_rate() {
        let mut limiter = bytes_only(1000, 3000);
        for _ in 0..2 {
            assert_eq!(limiter.wait_nanos(1500, 0), 0);
            limiter.take(1500);
        }
        assert_eq!(limiter.wait_nanos(1500, 0), 1_500_000_000);
        assert_eq!(limiter.wait_nanos(1500, 1_499_999_999), 1);
        assert_eq!(limiter.wait_nanos(1500, 1_500_000_000), 0);
    }

    #[test]
    fn the_tighter_of_two_limits_holds() {
        let bytes = Some(Bucket { per_second: 1 << 40, burst: 1 << 40 });
        let frames = Some(Bucket { per_second: 10, burst: 1 });
        let mut limiter = Limiter::new(RateLimit { bytes, frames }, 0);
        limiter.take(60);
        assert_eq!(limiter.wait_nanos(60, 0), 100_000_000);
        assert!(limiter.limits());
        assert!(!Limiter::new(RateLimit::default(), 0).limits());
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut limiter = bytes_only(u64::MAX, u64::MAX);
        limiter.take(u64::MAX);
        assert_eq!(limiter.wait_nanos(u64::MAX, u64::MAX), 0);
        let mut slow = bytes_only(1, 1);
        assert_eq!(slow.wait_nanos(u64::MAX, 0), u64::MAX);
    }

    proptest! {
        // In every stretch of time, from any frame to any later one: never more than the burst and the rate's share of the time.
        #[test]
        fn no_stretch_of_time_passes_more_than_burst_and_rate(
            per_second in 1u64..1_000_000,
            burst in 1500u64..100_000,
            steps in prop::collection::vec((0u64..50_000_000, 1u64..=1500), 1..80),
        ) {
            let mut limiter = bytes_only(per_second, burst);
            let (mut now, mut passed) = (0u64, Vec::new());
            for (pause, bytes) in steps {
                now += pause;
                if limiter.wait_nanos(bytes, now) == 0 {
                    limiter.take(bytes);
                    passed.push((now, bytes));
                }
            }
            for start in 0..passed.len() {
                let mut sum = 0u128;
                for (at, bytes) in &passed[start..] {
                    sum += u128::from(*bytes);
                    let share = u128::from(per_second) * u128::from(at - passed[start].0);
                    prop_assert!(sum * SECOND <= u128::from(burst) * SECOND + share);
                }
            }
        }

        // Waiting as long as told is enough, one nanosecond less is not, and time never makes the wait longer.
        #[test]
        fn the_wait_is_exact_and_shrinks_with_time(per_second in 1u64..1 << 40, taken in 1u64..100_000, later in 0u64..1 << 40) {
            let mut limiter = bytes_only(per_second, 100_000);
            limiter.take(taken);
            let wait = limiter.wait_nanos(100_000, 0);
            prop_assert!(wait > 0);
            prop_assert!(limiter.clone().wait_nanos(100_000, wait - 1) > 0);
            prop_assert_eq!(limiter.clone().wait_nanos(100_000, wait), 0);
            prop_assert!(limiter.wait_nanos(100_000, later) <= wait);
        }
    }
}
