//! `kata-rs-vmm`: without arguments the machine process, see the library's text; `probe` tells what KVM this host has.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::process::main(std::env::args_os().skip(1))
}
