//! The log: containerd reads the fifo `log` in the bundle and passes its lines on as its own.
//!
//! The fifo is opened for both directions, so that opening waits for nobody, and without blocking, so that a containerd that is
//! away or slow costs lines, never time. Lost lines are counted and the next line that fits says how many.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use rustix::fs::{FileType, Mode, OFlags};

use crate::timestamp;

/// Longest line; a fifo takes a line up to PIPE_BUF whole (pipe(7)), so lines of several processes do not mix.
const LINE_LEN_MAX: usize = 4096;

/// A logger that writes lines as logrus does.
pub struct LogFile {
    file: File,
    fields: String,
    lost: AtomicU64,
}

impl LogFile {
    /// Opens the bundle's fifo and makes it the log of this process. Without a fifo there is no log, which is no error.
    pub fn install(bundle: &Path, namespace: &str, id: &str, debug: bool) {
        let Ok(file) = open(&bundle.join("log")) else { return };
        // A panic's message goes the same way.
        let _ = rustix::stdio::dup2_stderr(&file);
        log::set_max_level(if debug { log::LevelFilter::Debug } else { log::LevelFilter::Info });
        // For the life of the process, as the log facade wants it.
        let _ = log::set_logger(Box::leak(Box::new(Self::new(file, namespace, id))));
    }

    fn new(file: File, namespace: &str, id: &str) -> Self {
        Self {
            file,
            fields: format!("id={id} namespace={namespace} runtime=io.containerd.kata-rs.v2"),
            lost: AtomicU64::new(0),
        }
    }

    fn write(&self, level: &str, message: &str) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0
            && !self.write_line("warning", &format!("{lost} lines of the log were lost: its reader was too slow"))
        {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
        if !self.write_line(level, message) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write_line(&self, level: &str, message: &str) -> bool {
        let line = line(SystemTime::now(), level, message, &self.fields);
        matches!((&self.file).write(line.as_bytes()), Ok(written) if written == line.len())
    }
}

impl log::Log for LogFile {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // ttrpc logs each message it sends at trace and complains about each hang-up at error.
        !metadata.target().starts_with("ttrpc") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.write(level_word(record.level()), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn open(path: &Path) -> rustix::io::Result<File> {
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == FileType::Fifo { Ok(file.into()) } else { Err(rustix::io::Errno::INVAL) }
}

fn level_word(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warning",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

fn line(at: SystemTime, level: &str, message: &str, fields: &str) -> String {
    let mut quoted = String::with_capacity(message.len());
    for letter in message.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => quoted.extend(letter.escape_default()),
            _ => quoted.push(letter),
        }
    }
    let room = LINE_LEN_MAX.saturating_sub(fields.len() + 128);
    if quoted.len() > room {
        let end = (0..=room).rev().find(|&end| quoted.is_char_boundary(end)).unwrap_or(0);
        quoted.truncate(end);
        quoted.push('…');
    }
    format!("time=\"{}\" level={level} msg=\"{quoted}\" {fields}\n", timestamp::rfc3339(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, time::UNIX_EPOCH};

    #[test]
    fn a_line_is_one_line_in_logrus_text_format() {
        assert_eq!(
            line(UNIX_EPOCH, "info", "a \"b\"\nit's é", "id=x"),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=info msg=\"a \\\"b\\\"\\nit's é\" id=x\n"
        );
    }

    #[test]
    fn a_long_message_is_cut_to_what_a_fifo_takes_whole() {
        assert!(line(UNIX_EPOCH, "info", &"é".repeat(10_000), "id=x").len() <= LINE_LEN_MAX);
    }

    #[test]
    fn a_reader_that_is_away_costs_lines_that_are_counted() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).expect("fifo");
        let log = LogFile::new(open(&path).expect("opened"), "ns", "x");
        for _ in 0..10_000 {
            log.write("info", "nobody reads this");
        }
        let mut reader = open(&path).expect("opened");
        let mut bytes = vec![0; 1 << 20];
        let _ = reader.read(&mut bytes).expect("read");
        log.write("info", "now");
        let length = reader.read(&mut bytes).expect("read");
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        assert!(text.contains("lines of the log were lost") && text.contains("msg=\"now\""), "{text}");
    }

    #[test]
    fn a_file_that_is_no_fifo_is_left_alone() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("log"), "mine").expect("written");
        assert!(open(&dir.path().join("log")).is_err());
    }
}
