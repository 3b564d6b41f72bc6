//! A value and where it comes from, so that nobody has to guess which file or annotation won.

use std::{fmt, path::PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// What this host has.
    Host,
    /// A line of one of the operator's files.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// An annotation of the pod.
    Annotation(&'static str),
    /// A limit of the container, by its name in the OCI runtime specification.
    Limit(&'static str),
    /// A flag of the command.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Host => f.write_str("this host"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Annotation(name) => write!(f, "annotation {name}"),
            Self::Limit(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// What holds.
    pub value: T,
    /// Who says so.
    pub source: Source,
}

impl<T> Setting<T> {
    /// A value with its source.
    pub fn new(value: T, source: Source) -> Self {
        Self { value, source }
    }

    /// The value that holds when nobody says anything.
    pub(crate) fn default(value: T) -> Self {
        Self::new(value, Source::Default)
    }

    /// The same source, another value.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: change(self.value), source: self.source }
    }
}
