//! Log lines of the agent, for the guest's console.
//!
//! A line there may cost 10 ms, so the default level is `warn` and nothing is said on the way of a healthy start. The kernel's command
//! line raises it: `kata_rs.log=debug`. In a machine lines go through /dev/kmsg, so that they stand in order among the kernel's.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::OnceLock,
};

use log::{Level, LevelFilter, Log, Metadata, Record};

const WORD: &str = "kata_rs.log=";
/// The kernel cuts a record at about this size (PRINTKRB_RECORD_MAX, kernel/printk/printk_ringbuffer.h).
const LINE_MAX: usize = 976;

struct Journal {
    kmsg: OnceLock<Option<File>>,
}

static JOURNAL: Journal = Journal { kmsg: OnceLock::new() };

/// Starts logging at the level that the kernel's command line asks for.
pub fn start(cmdline: &str) {
    log::set_max_level(level(cmdline));
    // Only the first caller in a process gets its way; tests may have a logger of their own.
    let _ = log::set_logger(&JOURNAL);
}

fn level(cmdline: &str) -> LevelFilter {
    let word = cmdline.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(WORD));
    word.and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::Warn)
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let kmsg = self.kmsg.get_or_init(|| OpenOptions::new().write(true).open("/dev/kmsg").ok());
        let mut line = format!("<{}>kata-rs-agent: {}", priority(record.level()), record.args()).replace('\n', " ");
        line.truncate(line.floor_char_boundary(LINE_MAX));
        line.push('\n');
        // There is nobody to tell when the console does not take it.
        let _ = match kmsg {
            Some(kmsg) => (&*kmsg).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// Levels of syslog(2).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_chooses_the_level_and_its_last_word_counts() {
        assert_eq!(level("console=hvc0 kata_rs.log=debug ro"), LevelFilter::Debug);
        assert_eq!(level("kata_rs.log=debug kata_rs.log=error"), LevelFilter::Error);
    }

    #[test]
    fn silence_or_nonsense_means_warn() {
        assert_eq!(level("console=hvc0"), LevelFilter::Warn);
        assert_eq!(level("kata_rs.log=loud"), LevelFilter::Warn);
    }
}
