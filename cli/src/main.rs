//! `kata-rs`: containers in machines of their own, from a terminal, with no daemon.
//!
//! A thin front of the `pod` library, as the shim is: what a pod is and how it comes and goes is decided there. Here is what only a
//! command has: images on disk ([`image`]), flags turned into an OCI spec ([`spec`]), the caller's terminal ([`terminal`]),
//! a network without CNI ([`network`]), whether this host is ready
//! ([`check`]), and what the operator's configuration comes to ([`env`]).

mod check;
mod env;
mod image;
mod network;
mod run;
mod scratch;
mod size;
mod spec;
mod stdio;
mod terminal;
mod timing;
mod user;

use clap::{Parser, Subcommand};

/// Containers in machines of their own: every pod has its own kernel.
#[derive(Parser)]
#[command(name = "kata-rs", version, about)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a container from an OCI archive, an OCI layout folder or a root filesystem folder
    Run(Box<run::Flags>),
    /// Say whether this host is ready, and what to do where it is not
    Check(check::Flags),
    /// Show the configuration that holds, and where each value comes from
    Env(env::Flags),
}

fn main() {
    let status = match Command::parse().verb {
        Verb::Run(flags) => run::main(&flags),
        Verb::Check(flags) => check::main(&flags),
        Verb::Env(flags) => env::main(&flags),
    };
    std::process::exit(status);
}
