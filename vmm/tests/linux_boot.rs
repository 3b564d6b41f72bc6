//! The real VMM process with a real guest kernel. Needs KVM of either kind, the guest kernel, and mkfs.erofs.
//!
//! The guest's init is this very test binary, see `rig/linux.rs`.

mod rig;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command},
};

use command_fds::{CommandFdExt, FdMapping};
use rig::{
    Machine, Wanted, flavour,
    linux::{HELLO, as_init, booted, order, wanted},
};
use vmm_control::{Ending, Flavour, FromMachine, ToMachine};

/// Process 1 of the guest. Named on the kernel command line; ignored when the tests run.
#[test]
#[ignore = "runs in the guest"]
fn as_guest_init() {
    as_init(|order| match order {
        "panic" => std::process::exit(7),
        "memory" => proc_line("/proc/meminfo", "MemTotal:"),
        "processors" => std::thread::available_parallelism().map_or(0, usize::from).to_string(),
        "share" => read_share(),
        other => format!("no such order: {other}"),
    });
}

/// The line of a file in /proc that contains `word`.
fn proc_line(path: &str, word: &str) -> String {
    let flags = rustix::mount::MountFlags::empty();
    // Mounted already at the second order.
    let _ = rustix::mount::mount("proc", "/proc", "proc", flags, None);
    let text = std::fs::read_to_string(path).expect("a readable file");
    text.lines().find(|line| line.contains(word)).unwrap_or("nothing").to_owned()
}

/// What the share's file says; leaves a file of its own beside it.
fn read_share() -> String {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tests", "/share", "virtiofs", flags, None).expect("the tag is there");
    std::fs::write("/share/from-guest", "greetings from the guest").expect("a writable share");
    std::fs::read_to_string("/share/from-host").expect("a readable share")
}

#[test]
fn the_guest_calls_and_the_report_tells_how_it_came_there() {
    let Some((kvm, wanted)) = wanted("the_guest_calls_and_the_report_tells_how_it_came_there") else { return };
    let mut machine = booted(kvm, wanted);
    let report = machine.report();
    let names: Vec<_> = report.marks.iter().map(|mark| mark.name.as_str()).collect();
    for name in ["vcpus run", "console driver ok", "blk0 driver ok", "vsock driver ok", "agent call"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!(names.last(), Some(&"agent call"));
    let exits = &report.exits_at_call;
    assert!(exits["mmio_write"] > 10 && exits["acknowledged"] > 1, "{exits:?}");
    assert_eq!(exits.get("mmio_read"), None, "registers are memory: {exits:?}");
    assert!(report.kernel_bytes > 1 << 20);
    assert!(report.disk_bytes_read[0] > 0);
    assert!(report.memory_touched_bytes > report.kernel_bytes && report.memory_touched_bytes < 128 << 20);
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
    assert!(machine.exit().success());
}

/// A file server over this folder, as `make build` stages it, and a socket connected to it; or a skip.
fn file_server(test: &str, folder: &Path) -> Option<(Child, UnixStream)> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/stage/libexec/kata-rs/virtiofsd");
    if !program.exists() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs virtiofsd; in CI a skip is a failure");
        eprintln!("SKIPPED {test}: needs virtiofsd (make build)");
        return None;
    }
    let socket = folder.with_extension("sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mut command = Command::new(program);
    command.args(["--fd=3", "--sandbox=none", "--log-level=error", "--shared-dir"]).arg(folder);
    let mapping = FdMapping { parent_fd: listener.into(), child_fd: 3 };
    let server = command.fd_mappings(vec![mapping]).expect("one").spawn().expect("it starts");
    Some((server, UnixStream::connect(socket).expect("it listens")))
}

#[test]
fn a_share_is_readable_and_writable_and_the_machine_ends_with_its_server() {
    let test = "a_share_is_readable_and_writable_and_the_machine_ends_with_its_server";
    let Some((kvm, wanted)) = wanted(test) else { return };
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("shared");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("from-host"), "greetings from the host").expect("written");
    let Some((mut server, stream)) = file_server(test, &folder) else { return };
    let mut machine = booted(kvm, Wanted { share: Some(("tests".to_owned(), stream)), ..wanted });
    assert_eq!(order(&machine.call, "share"), "greetings from the host");
    let theirs = std::fs::read_to_string(folder.join("from-guest")).expect("the guest wrote it");
    assert_eq!(theirs, "greetings from the guest");
    server.kill().expect("our child");
    server.wait().expect("our child");
    let FromMachine::Ended(Ending::DeviceFault { device, message }) = machine.receive() else {
        panic!("the machine should end with its file server")
    };
    assert_eq!(device, "fs0");
    assert!(message.contains("share tests"), "{message}");
}

#[test]
fn a_guest_that_restarts_ends_its_machine() {
    let Some((kvm, wanted)) = wanted("a_guest_that_restarts_ends_its_machine") else { return };
    let mut machine = booted(kvm, wanted);
    machine.call.write_all(b"reset\n").expect("the guest reads");
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::GuestReset));
    assert!(machine.exit().success());
}

#[test]
fn a_panic_ends_the_machine_and_its_last_words_come_out() {
    let Some((kvm, wanted)) = wanted("a_panic_ends_the_machine_and_its_last_words_come_out") else { return };
    let mut machine = booted(kvm, wanted);
    machine.call.write_all(b"panic\n").expect("the guest reads");
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::GuestReset));
    let console = machine.console_text();
    assert!(console.contains("Kernel panic - not syncing: Attempted to kill init!"), "{console}");
}

#[test]
fn a_machine_without_an_image_says_what_it_misses() {
    let test = "a_machine_without_an_image_says_what_it_misses";
    let Some((kvm, wanted)) = wanted(test) else { return };
    let mut machine = Machine::boot(kvm, Wanted { image: None, ..wanted });
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::GuestReset));
    let console = machine.console_text();
    assert!(console.contains("Unable to mount root fs"), "{console}");
}

#[test]
fn the_launchers_hang_up_ends_a_busy_machine() {
    let Some((kvm, wanted)) = wanted("the_launchers_hang_up_ends_a_busy_machine") else { return };
    let mut machine = Machine::boot(kvm, wanted);
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    machine.control.shutdown(std::net::Shutdown::Both).expect("connected");
    assert!(machine.exit().success());
}

#[test]
fn a_stop_in_the_middle_of_the_boot_is_obeyed() {
    let Some((kvm, wanted)) = wanted("a_stop_in_the_middle_of_the_boot_is_obeyed") else { return };
    let mut machine = Machine::boot(kvm, wanted);
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
}

#[test]
fn the_guest_has_the_memory_that_was_asked_for() {
    let test = "the_guest_has_the_memory_that_was_asked_for";
    // The smallest machine, and one with memory on both sides of the hole.
    for memory_mib in [vmm_control::MEMORY_MIB_MIN, 5000] {
        let Some((kvm, wanted)) = wanted(test) else { return };
        let machine = booted(kvm, Wanted { memory_mib, ..wanted });
        let line = order(&machine.call, "memory");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
        // The kernel keeps itself, a description of each page (1.6%) and tables that grow with memory.
        let asked_kib = u64::from(memory_mib) << 10;
        assert!(kib < asked_kib && kib + asked_kib / 20 + (24 << 10) > asked_kib, "{line} of {memory_mib} MiB");
    }
}

#[test]
fn the_guest_has_the_processors_that_the_host_can_give() {
    let Some((kvm, wanted)) = wanted("the_guest_has_the_processors_that_the_host_can_give") else { return };
    let expected = if flavour() == Flavour::Pvm { 1 } else { 2 };
    let mut machine = booted(kvm, Wanted { vcpus: 2, ..wanted });
    assert_eq!(machine.report().vcpus, expected);
    assert_eq!(order(&machine.call, "processors"), expected.to_string());
}

#[test]
fn machines_that_share_an_open_kernel_file_do_not_disturb_each_other() {
    let test = "machines_that_share_an_open_kernel_file_do_not_disturb_each_other";
    let (Some((first_kvm, first)), Some((second_kvm, second))) = (wanted(test), wanted(test)) else { return };
    let shared = Wanted { kernel: first.kernel.try_clone().expect("a descriptor"), ..second };
    let (mut one, mut two) = (Machine::boot(first_kvm, first), Machine::boot(second_kvm, shared));
    for machine in [&mut one, &mut two] {
        assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
        let mut hello = [0; HELLO.len()];
        machine.call.read_exact(&mut hello).expect("the guest calls");
    }
}

#[test]
fn a_kernel_cut_in_half_is_refused_before_a_vcpu_runs() {
    let Some((kvm, wanted)) = wanted("a_kernel_cut_in_half_is_refused_before_a_vcpu_runs") else { return };
    let mut bytes = Vec::new();
    (&wanted.kernel).read_to_end(&mut bytes).expect("readable");
    bytes.truncate(bytes.len() / 2);
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&bytes));
    let FromMachine::Failed(failure) = machine.receive() else { panic!("half a kernel does not boot") };
    assert!(failure.message.contains("cut short"), "{}", failure.message);
}
