//! A launcher for tests: the real `kata-rs-vmm` process, with every descriptor that a machine needs.
//!
//! A test that lacks KVM or a kernel says so by name and is skipped; where `CI` is set that is a failure.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod linux;
pub mod namespace;
pub mod sys;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use tempfile::TempDir;
use vmm_control::{
    CONTROL_FD, ConsoleSpec, DiskSpec, Flavour, FromMachine, GuestCall, InterfaceSpec, KernelSpec, MachineSpec,
    NetSpec, Report, ShareSpec, ToMachine, VsockSpec, frame,
};

/// Longest wait for anything in a test: an event that does not come by then never will.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Host port of the agent's call.
pub const CALL_PORT: u32 = 1024;

/// /dev/kvm, or a skip in the name of `test`.
pub fn kvm(test: &str) -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file),
        Err(error) => skip(test, &format!("/dev/kvm ({error})")),
    }
}

/// The guest kernel of this host's flavour: from KATA_RS_KERNEL_PVM or KATA_RS_KERNEL_HW, or as `make build` stages it.
pub fn guest_kernel(test: &str, flavour: Flavour) -> Option<PathBuf> {
    let (variable, name) = match flavour {
        Flavour::Hw => ("KATA_RS_KERNEL_HW", "vmlinux-hw"),
        Flavour::Pvm => ("KATA_RS_KERNEL_PVM", "vmlinux-pvm"),
    };
    let staged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/stage/share/kata-rs").join(name);
    let path = std::env::var_os(variable).map_or(staged, PathBuf::from);
    if path.exists() { Some(path) } else { skip(test, &format!("a guest kernel ({variable}, or make build)")) }
}

/// Says that `test` is skipped, and what it would need.
pub fn skip<T>(test: &str, what: &str) -> Option<T> {
    let sentence = format!("SKIPPED {test}: needs {what}");
    assert!(std::env::var_os("CI").is_none(), "{sentence}; in CI a skip is a failure");
    eprintln!("{sentence}");
    None
}

/// Which kernel this host takes, by the VMM's own probe.
pub fn flavour() -> Flavour {
    let output = Command::new(env!("CARGO_BIN_EXE_kata-rs-vmm")).arg("probe").output().expect("it starts");
    let probe: vmm_control::Probe = serde_json::from_slice(&output.stdout).expect("a probe");
    match probe.kvm {
        vmm_control::KvmKind::Hardware => Flavour::Hw,
        vmm_control::KvmKind::Pvm => Flavour::Pvm,
    }
}

/// What varies between the machines of tests.
pub struct Wanted {
    /// Kernel for both flavours.
    pub kernel: File,
    /// The guest image, if any.
    pub image: Option<File>,
    /// MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
    /// A share's tag, and a socket connected to its file server.
    pub share: Option<(String, UnixStream)>,
    /// A network device: its tap queues, and its address.
    pub network: Option<(Vec<OwnedFd>, [u8; 6])>,
    /// Empty places for network devices.
    pub network_places: u8,
    /// A descriptor that the process inherits and the spec does not name.
    pub leak: Option<OwnedFd>,
    /// Words for the kernel.
    pub extra_cmdline: String,
}

impl Wanted {
    /// A small machine with this kernel and nothing else.
    pub fn kernel(file: File) -> Self {
        Self {
            kernel: file,
            image: None,
            memory_mib: 64,
            vcpus: 1,
            share: None,
            network: None,
            network_places: 0,
            leak: None,
            extra_cmdline: String::new(),
        }
    }

    /// The same with a kernel file of these bytes.
    pub fn kernel_bytes(bytes: &[u8]) -> Self {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        Self::kernel(file)
    }
}

/// An ordinary interface with this address.
pub fn interface(mac: [u8; 6]) -> InterfaceSpec {
    InterfaceSpec { mac, mtu: 1500, any_source_mac: false, rate: None }
}

/// A VMM process and the launcher's ends of all that connects to it.
pub struct Machine {
    /// The process.
    pub child: Child,
    /// The control socket.
    pub control: UnixStream,
    /// What the guest prints.
    pub console: std::io::PipeReader,
    /// Our end of the agent's call.
    pub call: UnixStream,
    /// Path of the hybrid socket, in `folder`.
    pub hybrid: PathBuf,
    /// The spec that was or is to be sent.
    pub spec: MachineSpec,
    folder: TempDir,
}

impl Machine {
    /// Spawns the process; nothing is sent yet.
    pub fn spawn(kvm: File, wanted: Wanted) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let hybrid = folder.path().join("hybrid.sock");
        let (control, their_control) = socket_pair();
        let (call, their_call) = socket_pair();
        let (console, their_console) = std::io::pipe().expect("a pipe");
        let listener = UnixListener::bind(&hybrid).expect("a socket");
        let second_kernel = wanted.kernel.try_clone().expect("a descriptor");
        let mut files: Vec<OwnedFd> = vec![
            kvm.into(),
            wanted.kernel.into(),
            second_kernel.into(),
            listener.into(),
            their_call,
            their_console.into(),
        ];
        let disks = wanted.image.into_iter().map(|image| {
            files.push(image.into());
            DiskSpec { file: CONTROL_FD + files.len() as i32, read_only: true, serial: "guest-image".to_owned() }
        });
        let disks = disks.collect();
        let shares = wanted.share.into_iter().map(|(tag, server)| {
            files.push(server.into());
            ShareSpec { tag, socket: CONTROL_FD + files.len() as i32 }
        });
        let shares = shares.collect();
        let networks = wanted.network.into_iter().map(|(taps, mac)| {
            let first = CONTROL_FD + 1 + files.len() as i32;
            let taps_end = first + taps.len() as i32;
            files.extend(taps);
            NetSpec { taps: (first..taps_end).collect(), vhosts: vec![], interface: interface(mac) }
        });
        let networks = networks.collect();
        let spec = MachineSpec {
            kvm: 4,
            vcpus: wanted.vcpus,
            memory_mib: wanted.memory_mib,
            kernels: vec![KernelSpec { flavour: Flavour::Hw, file: 5 }, KernelSpec { flavour: Flavour::Pvm, file: 6 }],
            extra_cmdline: wanted.extra_cmdline,
            disks,
            vsock: VsockSpec { cid: 3, hybrid: 7, calls: vec![GuestCall { port: CALL_PORT, stream: 8 }] },
            shares,
            networks,
            network_places: wanted.network_places,
            console: ConsoleSpec { output: 9 },
        };
        files.insert(0, their_control);
        files.extend(wanted.leak);
        Self { child: spawn(files), control, console, call, hybrid, spec, folder }
    }

    /// Spawns and sends the spec.
    pub fn boot(kvm: File, wanted: Wanted) -> Self {
        let mut machine = Self::spawn(kvm, wanted);
        let spec = machine.spec.clone();
        machine.send(&ToMachine::Boot(Box::new(spec)));
        machine
    }

    /// Sends a message.
    pub fn send(&mut self, message: &ToMachine) {
        frame::write(&mut self.control, message).expect("the VMM reads");
    }

    /// The next message.
    pub fn receive(&mut self) -> FromMachine {
        frame::read(&mut self.control).expect("the VMM answers")
    }

    /// Asks for the figures.
    pub fn report(&mut self) -> Report {
        self.send(&ToMachine::Report);
        match self.receive() {
            FromMachine::Report(report) => report,
            other => panic!("asked for a report, got {other:?}"),
        }
    }

    /// Everything that the guest printed, to the end; waits for the process to close the console.
    pub fn console_text(&mut self) -> String {
        let mut bytes = Vec::new();
        self.console.read_to_end(&mut bytes).expect("a pipe");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the process to end.
    pub fn exit(&mut self) -> ExitStatus {
        self.child.wait().expect("our child")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A failed test leaves no process behind; one that has ended already is only reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket_pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_read_timeout(Some(PATIENCE)).expect("a time");
    (ours, theirs.into())
}

/// The process with these descriptors at 3, 4, 5, ...
fn spawn(files: Vec<OwnedFd>) -> Child {
    let mappings = (CONTROL_FD..).zip(files).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-rs-vmm"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.fd_mappings(mappings.collect()).expect("numbers differ").spawn().expect("it starts")
}

/// An ELF kernel of one segment: `code` at 16 MiB, which is also the entry.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    const HEADERS_LEN: u64 = 64 + 56;
    let len = code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [HEADERS_LEN, ADDRESS, ADDRESS, len, len, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
