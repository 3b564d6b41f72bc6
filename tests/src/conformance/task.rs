//! The Task service, call by call: what containerd's task layer may expect of a shim.

mod events;
mod figures;
mod hooks;
mod lifecycle;
mod malformed;
mod network;
mod protocol;
mod races;
mod refusals;
mod stdio;
mod unrunnable;

use super::Case;

/// Why codes of this host's runc are others.
const UNKNOWN: &str = "containerd 1.6's shim refuses it with UNKNOWN";

/// A case whose code is the contract's, though this host's runc has none of its own for it.
macro_rules! coded {
    ($name:expr, $run:ident, $code:expr) => {
        Case::new(GROUP, $name, |subject| $run(subject, $code))
            .unlike_in_runc(super::UNKNOWN, |subject| $run(subject, Code::UNKNOWN))
    };
}
use coded;

/// Every case of the shim and its Task service.
pub fn cases() -> Vec<Case> {
    let lists = [
        protocol::cases(),
        lifecycle::cases(),
        events::cases(),
        refusals::cases(),
        unrunnable::cases(),
        malformed::cases(),
        races::cases(),
        network::cases(),
        hooks::cases(),
        stdio::cases(),
        figures::cases(),
    ];
    lists.into_iter().flatten().collect()
}

/// Fails with both values unless they are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> anyhow::Result<()> {
    anyhow::ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
    Ok(())
}
