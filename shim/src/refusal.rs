//! What a request is answered with when it cannot be done: one table from [`ErrorKind`] to containerd's codes.

use std::fmt;

use pod::{ErrorKind, PodError};
use ttrpc::Code;

/// Longest message that is sent. Most quote what they refuse, which may be as long as the request; an answer that ttrpc cannot carry is none.
const MESSAGE_LEN_MAX: usize = 16 << 10;

/// A refused request: a code and one sentence, which `ctr` and the kubelet show as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Decides the code.
    pub kind: ErrorKind,
    /// Names the object, the cause and the next thing to try.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The same, which names the request's field that it is about first.
    #[must_use]
    pub fn about(self, field: &str) -> Self {
        Self { message: format!("{field}: {}", self.message), ..self }
    }

    /// The one that says an object is not here.
    pub fn not_found(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} does not exist"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<PodError> for Refusal {
    fn from(error: PodError) -> Self {
        let mut message = error.message;
        let mut cause = error.source.as_deref().map(|source| source as &dyn std::error::Error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Some messages of the libraries below already end with their cause.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self { kind: error.kind, message }
    }
}

impl From<Refusal> for ttrpc::Status {
    fn from(refusal: Refusal) -> Self {
        ttrpc::get_status(code(refusal.kind), within_limit(refusal.message))
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        Self::RpcStatus(refusal.into())
    }
}

fn within_limit(mut message: String) -> String {
    if message.len() > MESSAGE_LEN_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX));
        message.push_str("...");
    }
    message
}

/// The table: every kind of failure as gRPC names it (google/rpc/code.proto), which is what containerd reads.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NOT_FOUND,
        ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
        ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
        ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        ErrorKind::Unimplemented => Code::UNIMPLEMENTED,
        ErrorKind::Unavailable => Code::UNAVAILABLE,
        ErrorKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        ErrorKind::Internal => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_chain_of_causes_reaches_containerd() {
        let error = PodError {
            kind: ErrorKind::Unavailable,
            message: "cannot start the VMM".into(),
            source: Some(Box::new(std::io::Error::other("no such file"))),
        };
        let ttrpc::Error::RpcStatus(status) = Refusal::from(error).into() else { panic!("a status") };
        assert_eq!(status.code(), Code::UNAVAILABLE);
        assert_eq!(status.message(), "cannot start the VMM: no such file");
    }

    #[test]
    fn a_message_that_quotes_a_huge_value_is_still_an_answer() {
        let refusal = Refusal::new(ErrorKind::InvalidArgument, "hostname ".to_owned() + &"ä".repeat(1 << 20));
        let status = ttrpc::Status::from(refusal);
        assert!(status.message().starts_with("hostname ä") && status.message().ends_with("ä..."));
        assert!(status.message().len() <= MESSAGE_LEN_MAX + 3);
    }
}
