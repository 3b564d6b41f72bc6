//! Named moments of the boot, on the host's CLOCK_MONOTONIC.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use vmm_control::Mark;

/// Most marks kept. A guest that resets its devices again and again makes no list grow.
const MARKS_MAX: usize = 64;

/// The list of moments; clones share it.
#[derive(Debug, Clone)]
pub struct Marks(Arc<Mutex<Vec<Mark>>>);

impl Marks {
    /// Starts with the launcher's moment of spawning, if it told one, and now.
    pub fn new(spawned_nanos: Option<u64>) -> Self {
        let spawned = spawned_nanos.map(|monotonic_nanos| Mark { name: "spawned".to_owned(), monotonic_nanos });
        let marks = Self(Arc::new(Mutex::new(spawned.into_iter().collect())));
        marks.note("vmm start");
        marks
    }

    /// Notes that `name` happened now. The first time of each name counts.
    pub fn note(&self, name: &str) {
        let monotonic_nanos = now_nanos();
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MARKS_MAX && marks.iter().all(|mark| mark.name != name) {
            marks.push(Mark { name: name.to_owned(), monotonic_nanos });
        }
    }

    /// All moments until now, in order.
    pub fn list(&self) -> Vec<Mark> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_come_in_order_and_each_name_once() {
        let marks = Marks::new(Some(1));
        marks.note("kvm ready");
        marks.note("kvm ready");
        let list = marks.list();
        let names: Vec<_> = list.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["spawned", "vmm start", "kvm ready"]);
        assert!(list.is_sorted_by_key(|m| m.monotonic_nanos));
    }

    #[test]
    fn the_list_has_a_limit() {
        let marks = Marks::new(None);
        (0..1000).for_each(|index| marks.note(&index.to_string()));
        assert_eq!(marks.list().len(), MARKS_MAX);
    }
}
