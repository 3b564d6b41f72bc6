//! One promise of the contract, and what came of checking it.

use super::Subject;

/// Checks a promise; the error says what was expected and what came.
pub type Check = fn(&Subject) -> anyhow::Result<()>;

/// What a runtime does instead of what the others do.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Why it must, for the table.
    pub reason: &'static str,
    /// Asserts what it does.
    pub run: Check,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Case {
    /// The part of the contract.
    pub group: &'static str,
    /// The promise, as a sentence.
    pub name: &'static str,
    /// Checks it.
    pub run: Check,
    /// What a runtime with a machine per pod does instead.
    pub in_a_vm: Option<Difference>,
    /// What runc does instead, in the version of this host.
    pub in_runc: Option<Difference>,
}

impl Case {
    /// A promise that every runtime keeps.
    pub fn new(group: &'static str, name: &'static str, run: Check) -> Self {
        Self { group, name, run, in_a_vm: None, in_runc: None }
    }

    /// A container in a virtual machine must behave otherwise, and so it does.
    #[must_use]
    pub fn unlike_in_a_vm(mut self, reason: &'static str, run: Check) -> Self {
        self.in_a_vm = Some(Difference { reason, run });
        self
    }

    /// This host's runc behaves otherwise.
    #[must_use]
    pub fn unlike_in_runc(mut self, reason: &'static str, run: Check) -> Self {
        self.in_runc = Some(Difference { reason, run });
        self
    }

    /// What this runtime does instead, if it does.
    pub fn difference(&self, subject: &Subject) -> Option<Difference> {
        if subject.is_runc() { self.in_runc } else { self.in_a_vm }
    }

    /// What is run for this runtime.
    pub fn check(&self, subject: &Subject) -> Check {
        self.difference(subject).map_or(self.run, |difference| difference.run)
    }
}

/// How a runtime did in one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It keeps the promise.
    Passed,
    /// It does otherwise, as documented.
    Differs,
    /// It does neither.
    Failed(String),
}

/// A runtime's verdict in a case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The runtime.
    pub runtime: String,
    /// How it did.
    pub verdict: Verdict,
}
