//! Why a request was not done, and the one table that makes a ttrpc code of it.

use std::{error::Error, fmt::Write};

use ttrpc::{Code, error::get_rpc_status};

/// An error as a source of another.
pub type Source = Box<dyn Error + Send + Sync>;

/// What failed with [`Refusal::NotRunnable`]: a container's first process.
pub const CREATE: &str = "create";
/// The same for a further process.
pub const EXEC: &str = "exec";

/// Why a request was not done. The host turns the code into one of containerd's.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such container or process, or it is over already.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0} exists already: delete it first, or use another id")]
    AlreadyExists(String),
    /// The request does not fit the state.
    #[error("{object} is {state}: {hint}")]
    WrongState {
        /// Which container or process.
        object: String,
        /// The state it is in.
        state: &'static str,
        /// What would be right.
        hint: &'static str,
    },
    /// The request itself is wrong.
    #[error("{what} cannot be used")]
    Invalid {
        /// Which part.
        what: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// This agent cannot do that.
    #[error("{what} is not offered")]
    Unsupported {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// The guest's kernel, or we, failed.
    #[error("cannot {what}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// A SIGKILL came before the process was its program.
    #[error("the process was killed before it ran")]
    KilledUnborn,
    /// The program to run is not there or cannot be run. Words and order are runc's: `kubectl`, Docker and scripts look for them.
    #[error("OCI runtime {act} failed: {}unable to start container process", if *act == EXEC { "exec failed: " } else { "" })]
    NotRunnable {
        /// [`CREATE`] or [`EXEC`].
        act: &'static str,
        /// What a shell would exit with: 127 for a missing program, 126 for one that cannot be executed.
        status: u32,
        /// Why.
        #[source]
        source: Source,
    },
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::WrongState { .. } | Self::KilledUnborn => Code::FAILED_PRECONDITION,
            Self::Invalid { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
            Self::Failed { .. } => Code::INTERNAL,
            Self::NotRunnable { .. } => Code::INVALID_ARGUMENT,
        }
    }

    /// The status of a process whose start was refused so.
    pub fn exit_status(&self) -> u32 {
        match self {
            Self::NotRunnable { status, .. } => *status,
            Self::KilledUnborn => crate::process::KILLED_STATUS,
            _ => crate::process::NEVER_RAN_STATUS,
        }
    }

    /// A failure of the kernel or of ours.
    pub fn failed(what: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Failed { what: what.into(), source: source.into() }
    }

    /// A wrong request.
    pub fn invalid(what: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::Invalid { what: what.into(), source: source.into() }
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        get_rpc_status(refusal.code(), with_sources(&refusal))
    }
}

/// The whole story in one line: each source once, as messages do not repeat their sources.
pub fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_hears_the_code_and_the_whole_story() {
        let refusal = Refusal::failed("make container c1", std::io::Error::other("no space"));
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(refusal) else { panic!("a status") };
        assert_eq!(status.code(), Code::INTERNAL);
        assert_eq!(status.message(), "cannot make container c1: no space");
    }

    #[test]
    fn a_missing_program_is_told_in_the_words_that_tools_know() {
        let refusal = |act| {
            let source = r#"exec: "nosuch": executable file not found in $PATH"#.into();
            with_sources(&Refusal::NotRunnable { act, status: 127, source })
        };
        assert_eq!(
            refusal(EXEC),
            r#"OCI runtime exec failed: exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH"#
        );
        assert!(refusal(CREATE).starts_with("OCI runtime create failed: unable to start container process: exec: "));
    }
}
