//! Command line: `rootfs-builder guest|oci|emulated-machine`.
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rootfs_builder::emulated::Run;
use rootfs_builder::image::Recipe;
use rootfs_builder::machine_image::{self, Addition};
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
    /// The machine with hardware KVM that the hw lane runs in, emulated by QEMU
    EmulatedMachine {
        #[command(subcommand)]
        verb: MachineVerb,
    },
}

#[derive(Subcommand)]
enum MachineVerb {
    /// Write kernel, initramfs and disks into a folder (Debian's part is cached)
    Build {
        /// The machine's folder
        #[arg(long)]
        out: PathBuf,
        /// A host file or folder and its place in the machine; may be repeated
        #[arg(long = "add", value_name = "HOST=PLACE", value_parser = addition)]
        additions: Vec<Addition>,
    },
    /// Boot the machine, run a command, pass on its output and exit status
    Run {
        /// The machine's folder
        #[arg(long)]
        dir: PathBuf,
        /// A host folder, read-only at /share
        #[arg(long)]
        share: Option<PathBuf>,
        /// A host folder, writable at /out
        #[arg(long)]
        out: Option<PathBuf>,
        /// Added to the command's environment; may be repeated
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// Memory in MiB
        #[arg(long, default_value_t = 2048)]
        memory: u32,
        /// Virtual processors
        #[arg(long, default_value_t = 2)]
        cpus: u32,
        /// Seconds after which the machine is stopped
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    /// Dynamic busybox
    Busybox,
    /// Debian with Python 3.11
    Python,
    /// The pause program of a pod
    Pause,
}

impl From<Source> for Recipe {
    fn from(source: Source) -> Self {
        match source {
            Source::Busybox => Self::Busybox,
            Source::Python => Self::Python,
            Source::Pause => Self::Pause,
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
        Verb::EmulatedMachine { verb } => return machine(verb),
    }
    Ok(ExitCode::SUCCESS)
}

fn machine(verb: MachineVerb) -> anyhow::Result<ExitCode> {
    match verb {
        MachineVerb::Build { out, additions } => {
            machine_image::build(&out, &additions)?;
            Ok(ExitCode::SUCCESS)
        }
        MachineVerb::Run { dir, share, out, env, memory, cpus, timeout, command } => {
            let timeout = Duration::from_secs(timeout);
            let run = Run { machine: dir, memory_mib: memory, cpus, share, out, env, command, timeout };
            let signals = stop_signals().context("cannot prepare for Ctrl-C")?;
            Ok(ExitCode::from(run.execute(Some(signals.as_fd()))?))
        }
    }
}

/// SIGINT and SIGTERM as a descriptor, so that a run cleans up behind itself before it ends.
fn stop_signals() -> nix::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}

fn addition(text: &str) -> Result<Addition, String> {
    let (host, place) = text.split_once('=').ok_or("give HOST=PLACE")?;
    Ok(Addition { host: host.into(), place: place.to_owned() })
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
