//! `--timing`: where the time of a run went, as a waterfall on standard error.

use pod::Report;

/// Moments of the command itself, on the same clock as the machine's marks.
#[derive(Debug, Default)]
pub struct Moments {
    moments: Vec<(String, u64)>,
}

impl Moments {
    /// Notes that this has just happened.
    pub fn mark(&mut self, name: &str) {
        self.moments.push((name.to_owned(), now_nanos()));
    }

    /// Adds the machine's own marks.
    pub fn add(&mut self, report: &Report) {
        let marks = report.marks.iter().map(|mark| (format!("  machine: {}", mark.name), mark.monotonic_nanos));
        self.moments.extend(marks);
    }

    /// One line a moment, in order: time since the first, time since the one before, a bar.
    pub fn waterfall(&self) -> String {
        let mut moments = self.moments.clone();
        moments.sort_by_key(|(_, at)| *at);
        let Some((_, start)) = moments.first().cloned() else { return String::new() };
        let total = moments.last().map_or(1, |(_, at)| (at - start).max(1));
        let mut before = start;
        let line = |(name, at): &(String, u64)| {
            let (since_start, step) = (at - start, at - before);
            let (from, to) = ((before - start) * BAR_WIDTH / total, since_start * BAR_WIDTH / total);
            before = *at;
            let bar = format!("{}{}", " ".repeat(to_len(from)), "#".repeat(to_len(to - from)));
            format!("{:>9.1} ms  +{:>8.1}  {name:<32} |{bar}\n", millis(since_start), millis(step))
        };
        moments.iter().map(line).collect()
    }
}

const BAR_WIDTH: u64 = 40;

fn to_len(columns: u64) -> usize {
    usize::try_from(columns).unwrap_or(0)
}

fn millis(nanos: u64) -> f64 {
    // A boot is far shorter than the 104 days at which a double loses nanoseconds.
    nanos as f64 / 1e6
}

fn now_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_in_the_order_they_happened() {
        let moments = Moments {
            moments: vec![("end".into(), 3_000_000), ("start".into(), 1_000_000), ("middle".into(), 2_000_000)],
        };
        let text = moments.waterfall();
        let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().nth(4)).collect();
        assert_eq!(names, ["start", "middle", "end"], "{text}");
        assert!(text.lines().nth(2).is_some_and(|line| line.trim_start().starts_with("2.0 ms")), "{text}");
    }

    #[test]
    fn nothing_noted_is_nothing_told() {
        assert_eq!(Moments::default().waterfall(), "");
    }
}
