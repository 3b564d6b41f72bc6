//! `make bench`: what a pod costs, beside runc where runc has the same figure.
//!
//! Prints a table and writes `target/bench/bench.json`. Figures taken beside another runtime are taken in turn with it, so that
//! a machine that is slow for a while is slow for both. Times depend on the host; exits, bytes and memory do not.

mod boot;
mod figure;
mod idle;
mod memory;
mod runs;

use anyhow::{Context, bail};
use tests::{Containerd, prefix, requirement::Requirement};

fn main() -> anyhow::Result<()> {
    for requirement in [Requirement::Kvm, Requirement::Root, Requirement::Stage, Requirement::Program("containerd")] {
        if let Some(missing) = requirement.missing() {
            bail!("the benchmark needs {missing}");
        }
    }
    let mut figures = boot::figures()?;
    let containerd = Containerd::start();
    let image = containerd.import("busybox");
    figures.extend(runs::figures(&containerd, &image));
    let pod = runs::Background::start(&containerd, &image);
    figures.extend(memory::figures(&pod)?);
    figures.push(idle::figure(&pod));
    drop(pod);
    figures.iter().for_each(|figure| println!("{figure}"));
    write(&figures)
}

fn write(figures: &[figure::Figure]) -> anyhow::Result<()> {
    let folder = prefix::workspace().join("target/bench");
    std::fs::create_dir_all(&folder).context("cannot make target/bench")?;
    let file = folder.join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(figures)?).context("cannot write bench.json")?;
    println!("\nwritten to {}", file.display());
    Ok(())
}
