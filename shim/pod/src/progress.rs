//! Whether a machine gets on with what was asked of it.
//!
//! A boot, a new container, a started process take as long as the host is busy: no clock can tell that they will never be. A machine in which
//! nothing moves any more can. The VMM counts what a guest cannot do without: exits, bytes from its disks, memory, marks of its boot. While any of
//! it changes, whoever waits goes on waiting.
//!
//! Stillness is counted in the VMM's answers and not in seconds, so that a host on which nobody gets a processor makes no machine look dead.
//! A guest that keeps moving to be waited for meets [`WAIT_MAX`].

use std::time::{Duration, Instant};

use vmm_control::Report;

use crate::machine::Machine;

/// How often a machine that lets us wait is looked at; the usual boot is over before the first look. (Tests look faster.)
const LOOK_EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_millis(500) };
/// Answers in a row in which nothing has moved, after which nothing will. A boot reads one small disk that lies in memory: ten seconds of a host
/// that has time are plenty.
pub(crate) const BOOT_STILL_MAX: u32 = 20;
/// The same once containers are there, whose files may come from a slow disk, or over the network: half a minute.
pub(crate) const CALL_STILL_MAX: u32 = 60;
/// Looks in a row to which the VMM has no answer. It answers from the moment its vCPUs run, and each look waits two seconds for it.
const SILENT_LOOKS_MAX: u32 = 60;
/// Longest wait for a guest that moves. Many times what a boot takes on a host that starts a hundred at once; the kubelet gives up before.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(300);

/// What the looks have shown. Pure.
#[derive(Debug)]
struct Looks {
    still_max: u32,
    last: Option<Report>,
    still: u32,
    silent: u32,
}

impl Looks {
    fn new(still_max: u32) -> Self {
        Self { still_max, last: None, still: 0, silent: 0 }
    }

    /// One more look: what the VMM answered, if it did. A sentence when it is time to give up.
    fn judge(&mut self, answer: Option<Report>) -> Option<&'static str> {
        if answer.is_none() {
            self.silent += 1;
            return (self.silent >= SILENT_LOOKS_MAX).then_some("the virtual machine monitor does not answer");
        }
        self.silent = 0;
        self.still = if answer == self.last { self.still + 1 } else { 0 };
        self.last = answer;
        (self.still >= self.still_max).then_some("nothing moves in the machine any more")
    }
}

/// Resolves when there is no point in waiting for this machine any longer, with a sentence that says why. The machine's own end is not told here.
pub(crate) async fn standstill(machine: &Machine, still_max: u32) -> String {
    let begun = Instant::now();
    let mut looks = Looks::new(still_max);
    while begun.elapsed() < WAIT_MAX {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(sentence) = looks.judge(machine.report().await.ok()) {
            return format!("{sentence} ({:.1} s were waited)", begun.elapsed().as_secs_f32());
        }
    }
    format!("the machine still moves, but {WAIT_MAX:?} are enough")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(memory_touched_bytes: u64) -> Option<Report> {
        Some(Report { memory_touched_bytes, ..Report::default() })
    }

    #[test]
    fn whoever_moves_is_waited_for() {
        let mut looks = Looks::new(BOOT_STILL_MAX);
        assert!((0..100_000).all(|step| looks.judge(touched(step / u64::from(BOOT_STILL_MAX))).is_none()));
    }

    #[test]
    fn a_machine_that_shows_the_same_again_and_again_is_given_up() {
        let mut looks = Looks::new(BOOT_STILL_MAX);
        assert_eq!(looks.judge(touched(1)), None);
        let answers = (0..BOOT_STILL_MAX).filter_map(|_| looks.judge(touched(1)));
        assert_eq!(answers.collect::<Vec<_>>(), ["nothing moves in the machine any more"]);
    }

    #[test]
    fn looks_without_an_answer_say_nothing_of_the_guest() {
        let mut looks = Looks::new(BOOT_STILL_MAX);
        for _ in 0..BOOT_STILL_MAX - 1 {
            assert_eq!(looks.judge(touched(1)), None);
            assert!((1..SILENT_LOOKS_MAX).all(|_| looks.judge(None).is_none()), "it may have no processor");
        }
        assert_eq!(looks.judge(touched(2)), None);
    }

    #[test]
    fn a_monitor_that_never_answers_is_given_up() {
        let mut looks = Looks::new(BOOT_STILL_MAX);
        assert!((1..SILENT_LOOKS_MAX).all(|_| looks.judge(None).is_none()));
        assert!(looks.judge(None).is_some());
    }
}
