//! The network of pods: how fast, at what cost, and what it adds to a start.

mod alone;
mod cpu;
mod iperf3;
mod setup;
mod speed;
mod traffic;

pub use self::traffic::{WORD, serve};
use crate::figure::Figure;

/// `net.*`.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let parts = [speed::figures, alone::figures, setup::figures];
    let figures = parts.into_iter().map(|part| part()).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(figures.into_iter().flatten().collect())
}
