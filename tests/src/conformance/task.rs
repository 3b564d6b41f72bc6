//! The Task service, call by call: what containerd's task layer may expect of a shim.

mod events;
mod figures;
mod lifecycle;
mod protocol;
mod races;
mod refusals;
mod stdio;
mod unrunnable;

use super::Case;

/// Every case of the shim and its Task service.
pub fn cases() -> Vec<Case> {
    let lists = [
        protocol::cases(),
        lifecycle::cases(),
        events::cases(),
        refusals::cases(),
        unrunnable::cases(),
        races::cases(),
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
