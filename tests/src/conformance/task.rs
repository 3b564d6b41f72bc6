//! The Task service, call by call: what containerd's task layer may expect of a shim.

mod events;
mod lifecycle;
mod refusals;

use super::Case;

/// Every case of the Task service.
pub fn cases() -> Vec<Case> {
    [lifecycle::cases(), events::cases(), refusals::cases()].into_iter().flatten().collect()
}

/// Fails with both values unless they are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> anyhow::Result<()> {
    anyhow::ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
    Ok(())
}
