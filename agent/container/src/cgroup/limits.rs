//! Limits as what they are in cgroup v2: values written to files, in an order.

use serde::{Deserialize, Serialize};

/// What to do when the guest's kernel has no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IfAbsent {
    /// The limit was asked for and cannot be had.
    Fail,
    /// Without the file there is nothing to limit.
    Skip,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitWrite {
    /// File in the cgroup's directory.
    pub file: String,
    /// What is written.
    pub value: String,
    /// Whether the file must be there.
    pub if_absent: IfAbsent,
}

/// Limits of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    writes: Vec<LimitWrite>,
}

impl Limits {
    /// Adds a limit that must be met.
    pub fn must(&mut self, file: &str, value: String) {
        self.write(file, value, IfAbsent::Fail);
    }

    /// Adds a limit.
    pub fn write(&mut self, file: &str, value: String, if_absent: IfAbsent) {
        self.writes.push(LimitWrite { file: file.to_owned(), value, if_absent });
    }

    /// All of them, in order.
    pub fn writes(&self) -> &[LimitWrite] {
        &self.writes
    }
}
