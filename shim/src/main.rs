//! containerd-shim-kata-rs-v2: see the library for what it does.

use std::process::ExitCode;

use shim::arguments::{Action, Arguments};

fn main() -> ExitCode {
    let outcome = Arguments::parse(std::env::args().skip(1)).map_err(anyhow::Error::from).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this line to whoever asked for the container.
            eprintln!("containerd-shim-kata-rs-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.action {
        Action::Start => shim::start::run(&arguments)?,
        Action::Delete => shim::delete::run(&arguments)?,
        Action::Serve => shim::daemon::run(&arguments)?,
        Action::Info => shim::info::print()?,
        Action::Version => println!("containerd-shim-kata-rs-v2 {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(())
}
