//! `make bench`: what a pod costs, beside runc where runc has the same figure.
//!
//! Prints a table and writes `target/bench/bench.json`. Figures taken beside another runtime are taken in turn with it, so that
//! a machine that is slow for a while is slow for both. Times depend on the host; exits, bytes and memory do not.

mod boot;
mod figure;
mod idle;
mod memory;
mod network;
mod pods;
mod runs;

use anyhow::{Context, bail};
use tests::{Containerd, prefix, requirement::Requirement};

fn main() -> anyhow::Result<()> {
    // As the other end of a pod's traffic, it runs in a guest.
    if std::env::args().nth(1).as_deref() == Some(network::WORD) {
        return network::serve();
    }
    let programs = ["containerd", "iperf3"].map(Requirement::Program);
    for requirement in [Requirement::Kvm, Requirement::Root, Requirement::Stage].into_iter().chain(programs) {
        if let Some(missing) = requirement.missing() {
            bail!("the benchmark needs {missing}");
        }
    }
    // `bench cri` takes one part alone, and leaves the file of a whole run as it is.
    let part = std::env::args().nth(1);
    let mut figures = Vec::new();
    for (name, take) in PARTS {
        if part.as_deref().is_none_or(|part| part == name) {
            figures.extend(take()?);
        }
    }
    figures.iter().for_each(|figure| println!("{figure}"));
    if part.is_none() { write(&figures) } else { Ok(()) }
}

/// Takes the figures of one part.
type Take = fn() -> anyhow::Result<Vec<figure::Figure>>;

const PARTS: [(&str, Take); 4] =
    [("boot", boot::figures), ("ctr", through_ctr), ("cri", pods::figures), ("net", network::figures)];

fn through_ctr() -> anyhow::Result<Vec<figure::Figure>> {
    let containerd = Containerd::start();
    let image = containerd.import("busybox");
    let mut figures = runs::figures(&containerd, &image);
    let pod = runs::Background::start(&containerd, &image);
    figures.extend(memory::figures(&pod)?);
    Ok(figures)
}

fn write(figures: &[figure::Figure]) -> anyhow::Result<()> {
    let folder = prefix::workspace().join("target/bench");
    std::fs::create_dir_all(&folder).context("cannot make target/bench")?;
    let file = folder.join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(figures)?).context("cannot write bench.json")?;
    println!("\nwritten to {}", file.display());
    Ok(())
}
