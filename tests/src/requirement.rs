//! What a test needs of its host.

use std::path::Path;

use crate::prefix;

/// One thing a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// /dev/kvm, readable and writable.
    Kvm,
    /// Effective uid 0.
    Root,
    /// A program on PATH, from a package.
    Program(&'static str),
    /// `make build` has staged binaries, kernels and images.
    Stage,
    /// `make machine` has built the emulated machine.
    Machine,
}

impl Requirement {
    /// What is missing, as a sentence.
    pub fn missing(self) -> Option<String> {
        let missing = match self {
            Self::Kvm => {
                rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err()
            }
            Self::Root => !rustix::process::geteuid().is_root(),
            Self::Program(name) => !on_path(name),
            Self::Machine => !prefix::machine().is_dir(),
            Self::Stage => !prefix::path().join("share/kata-rs/guest.erofs").is_file(),
        };
        missing.then(|| format!("{self:?} (see README, \"Tests\")"))
    }
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// True when all is there. Otherwise prints what is missing; in CI that is a failure.
pub fn have(test: &str, wanted: &[Requirement]) -> bool {
    let missing: Vec<_> = wanted.iter().filter_map(|r| r.missing()).collect();
    if missing.is_empty() {
        return true;
    }
    let sentence = format!("SKIPPED {test}: needs {}", missing.join(", "));
    assert!(std::env::var_os("CI").is_none(), "{sentence}; in CI a skip is a failure");
    eprintln!("{sentence}");
    false
}

/// Returns from the test unless everything is there.
#[macro_export]
macro_rules! needs {
    ($($requirement:expr),+ $(,)?) => {{
        use $crate::requirement::Requirement::*;
        if !$crate::requirement::have(module_path!(), &[$($requirement),+]) {
            return;
        }
    }};
}

/// Is this the emulated machine, where everything takes seconds? Counts are lower there.
pub fn emulated() -> bool {
    std::env::var_os("KATA_RS_EMULATED").is_some() || Path::new("/etc/kata-rs-emulated").exists()
}

/// A count that a run by hand may raise.
///
/// # Panics
/// The variable is no number.
pub fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
