//! Why a plan cannot be made, and what a plan leaves out.

use crate::seccomp::SeccompError;

/// Why a container cannot be made from a specification.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A field the specification requires is not there.
    #[error("config.json has no `{field}`; a container cannot be made without it")]
    Missing {
        /// Its path in config.json.
        field: &'static str,
    },
    /// A field's value cannot be used.
    #[error("{field} is {value:?}: {hint}")]
    Invalid {
        /// Its path in config.json.
        field: String,
        /// What it holds.
        value: String,
        /// What to write in its place.
        hint: &'static str,
    },
    /// A limit that the machine cannot keep.
    #[error(
        "{field} of {value} bytes is more than the {has} that the pod's machine has, and a machine keeps its size: make the pod again with a larger limit"
    )]
    Beyond {
        /// Its path in config.json.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// What there is.
        has: u64,
    },
    /// A feature that is refused rather than ignored.
    #[error("{field}: {sentence}")]
    Unsupported {
        /// Its path in config.json.
        field: String,
        /// Why, and what to do.
        sentence: &'static str,
    },
    /// The seccomp profile cannot be turned into a filter.
    #[error("linux.seccomp cannot be turned into a filter; correct the profile or leave it out")]
    Seccomp(#[source] SeccompError),
}

/// Something asked for that the container goes without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Its path in config.json.
    pub field: String,
    /// Why it is left out.
    pub sentence: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.field, self.sentence)
    }
}
