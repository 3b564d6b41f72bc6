//! A real guest kernel, whose init is the test binary itself: it is static, and in the guest it runs its test `as_guest_init` as process 1,
//! which calls [`as_init`] and does what the test says over the agent's call.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use vmm_control::{FromMachine, ToMachine};

use super::{CALL_PORT, Machine, PATIENCE, Wanted, flavour, guest_kernel, kvm};

/// The first words of the guest.
pub const HELLO: &str = "a test's init\n";

/// Calls the host and answers its orders by `obey`, to the machine's end.
pub fn as_init(mut obey: impl FnMut(&str) -> String) {
    assert_eq!(std::process::id(), 1, "this is for the guest");
    let host = vsock::VsockStream::connect_with_cid_port(2, CALL_PORT).expect("the host listens");
    (&host).write_all(HELLO.as_bytes()).expect("connected");
    for order in BufReader::new(&host).lines() {
        let answer = match order.expect("connected").as_str() {
            "reset" => restart(),
            order => obey(order),
        };
        (&host).write_all(format!("{answer}\n").as_bytes()).expect("connected");
    }
    restart();
}

fn restart() -> String {
    rustix::system::reboot(rustix::system::RebootCommand::Restart).expect("process 1 may");
    String::new()
}

/// An image with this binary as its init; made once.
fn image() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, image) = IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        for name in ["dev", "proc", "sbin", "share", "sys"] {
            std::fs::create_dir_all(root.join(name)).expect("a folder");
        }
        std::fs::copy(std::env::current_exe().expect("this binary"), root.join("sbin/init")).expect("copied");
        let image = folder.path().join("guest.erofs");
        let made = Command::new("mkfs.erofs").arg("--quiet").args([&image, &root]).output().expect("mkfs.erofs starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (folder, image)
    });
    image
}

/// A machine of this host's flavour with the tests' image, or a skip.
pub fn wanted(test: &str) -> Option<(File, Wanted)> {
    let kvm = kvm(test)?;
    let kernel = File::open(guest_kernel(test, flavour())?).expect("a readable kernel");
    if Command::new("mkfs.erofs").arg("-V").output().is_err() {
        eprintln!("SKIPPED {test}: needs mkfs.erofs (package erofs-utils)");
        assert!(std::env::var_os("CI").is_none(), "in CI a skip is a failure");
        return None;
    }
    let wanted = Wanted {
        image: Some(File::open(image()).expect("just made")),
        memory_mib: 128,
        // Words behind the two dashes are arguments of init.
        extra_cmdline: "-- --exact as_guest_init --ignored --nocapture --test-threads=1".to_owned(),
        ..Wanted::kernel(kernel)
    };
    Some((kvm, wanted))
}

/// Boots to the agent's call.
pub fn booted(kvm: File, wanted: Wanted) -> Machine {
    let mut machine = Machine::boot(kvm, wanted);
    let started = machine.receive();
    assert!(matches!(started, FromMachine::Booting { .. }), "{started:?}");
    machine.call.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut hello = [0; HELLO.len()];
    if machine.call.read_exact(&mut hello).is_err() {
        machine.send(&ToMachine::Stop);
        panic!("the guest does not call; its console says:\n{}", machine.console_text());
    }
    assert_eq!(hello, HELLO.as_bytes());
    machine
}

/// Gives the guest's init an order and takes its answer.
pub fn order(call: &UnixStream, order: &str) -> String {
    let mut call = call;
    call.write_all(format!("{order}\n").as_bytes()).expect("the guest reads");
    let mut answer = String::new();
    BufReader::new(call).read_line(&mut answer).expect("the guest answers");
    answer.trim().to_owned()
}
