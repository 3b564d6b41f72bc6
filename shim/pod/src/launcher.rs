//! Starts a machine: the seam between a pod and its VMM.
//!
//! The pod makes every pipe and socket itself and keeps one end; a launcher gets the other ends. The real one passes them, with the files of
//! the machine, to a `kata-rs-vmm` process; the tests' double serves them inside the test.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use agent_protocol::{CALL_PORT, GUEST_CID, SHARE_TAG};
use command_fds::{CommandFdExt, FdMapping};
use vmm_control::{
    CONTROL_FD, ConsoleSpec, DiskSpec, FdNumber, Flavour, GuestCall, KernelSpec, KvmKind, MachineSpec, NetSpec, Probe,
    ShareSpec, ToMachine, VsockSpec, frame,
};

use crate::{
    ErrorKind, Installation, InterfaceRules, PodError, PodSpec,
    boot_files::BootFiles,
    moment::mark,
    network::{Device, interface},
    process::Spawned,
    record::{Carried, TOKEN_VARIABLE},
    share::{ServerReady, ServerStart, Share},
    share_server::hold,
    sys::inherit_nothing_else,
};

/// Tells the VMM when it was spawned, so that its marks begin there.
const SPAWNED_VARIABLE: &str = "KATA_RS_SPAWNED_NANOS";
/// Serial number of the guest image's disk.
const IMAGE_SERIAL: &str = "guest-image";

/// The VMM's ends of everything that connects it to the pod.
#[derive(Debug)]
pub(crate) struct MachineEnds {
    /// Control socket.
    pub control: OwnedFd,
    /// The agent's call.
    pub call: OwnedFd,
    /// Hybrid vsock listener.
    pub hybrid: OwnedFd,
    /// Console output.
    pub console: OwnedFd,
    /// Connected to the file server.
    pub share: OwnedFd,
    /// Network devices.
    pub networks: Vec<Device>,
    /// How many more may come.
    pub network_places: u8,
    /// The VMM's standard error.
    pub stderr: OwnedFd,
}

/// Starts machines. May block for as long as a spawn takes.
pub(crate) trait Launcher: Send + Sync {
    /// Says on the control socket what to boot, and starts a machine of this size with these ends.
    /// There is no process when the machine lives in this one (tests).
    fn start(
        &self,
        pod: &PodSpec,
        control: &mut UnixStream,
        ends: MachineEnds,
        carried: &Carried,
    ) -> Result<Option<Arc<Spawned>>, PodError>;
    /// Begins to make the share tree in the state folder and to serve it.
    fn share(&self, state_dir: &Path, server: ServerStart) -> io::Result<(Share, ServerReady)>;
}

/// Spawns `kata-rs-vmm`.
#[derive(Debug)]
pub(crate) struct ProcessLauncher {
    /// Where it is.
    installation: Installation,
    /// Opened before anything else is acquired.
    files: Mutex<Option<BootFiles>>,
}

impl ProcessLauncher {
    /// Opens the machine's files.
    pub(crate) fn new(installation: &Installation) -> Result<Self, PodError> {
        installation.check_programs()?;
        let files = BootFiles::open(installation)?;
        Ok(Self { installation: installation.clone(), files: Some(files).into() })
    }
}

impl Launcher for ProcessLauncher {
    fn start(
        &self,
        pod: &PodSpec,
        control: &mut UnixStream,
        ends: MachineEnds,
        carried: &Carried,
    ) -> Result<Option<Arc<Spawned>>, PodError> {
        let files = self.files.lock().ok().and_then(|mut files| files.take()).expect("a launcher starts one machine");
        let vcpus = self.vcpus(pod.vcpus);
        let (spec, mappings, stderr) = lay_out(pod, vcpus, files, ends);
        spec.check().map_err(|e| PodError::new(ErrorKind::InvalidArgument, e.to_string()))?;
        tell_what_to_boot(control, spec)?;
        let mut command = Command::new(&self.installation.vmm);
        command.env_clear().env(TOKEN_VARIABLE, &carried.token).current_dir("/");
        command.env(SPAWNED_VARIABLE, mark("vmm spawned").monotonic_nanos.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        inherit_nothing_else(&mut command);
        command.fd_mappings(mappings).expect("numbers are counted up, so no two are the same");
        let process = hold("virtual machine monitor", &self.installation.vmm, command, &carried.record)?;
        Ok(Some(Arc::new(process)))
    }

    fn share(&self, state_dir: &Path, server: ServerStart) -> io::Result<(Share, ServerReady)> {
        Share::start(state_dir, &self.installation.virtiofsd, server)
    }
}

impl ProcessLauncher {
    /// As many vCPUs as the host's KVM has to give. One is always there, so the usual pod asks nobody.
    fn vcpus(&self, wanted: u8) -> u8 {
        if wanted <= 1 {
            return wanted;
        }
        let output = Command::new(&self.installation.vmm).arg("probe").env_clear().stdin(Stdio::null()).output();
        let probe = output.ok().and_then(|output| serde_json::from_slice::<Probe>(&output.stdout).ok());
        let Some(probe) = probe else { return wanted };
        let given = vcpus_given(wanted, &probe);
        if given < wanted {
            log::warn!("{wanted} vCPUs asked for, the KVM of this host gives {given}");
        }
        given
    }
}

/// The guest kernel for software KVM runs on one vCPU.
fn vcpus_given(wanted: u8, probe: &Probe) -> u8 {
    let most = match probe.kvm {
        KvmKind::Pvm => 1,
        KvmKind::Hardware => u8::try_from(probe.vcpus_max).unwrap_or(u8::MAX).max(1),
    };
    wanted.min(most)
}

/// The first message waits in the socket for the VMM, so that it never waits for us.
pub(crate) fn tell_what_to_boot(control: &mut UnixStream, spec: MachineSpec) -> Result<(), PodError> {
    let boot = ToMachine::Boot(Box::new(spec));
    frame::write(control, &boot).map_err(|e| PodError::host("cannot tell the virtual machine monitor what to boot", e))
}

/// Gives every object of the machine a number.
fn lay_out(pod: &PodSpec, vcpus: u8, files: BootFiles, ends: MachineEnds) -> (MachineSpec, Vec<FdMapping>, OwnedFd) {
    let mut mappings = vec![FdMapping { parent_fd: ends.control, child_fd: CONTROL_FD }];
    let mut number = |parent_fd: OwnedFd| -> FdNumber {
        let child_fd = CONTROL_FD + i32::try_from(mappings.len()).expect("about ten");
        mappings.push(FdMapping { parent_fd, child_fd });
        child_fd
    };
    let kernels: Vec<(Flavour, OwnedFd)> =
        files.kernels.into_iter().map(|(flavour, file)| (flavour, file.into())).collect();
    let rules = pod.interface_rules;
    let networks = ends.networks.into_iter().map(|device| network(device, rules, vcpus, &mut number)).collect();
    let spec = MachineSpec {
        kvm: number(files.kvm.into()),
        vcpus,
        memory_mib: pod.memory_mib,
        kernels: kernels.into_iter().map(|(flavour, file)| KernelSpec { flavour, file: number(file) }).collect(),
        extra_cmdline: pod.extra_cmdline.clone(),
        disks: vec![DiskSpec { file: number(files.image.into()), read_only: true, serial: IMAGE_SERIAL.to_owned() }],
        vsock: VsockSpec {
            cid: GUEST_CID,
            hybrid: number(ends.hybrid),
            calls: vec![GuestCall { port: CALL_PORT, stream: number(ends.call) }],
        },
        shares: vec![ShareSpec { tag: SHARE_TAG.to_owned(), socket: number(ends.share) }],
        networks,
        network_places: ends.network_places,
        console: ConsoleSpec { output: number(ends.console) },
    };
    (spec, mappings, ends.stderr)
}

/// Queues that no vCPU will serve are closed: frames would wait in them for ever.
fn network(device: Device, rules: InterfaceRules, vcpus: u8, number: &mut impl FnMut(OwnedFd) -> FdNumber) -> NetSpec {
    let queues = usize::from(vcpus).max(1);
    let mut numbers = |ends: Vec<OwnedFd>| ends.into_iter().take(queues).map(&mut *number).collect();
    NetSpec {
        taps: numbers(device.taps),
        vhosts: numbers(device.vhosts),
        interface: interface(device.mac, device.mtu, rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(kvm: KvmKind, vcpus_max: u32) -> Probe {
        Probe { kvm, api_version: 12, missing_capabilities: vec![], vcpus_max }
    }

    #[test]
    fn a_device_has_no_more_queues_than_the_machine_has_vcpus() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").expect("there"));
        let of = |vcpus| {
            let (taps, vhosts) = (vec![open(), open(), open()], vec![open(), open(), open()]);
            let device = Device { mac: [2, 0, 0, 0, 0, 1], mtu: 1400, taps, vhosts };
            let mut next = CONTROL_FD;
            network(device, InterfaceRules::default(), vcpus, &mut |_| {
                next += 1;
                next
            })
        };
        let two = of(2);
        let taps = vec![CONTROL_FD + 1, CONTROL_FD + 2];
        assert_eq!((two.taps, two.interface.mtu, two.interface.mac[5]), (taps, 1400, 1));
        assert_eq!(two.vhosts, [CONTROL_FD + 3, CONTROL_FD + 4]);
        assert_eq!(of(1).taps.len(), 1);
        assert_eq!(of(8).taps.len(), 3);
    }

    #[test]
    fn no_more_vcpus_than_the_host_gives() {
        assert_eq!(vcpus_given(4, &probe(KvmKind::Hardware, 2)), 2);
        assert_eq!(vcpus_given(2, &probe(KvmKind::Hardware, 710)), 2);
        assert_eq!(vcpus_given(2, &probe(KvmKind::Hardware, 0)), 1);
        assert_eq!(vcpus_given(2, &probe(KvmKind::Pvm, 710)), 1);
    }
}
