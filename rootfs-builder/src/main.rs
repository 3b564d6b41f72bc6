//! Command line: `rootfs-builder guest|oci|emulated-machine`.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use rootfs_builder::image::Recipe;
use rootfs_builder::{guest, image};

#[derive(Parser)]
#[command(about = "Builds the guest image, OCI archives for tests, and the emulated machine of the hw lane")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the guest image from a static agent; the same agent gives the same bytes
    Guest {
        /// The agent binary
        #[arg(long)]
        agent: PathBuf,
        /// The image to write
        #[arg(long)]
        out: PathBuf,
    },
    /// Build an OCI image archive from Debian's packages (cached by their versions)
    Oci {
        /// Which image
        #[arg(long)]
        from: Source,
        /// The archive to write
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    /// Dynamic busybox
    Busybox,
    /// Debian with Python 3.11
    Python,
}

impl From<Source> for Recipe {
    fn from(source: Source) -> Self {
        match source {
            Source::Busybox => Self::Busybox,
            Source::Python => Self::Python,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rootfs-builder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Guest { agent, out } => write_if_changed(&out, &guest::image(&agent)?)?,
        Verb::Oci { from, out } => {
            let archive = image::cached_archive(from.into())?;
            write_if_changed(
                &out,
                &std::fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Leaves a file alone that has these bytes already, so that what is built from it is not built again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let cannot = || format!("cannot write {}; check the folder", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(cannot)?;
    }
    let arriving = path.with_extension("part");
    std::fs::write(&arriving, bytes).with_context(cannot)?;
    std::fs::rename(&arriving, path).with_context(cannot)
}
