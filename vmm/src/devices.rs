//! The machine's devices, in the order in which the guest finds them.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicU64},
};

use vmm_control::{DiskSpec, FdNumber, MachineSpec, ShareSpec};
use vmm_virtio::{Block, Console, ConsoleTail, FileBackend, OnGuestCall, Rng, VhostUserFs, VirtioDevice, Vsock};

use crate::{
    network::{self, Counters, HostEnds},
    sys::{ClaimError, Inherited},
};

/// A device could not be built.
#[derive(Debug, thiserror::Error)]
#[error("device {device} could not be built: is its descriptor of the right kind?")]
pub struct DeviceError {
    device: String,
    #[source]
    source: io::Error,
}

/// What the devices are made from.
pub struct DeviceFiles {
    disks: Vec<OwnedFd>,
    hybrid: OwnedFd,
    calls: Vec<(u32, OwnedFd)>,
    shares: Vec<OwnedFd>,
    networks: Vec<HostEnds>,
    console: OwnedFd,
}

/// The devices, and what is kept of them for the machine.
pub struct Devices {
    /// Disks first: the guest names them in this order, and waits for the first.
    pub list: Vec<Box<dyn VirtioDevice>>,
    /// Bytes read from each disk.
    pub disk_bytes_read: Vec<Arc<AtomicU64>>,
    /// Figures of the network devices, which are the last ones of the list.
    pub networks: Vec<Counters>,
}

impl DeviceFiles {
    /// Takes every descriptor that the spec names for a device.
    pub fn claim(spec: &MachineSpec, inherited: &mut Inherited) -> Result<Self, ClaimError> {
        let mut disks = Vec::new();
        for disk in &spec.disks {
            disks.push(inherited.claim(disk.file, &format!("disk {}", disk.serial))?);
        }
        let hybrid = inherited.claim(spec.vsock.hybrid, "vsock listener")?;
        let mut calls = Vec::new();
        for call in &spec.vsock.calls {
            calls.push((call.port, inherited.claim(call.stream, &format!("vsock call to port {}", call.port))?));
        }
        let mut shares = Vec::new();
        for share in &spec.shares {
            shares.push(inherited.claim(share.socket, &format!("share {}", share.tag))?);
        }
        let mut networks = Vec::new();
        for (index, network) in spec.networks.iter().enumerate() {
            let mut claim = |fds: &[FdNumber], what: &str| {
                let claimed = fds.iter().map(|fd| inherited.claim(*fd, &format!("{what} of network device {index}")));
                claimed.collect::<Result<Vec<_>, _>>()
            };
            let (taps, vhosts) = (claim(&network.taps, "tap")?, claim(&network.vhosts, "vhost-net")?);
            networks.push(HostEnds { taps, vhosts });
        }
        let console = inherited.claim(spec.console.output, "console output")?;
        Ok(Self { disks, hybrid, calls, shares, networks, console })
    }

    /// How many devices they become.
    pub fn count(&self) -> usize {
        // Console, vsock and random numbers are always there.
        self.disks.len() + self.shares.len() + self.networks.len() + 3
    }

    /// The console's output once more, for the early console; from now on neither waits for who reads it.
    pub fn early_console(&self) -> io::Result<OwnedFd> {
        rustix::io::ioctl_fionbio(&self.console, true)?;
        self.console.try_clone()
    }

    /// Builds the devices. `on_call` is called when the guest calls the host.
    pub fn build(
        self,
        spec: &MachineSpec,
        tail: Arc<ConsoleTail>,
        on_call: OnGuestCall,
    ) -> Result<Devices, DeviceError> {
        let mut list: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let mut disk_bytes_read = Vec::new();
        for ((index, disk), file) in spec.disks.iter().enumerate().zip(self.disks) {
            let disk = block(index, disk, file.into())?;
            disk_bytes_read.push(disk.bytes_read());
            list.push(Box::new(disk));
        }
        let console = Console::new(Some(self.console), tail).map_err(|source| failed("console", source))?;
        list.push(Box::new(console));
        let calls = self.calls.into_iter().map(|(port, stream)| (port, stream.into())).collect();
        let mut vsock = Vsock::new(spec.vsock.cid, self.hybrid.into(), calls);
        vsock.on_guest_call(on_call);
        list.push(Box::new(vsock));
        list.push(Box::new(Rng::new()));
        for ((index, share), socket) in spec.shares.iter().enumerate().zip(self.shares) {
            list.push(Box::new(file_share(index, share, socket.into())?));
        }
        let mut networks = Vec::new();
        for ((index, network), ends) in spec.networks.iter().enumerate().zip(self.networks) {
            let name = format!("net{index}");
            let device = network::device(&name, &network.interface, ends).map_err(|source| failed(&name, source))?;
            networks.push(Counters::of(&device));
            list.push(Box::new(device));
        }
        Ok(Devices { list, disk_bytes_read, networks })
    }
}

fn block(index: usize, spec: &DiskSpec, file: File) -> Result<Block, DeviceError> {
    let name = format!("blk{index}");
    let backend = FileBackend::new(file, spec.read_only).map_err(|source| failed(&name, source))?;
    Ok(Block::new(&name, Box::new(backend), spec.read_only, &spec.serial))
}

fn file_share(index: usize, spec: &ShareSpec, server: UnixStream) -> Result<VhostUserFs, DeviceError> {
    let device = format!("fs{index}");
    VhostUserFs::connect(&device, &spec.tag, server).map_err(|source| failed(&device, source))
}

fn failed(device: &str, source: io::Error) -> DeviceError {
    DeviceError { device: device.to_owned(), source }
}
