//! The process from its first instruction to its exit code.

use std::{ffi::OsString, process::ExitCode};

use vmm_control::{FromMachine, SPAWNED_ENV, ToMachine, frame::FrameError};

use crate::{boot, control::Control, diary, harden, marks::Marks, probe, sys};

const USAGE: &str = "kata-rs-vmm is started by its launcher, with the control socket at descriptor 3.\n\
    usage: kata-rs-vmm           run one machine\n       \
    kata-rs-vmm probe     print what KVM this host has, as JSON\n       \
    kata-rs-vmm --version";

/// Runs what the arguments say.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let first = arguments.next();
    match first.as_ref().map(|word| word.to_string_lossy()).as_deref() {
        None => run(),
        Some("probe") => print_probe(),
        Some("--version" | "version") => {
            println!("kata-rs-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(_) => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn print_probe() -> ExitCode {
    match probe::host() {
        Ok(probe) => {
            println!("{}", serde_json::to_string(&probe).expect("plain data"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kata-rs-vmm: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// One machine. The launcher's hang-up, at any moment, is an orderly end.
fn run() -> ExitCode {
    let marks = Marks::new(std::env::var(SPAWNED_ENV).ok().and_then(|nanos| nanos.parse().ok()));
    diary::install();
    sys::share_heap();
    if let Err(error) = harden::process() {
        eprintln!("kata-rs-vmm: {}", chain(&error));
        return ExitCode::FAILURE;
    }
    let mut control = match Control::inherited() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("kata-rs-vmm: {}\n{USAGE}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let served = serve(&mut control, marks);
    // Closed by the kernel, with the process: whoever sees the hang-up sees a process that has its exit code.
    std::mem::forget(control);
    match served {
        Ok(code) => code,
        Err(FrameError::Closed) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(control: &mut Control, marks: Marks) -> Result<ExitCode, FrameError> {
    let spec = match control.receive()? {
        ToMachine::Boot(spec) => spec,
        ToMachine::Report | ToMachine::Stop | ToMachine::AttachNetwork { .. } | ToMachine::DetachNetwork { .. } => {
            return Ok(ExitCode::SUCCESS);
        }
    };
    marks.note("spec received");
    let machine = match boot::boot(&spec, sys::Inherited::besides(control), marks) {
        Ok(machine) => machine,
        Err(error) => {
            log::error!("{}", chain(&error));
            control.send(&FromMachine::Failed(error.failure()))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    control.send(&machine.booting())?;
    let ending = machine.run(control)?;
    control.send(&FromMachine::Ended(ending))?;
    Ok(ExitCode::SUCCESS)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
