//! One figure: several samples, and where there is one, a peer's beside it.

use std::fmt;

use serde::Serialize;

/// Median, extremes and number of samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub n: usize,
}

/// A peer's figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    pub who: &'static str,
    #[serde(flatten)]
    pub spread: Spread,
}

/// One line of the table, one object of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub ours: Spread,
    pub beside: Option<Beside>,
    /// Our median over the peer's.
    pub ratio: Option<f64>,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let median = if n % 2 == 1 { at(n / 2) } else { f64::midpoint(at((n / 2).wrapping_sub(1)), at(n / 2)) };
        Self { median, min: at(0), max: at(n.wrapping_sub(1)), n }
    }
}

impl Figure {
    /// Without a peer.
    pub fn alone(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        Self { name: name.into(), unit, ours: Spread::of(samples), beside: None, ratio: None }
    }

    /// With a peer measured in turn.
    pub fn beside(name: &str, unit: &'static str, samples: &[f64], who: &'static str, theirs: &[f64]) -> Self {
        let (ours, spread) = (Spread::of(samples), Spread::of(theirs));
        let ratio = Some(ours.median / spread.median);
        Self { name: name.to_owned(), unit, ours, beside: Some(Beside { who, spread }), ratio }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max, n } = &self.ours;
        write!(f, "{:<28} {median:>14.3} {:<6} ({min:.3} to {max:.3}, n={n})", self.name, self.unit)?;
        if let (Some(Beside { who, spread }), Some(ratio)) = (&self.beside, self.ratio) {
            write!(f, "   {who} {:.3}: ratio {ratio:.2}", spread.median)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0, n: 3 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn a_peer_gives_a_ratio() {
        let figure = Figure::beside("x", "s", &[2.0], "runc", &[0.5]);
        assert_eq!(figure.ratio, Some(4.0));
    }
}
