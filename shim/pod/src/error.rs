//! The one error that leaves this crate.

/// What kind of error, for fronts to translate into their own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such container, exec or process, or it has ended.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// What was asked for cannot be.
    InvalidArgument,
    /// It cannot be done now.
    FailedPrecondition,
    /// Nobody has written that yet.
    Unimplemented,
    /// The machine is gone.
    Unavailable,
    /// The guest did not answer in time.
    DeadlineExceeded,
    /// The host failed.
    Internal,
}

/// Any failure of a pod: names the object, the cause and the next thing to try; carries the tail of the guest's console where that tells more.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PodError {
    /// For the front's own code.
    pub kind: ErrorKind,
    /// The whole sentence.
    pub message: String,
    /// What lies beneath.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PodError {
    /// An error with nothing beneath it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure of the host with the error that caused it, which is chained and said too: fronts show the message alone.
    pub(crate) fn host(
        message: impl std::fmt::Display,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind: ErrorKind::Internal, message: format!("{message}: {source}"), source: Some(Box::new(source)) }
    }

    /// The same error with more to read below it.
    pub(crate) fn with_tail(mut self, title: &str, tail: &str) -> Self {
        if !tail.is_empty() {
            self.message = format!("{}\n{title}:\n{tail}", self.message);
        }
        self
    }
}

/// Text from the guest, fit to be shown: no control characters but newlines, at most `max` characters from its end.
pub(crate) fn guest_text(bytes: &[u8], max: usize) -> String {
    let clean: Vec<char> = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c != '\r')
        .map(|c| if c.is_control() && c != '\n' { '?' } else { c })
        .collect();
    let from = clean.len().saturating_sub(max);
    clean[from..].iter().collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_text_cannot_drive_a_terminal_and_has_an_end() {
        assert_eq!(guest_text(b"\x1b[2Jpanic\r\n", 100), "?[2Jpanic");
        assert_eq!(guest_text(b"0123456789", 4), "6789");
    }

    #[test]
    fn a_host_error_says_its_cause_and_keeps_it() {
        let error = PodError::host("cannot open /x", std::io::Error::from_raw_os_error(2));
        assert!(error.message.starts_with("cannot open /x: No such file"), "{}", error.message);
        assert!(std::error::Error::source(&error).is_some());
    }
}
