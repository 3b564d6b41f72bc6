//! The real VMM process with a guest of a few instructions. Needs KVM, of either kind, and no kernel.

mod rig;

use std::{io::Read, os::unix::process::ExitStatusExt};

use rig::{Machine, Wanted, elf, kvm};
use vmm_control::{Ending, FromMachine, KvmKind, ToMachine};

/// Prints the text that follows it to port 0x3f8, then asks for a reset by port 0x64.
const PRINT_AND_RESET: [u8; 26] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x48, 0x8d, 0x35, 0x0f, 0, 0, 0,    // lea rsi, [rip + 15]: behind the last instruction
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz end
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xb0, 0xfe, // end: mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
];

/// Prints a line end, then writes to a port where nothing is, for ever: a guest that is alive.
const SPIN: [u8; 11] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'\n', // mov al, newline
    0xee,  // out dx, al
    0xe6, 0x60, // again: out 0x60, al
    0xeb, 0xfc, // jmp again
];

/// Loads an empty table of interrupt handlers and raises an invalid opcode: no handler, no handler for that, triple fault.
const TRIPLE_FAULT: [u8; 10] = [
    0x6a, 0, 0x6a, 0, // push 0; push 0
    0x0f, 0x01, 0x1c, 0x24, // lidt [rsp]
    0x0f, 0x0b, // ud2
];

/// Maps the devices' registers, writes to the first one's magic value in two ways, acknowledges used buffers and then all, prints the magic value, reads the
/// interrupt status a thousand times, prints a line end, and spins.
const READ_REGISTERS: [u8; 94] = [
    0x48, 0xb8, 0x83, 0, 0, 0xd0, 0, 0, 0, 0, // mov rax, 0xd0000083: a large page of the registers
    0x48, 0x89, 0x04, 0x25, 0, 0x04, 0x30, 0, // mov [0x300400], rax: entry 128 of a new table
    0x48, 0xb8, 0x03, 0, 0x30, 0, 0, 0, 0, 0, // mov rax, 0x300003: that table
    0x48, 0x89, 0x04, 0x25, 0x18, 0xa0, 0, 0, // mov [0xa018], rax: for the fourth GiB
    0xbb, 0, 0, 0, 0xd0, // mov ebx, 0xd0000000
    0xc7, 0x03, 0, 0, 0, 0, // mov dword [rbx], 0
    0xf0, 0x83, 0x0b, 0x7f, // lock or dword [rbx], 0x7f
    0xc7, 0x43, 0x64, 1, 0, 0, 0, // mov dword [rbx + 0x64], 1
    0xc7, 0x43, 0x64, 3, 0, 0, 0, // mov dword [rbx + 0x64], 3
    0x8b, 0x0b, // mov ecx, [rbx]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x88, 0xc8, 0xee, // next: mov al, cl; out dx, al
    0xc1, 0xe9, 0x08, // shr ecx, 8
    0x75, 0xf8, // jnz next
    0xb9, 0xe8, 0x03, 0, 0, // mov ecx, 1000
    0x8b, 0x43, 0x60, // again: mov eax, [rbx + 0x60]
    0xe2, 0xfb, // loop again
    0xb0, b'\n', 0xee, // mov al, newline; out dx, al
    0xeb, 0xfe, // spin: jmp spin
];

#[test]
fn registers_are_read_without_an_exit_and_what_is_read_only_stays() {
    let Some(kvm) = kvm("registers_are_read_without_an_exit_and_what_is_read_only_stays") else { return };
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&elf(&READ_REGISTERS)));
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    let mut printed = [0; 5];
    machine.console.read_exact(&mut printed).expect("the guest lives");
    assert_eq!(printed, *b"virt\n");
    let exits = machine.report().exits;
    let count = |reason| exits.get(reason).copied().unwrap_or(0);
    // What acknowledges used buffers alone KVM answers by itself.
    assert_eq!(["mmio_read", "mmio_write", "acknowledged"].map(count), [0, 3, 1], "{exits:?}");
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
}

fn printing(text: &str) -> Vec<u8> {
    elf(&[&PRINT_AND_RESET[..], text.as_bytes(), &[0]].concat())
}

#[test]
fn a_guest_prints_and_resets_and_that_is_its_end() {
    let Some(kvm) = kvm("a_guest_prints_and_resets_and_that_is_its_end") else { return };
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&printing("hello\nlast words")));
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::GuestReset));
    assert_eq!(machine.console_text(), "hello\nlast words");
    assert!(machine.exit().success());
}

#[test]
fn the_report_tells_of_the_boot_and_stop_ends_the_machine() {
    let Some(kvm) = kvm("the_report_tells_of_the_boot_and_stop_ends_the_machine") else { return };
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&elf(&SPIN)));
    let FromMachine::Booting { kvm, .. } = machine.receive() else { panic!("it boots") };
    machine.console.read_exact(&mut [0]).expect("the guest lives");
    let (first, second) = (machine.report(), machine.report());
    assert!(first.exits["io_out"] >= 1);
    assert!(second.exits["io_out"] >= first.exits["io_out"]);
    let names: Vec<_> = first.marks.iter().map(|mark| mark.name.as_str()).collect();
    let expected =
        ["vmm start", "spec received", "kvm ready", "memory ready", "kernel loaded", "devices ready", "vcpus run"];
    assert_eq!(names, expected);
    assert!(first.marks.is_sorted_by_key(|mark| mark.monotonic_nanos));
    assert_eq!((first.kernel_bytes, first.vcpus), (11, 1));
    // Software KVM has what every Linux touches mapped ahead, whatever the kernel is.
    let ahead = if kvm == KvmKind::Pvm { 20 << 20 } else { 0 };
    let touched = first.memory_touched_bytes;
    assert!(touched < ahead + (1 << 20), "{touched} bytes touched by 11 of kernel");
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
    assert!(machine.exit().success());
}

#[test]
fn a_machine_does_not_outlive_its_launcher() {
    let Some(kvm) = kvm("a_machine_does_not_outlive_its_launcher") else { return };
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&elf(&SPIN)));
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    machine.control.shutdown(std::net::Shutdown::Both).expect("connected");
    assert_eq!(machine.exit().code(), Some(0));
}

#[test]
fn a_descriptor_that_the_spec_does_not_name_is_closed() {
    let Some(kvm) = kvm("a_descriptor_that_the_spec_does_not_name_is_closed") else { return };
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let wanted = Wanted { leak: Some(writer.into()), ..Wanted::kernel_bytes(&elf(&SPIN)) };
    let mut machine = Machine::boot(kvm, wanted);
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    // The end of the pipe comes when its last writer is closed; the machine runs on.
    assert_eq!(reader.read(&mut [0]).expect("a pipe"), 0);
    assert_eq!(machine.report().vcpus, 1);
}

#[test]
fn a_launcher_that_goes_before_it_says_anything_leaves_no_process() {
    let Some(kvm) = kvm("a_launcher_that_goes_before_it_says_anything_leaves_no_process") else { return };
    let mut machine = Machine::spawn(kvm, Wanted::kernel_bytes(&[]));
    machine.control.shutdown(std::net::Shutdown::Both).expect("connected");
    assert_eq!(machine.exit().signal(), None);
}

#[test]
fn a_guest_without_handlers_ends_in_a_fault_and_not_in_silence() {
    let Some(kvm) = kvm("a_guest_without_handlers_ends_in_a_fault_and_not_in_silence") else { return };
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&elf(&TRIPLE_FAULT)));
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    match machine.receive() {
        FromMachine::Ended(Ending::TripleFault) => {}
        // Software KVM may give up on interpreting what hardware runs into.
        FromMachine::Ended(Ending::VcpuFault { message, .. }) => assert!(message.contains("rip 0x10000"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(machine.exit().success());
}

/// What the launcher is told about a machine that cannot be built, as (step, message).
fn failure(test: &str, wanted: Wanted, change: impl FnOnce(&mut Machine)) -> Option<(String, String)> {
    let mut machine = Machine::spawn(kvm(test)?, wanted);
    change(&mut machine);
    let spec = machine.spec.clone();
    machine.send(&ToMachine::Boot(Box::new(spec)));
    let FromMachine::Failed(failure) = machine.receive() else { panic!("{test}: it should not boot") };
    assert_eq!(machine.exit().code(), Some(1));
    Some((failure.step, failure.message))
}

#[test]
fn each_kind_of_broken_kernel_is_named() {
    let whole = printing("x");
    let huge = tempfile::tempfile().expect("a file");
    huge.set_len(10 << 30).expect("a hole costs nothing");
    let cases = [
        (Wanted::kernel_bytes(&[]), "is empty"),
        (Wanted::kernel_bytes(b"not a kernel at all"), "neither an ELF vmlinux nor a bzImage"),
        (Wanted::kernel_bytes(&whole[..whole.len() - 1]), "cut short"),
        (Wanted::kernel_bytes(&whole[..40]), "cut short"),
        (Wanted::kernel(huge), "neither an ELF"),
    ];
    for (wanted, expected) in cases {
        let Some((step, message)) = failure("each_kind_of_broken_kernel_is_named", wanted, |_| ()) else { return };
        assert_eq!(step, "kernel");
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("install the guest kernel again"), "the next thing to try: {message}");
    }
}

#[test]
fn a_wrong_descriptor_is_named_with_its_number() {
    type Change = fn(&mut Machine);
    let cases: [(Change, &str, &str); 5] = [
        (|machine| machine.spec.kvm = 77, "spec", "kvm device should be descriptor 77, which is not open"),
        (|machine| machine.spec.console.output = 4, "spec", "descriptor 4 is named twice"),
        (|machine| machine.spec.vsock.hybrid = 1, "spec", "cannot be descriptor 1"),
        (|machine| machine.spec.kernels[0].file = 3, "spec", "descriptor 3 is named twice"),
        (|machine| std::mem::swap(&mut machine.spec.kvm, &mut machine.spec.kernels[0].file), "kvm", "not /dev/kvm"),
    ];
    for (change, step, expected) in cases {
        let wanted = Wanted::kernel_bytes(&printing("x"));
        let Some(told) = failure("a_wrong_descriptor_is_named_with_its_number", wanted, change) else { return };
        assert_eq!(told.0, step);
        assert!(told.1.contains(expected), "{}", told.1);
    }
}

#[test]
fn a_spec_outside_the_limits_and_words_that_are_none_are_refused() {
    type Change = fn(&mut Machine);
    let cases: [(Change, &str); 4] = [
        (|machine| machine.spec.vcpus = 0, "0 vCPUs"),
        (|machine| machine.spec.memory_mib = 1, "1 MiB"),
        (|machine| machine.spec.extra_cmdline = "a\nb".to_owned(), "printable ASCII"),
        (|machine| machine.spec.extra_cmdline = "x".repeat(4000), "shorten"),
    ];
    for (change, expected) in cases {
        let wanted = Wanted::kernel_bytes(&printing("x"));
        let test = "a_spec_outside_the_limits_and_words_that_are_none_are_refused";
        let Some(told) = failure(test, wanted, change) else { return };
        assert!(told.1.contains(expected), "{}", told.1);
    }
}

#[test]
fn a_console_that_nobody_reads_stops_nobody() {
    let Some(kvm) = kvm("a_console_that_nobody_reads_stops_nobody") else { return };
    // Twice what a pipe holds.
    let mut machine = Machine::boot(kvm, Wanted::kernel_bytes(&printing(&"sixteen letters\n".repeat(8192))));
    assert!(matches!(machine.receive(), FromMachine::Booting { .. }));
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::GuestReset));
    let mut kept = Vec::new();
    machine.console.read_to_end(&mut kept).expect("a pipe");
    assert!(kept.len() >= 60 << 10, "{}", kept.len());
}
