//! Boots one machine by hand and prints its waterfall:
//! `cargo run --release -p vmm --example boot -- KERNEL [IMAGE] [MEMORY_MIB] [VCPUS] [EXTRA WORDS]`
//!
//! The guest's console goes to standard output. Standard input goes to the agent's call; its end stops the machine. With
//! `KATA_RS_BOOT_ONCE` set the machine is stopped right after the call.

use std::{
    error::Error,
    fs::File,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
};

use command_fds::{CommandFdExt, FdMapping};
use vmm_control::{
    CONTROL_FD, ConsoleSpec, DiskSpec, Flavour, FromMachine, GuestCall, KernelSpec, MachineSpec, Report, SPAWNED_ENV,
    ToMachine, VsockSpec, frame,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let kernel = words.next().ok_or("usage: boot KERNEL [IMAGE] [MEMORY_MIB] [VCPUS] [EXTRA WORDS]")?;
    let image = words.next().filter(|path| path != "-");
    let memory_mib = words.next().map_or(Ok(128), |word| word.parse())?;
    let vcpus = words.next().map_or(Ok(1), |word| word.parse())?;
    let extra_cmdline = words.collect::<Vec<_>>().join(" ");

    let folder = tempfile::tempdir()?;
    let (mut control, their_control) = UnixStream::pair()?;
    let (mut call, their_call) = UnixStream::pair()?;
    let listener = UnixListener::bind(folder.path().join("hybrid.sock"))?;
    let console = std::io::pipe()?;
    let mut files: Vec<OwnedFd> = vec![
        their_control.into(),
        File::options().read(true).write(true).open("/dev/kvm")?.into(),
        File::open(&kernel)?.into(),
        File::open(&kernel)?.into(),
        listener.into(),
        their_call.into(),
        console.1.into(),
    ];
    let mut disks = Vec::new();
    if let Some(image) = image {
        disks.push(DiskSpec { file: CONTROL_FD + files.len() as i32, read_only: true, serial: "guest-image".into() });
        files.push(File::open(image)?.into());
    }
    let spec = MachineSpec {
        kvm: 4,
        vcpus,
        memory_mib,
        kernels: vec![KernelSpec { flavour: Flavour::Hw, file: 5 }, KernelSpec { flavour: Flavour::Pvm, file: 6 }],
        extra_cmdline,
        disks,
        vsock: VsockSpec { cid: 3, hybrid: 7, calls: vec![GuestCall { port: 1024, stream: 8 }] },
        shares: Vec::new(),
        networks: Vec::new(),
        network_places: 0,
        console: ConsoleSpec { output: 9 },
    };
    std::thread::spawn(move || std::io::copy(&mut { console.0 }, &mut std::io::stdout()));
    let mappings = (CONTROL_FD..).zip(files).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    let binary =
        std::env::var_os("KATA_RS_VMM").unwrap_or_else(|| "target/x86_64-unknown-linux-gnu/release/kata-rs-vmm".into());
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    let mut command = Command::new(binary);
    let child = command.env(SPAWNED_ENV, now.to_string()).fd_mappings(mappings.collect())?.spawn();
    // The parent's copies of the descriptors are in the command: with it goes what would keep the console open.
    drop(command);
    let mut child = child?;
    frame::write(&mut control, &ToMachine::Boot(Box::new(spec)))?;
    println!("{:?}", frame::read::<FromMachine>(&mut control)?);

    let mut hello = [0; 256];
    let len = call.read(&mut hello)?;
    print!("agent: {}", String::from_utf8_lossy(&hello[..len]));
    frame::write(&mut control, &ToMachine::Report)?;
    if let FromMachine::Report(report) = frame::read(&mut control)? {
        print_report(&report);
        println!("pss without guest memory: {} KiB", pss_kib(child.id())?);
    }
    if std::env::var_os("KATA_RS_BOOT_ONCE").is_none() {
        let mut input = call.try_clone()?;
        std::thread::spawn(move || std::io::copy(&mut call, &mut std::io::stdout()));
        std::io::copy(&mut std::io::stdin(), &mut input)?;
        input.flush()?;
    }
    frame::write(&mut control, &ToMachine::Stop)?;
    println!("{:?}", frame::read::<FromMachine>(&mut control)?);
    println!("{}", child.wait()?);
    Ok(())
}

fn print_report(report: &Report) {
    let first = report.marks.first().map_or(0, |mark| mark.monotonic_nanos);
    for mark in &report.marks {
        println!("{:9.3} ms  {}", (mark.monotonic_nanos - first) as f64 / 1e6, mark.name);
    }
    println!("exits at call: {:?}", report.exits_at_call);
    println!("kernel bytes: {}, disk bytes: {:?}", report.kernel_bytes, report.disk_bytes_read);
    println!("memory touched: {} KiB", report.memory_touched_bytes >> 10);
}

/// Proportional share of all mappings but the guest's memory.
fn pss_kib(process: u32) -> Result<u64, Box<dyn Error>> {
    let mut total = 0;
    let mut is_guest = false;
    for line in std::fs::read_to_string(format!("/proc/{process}/smaps"))?.lines() {
        if line.split_whitespace().next().is_some_and(|word| word.contains('-') && !word.ends_with(':')) {
            is_guest = line.contains("memfd:guest-memory");
        }
        if let Some(rest) = line.strip_prefix("Pss:") {
            total += if is_guest { 0 } else { rest.trim().trim_end_matches(" kB").parse()? };
        }
    }
    Ok(total)
}
