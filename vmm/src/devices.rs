//! The machine's devices, in the order in which the guest finds them.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicU64},
};

use vmm_control::{DiskSpec, MachineSpec, ShareSpec};
use vmm_virtio::{
    Block, Console, ConsoleTail, FileBackend, MmioTransport, OnGuestCall, Rng, VhostUserFs, VirtioDevice, Vsock,
};

use crate::{
    event::{Event, EventSender},
    network::{self, Network},
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
    networks: Vec<Vec<OwnedFd>>,
    console: OwnedFd,
}

/// The devices, and what is kept of them for the machine.
pub struct Devices {
    /// Disks first: the guest names them in this order, and waits for the first.
    pub list: Vec<Box<dyn VirtioDevice>>,
    /// Bytes read from each disk.
    pub disk_bytes_read: Vec<Arc<AtomicU64>>,
    /// The handles of the network devices, in the order of the spec.
    pub networks: Vec<Network>,
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
            let taps = network.taps.iter().map(|tap| inherited.claim(*tap, &format!("tap of network device {index}")));
            networks.push(taps.collect::<Result<_, _>>()?);
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
        for ((index, network), taps) in spec.networks.iter().enumerate().zip(self.networks) {
            let name = format!("net{index}");
            let device = network::device(&name, network, taps).map_err(|source| failed(&name, source))?;
            networks.push(Network::of(&device));
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

/// Ends the machine, with the device's name and the cause, when the host's part of this device is lost: the guest cannot get it back.
pub fn report_loss(transport: &mut MmioTransport, events: EventSender) {
    let device = transport.device_traits().name.clone();
    transport.on_lost(Box::new(move |cause| {
        events.send(Event::DeviceLost { device: device.clone(), message: cause.to_owned() });
    }));
}

fn failed(device: &str, source: io::Error) -> DeviceError {
    DeviceError { device: device.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;
    use vmm_virtio::{ActivateError, Activation, DeviceTraits, Interrupt, QueueState};

    use super::*;
    use crate::event;

    /// A device without queues that gives its way back to the driver to the test.
    struct Probe(Arc<Mutex<Option<Arc<dyn Interrupt>>>>);

    impl VirtioDevice for Probe {
        fn traits(&self) -> DeviceTraits {
            let name = "probe".to_owned();
            DeviceTraits { device_type: 42, features: 1 << 32, queue_sizes: vec![], config_len: 0, name }
        }
        fn read_config(&self, _: u32, _: &mut [u8]) {}
        fn write_config(&mut self, _: u32, _: &[u8]) {}
        fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
            *self.0.lock().expect("one thread") = Some(with.interrupt);
            Ok(())
        }
        fn stop(&mut self) -> Vec<QueueState> {
            Vec::new()
        }
    }

    #[test]
    fn a_device_that_the_host_lets_down_ends_the_machine_and_one_that_the_guest_breaks_does_not() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let way_back = Arc::default();
        let line = EventFd::new(0).expect("a descriptor");
        let mut transport = MmioTransport::new(Box::new(Probe(Arc::clone(&way_back))), memory, line).expect("new");
        let (sender, events) = event::queue().expect("two descriptors");
        report_loss(&mut transport, sender);
        // Status ACKNOWLEDGE, DRIVER, VERSION_1 accepted, FEATURES_OK, DRIVER_OK (virtio 1.2, section 3.1.1).
        for (register, value) in [(0x70, 1u32), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15)] {
            transport.write(register, &value.to_le_bytes());
        }
        let interrupt = way_back.lock().expect("one thread").take().expect("activated");
        interrupt.needs_reset();
        assert_eq!(events.take(), None);
        interrupt.lost("epoll_wait failed on the host: out of memory");
        let message = "epoll_wait failed on the host: out of memory".to_owned();
        assert_eq!(events.take(), Some(Event::DeviceLost { device: "probe".to_owned(), message }));
    }
}
