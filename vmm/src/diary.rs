//! Log lines: warnings and errors, to standard error, never waited for.
//!
//! Whoever holds the other end of standard error may be slow or stuck; a device's thread must not care. A line that does not
//! go out at once is dropped.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

struct Diary;

/// A pipe that is ready takes this much without blocking (PIPE_BUF).
const LINE_MAX: usize = 4096;

/// From here on `log` macros of all crates write to standard error.
pub fn install() {
    // A second call (tests) keeps the first.
    let _ = log::set_logger(&Diary);
    log::set_max_level(LevelFilter::Warn);
}

impl Log for Diary {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = format!("kata-rs-vmm: {}: {}", record.level(), record.args());
        line.truncate(line.floor_char_boundary(LINE_MAX - 1));
        line.push('\n');
        // Locked before it is asked: of two threads that find the same room in a pipe, the second would wait.
        let mut stderr = std::io::stderr().lock();
        let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut ready, Some(&at_once)).is_ok_and(|count| count > 0) {
            let _ = stderr.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
