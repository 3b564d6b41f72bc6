//! From a spec to a running machine, phase by phase.
//!
//! ```text
//! spec ─> Claimed ─> KvmReady ─> Planned ─> Loaded ─> Assembled ─> Machine
//!         descriptors  vCPUs,     kernel's   memory    devices     threads
//!         are ours     kind       head read  is full   on the bus  run
//! ```
//! Each phase consumes the one before. None needs an undo of its own: all that a phase acquires is owned by the value it returns, and ends with it.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use vmm_boot::{
    BootImage, BootInput, CommandLine, DeviceSlot, KERNEL_HEAD_LEN, KernelImage, MemoryLayout, PlanError, SLOTS_MAX,
    device_slot,
};
use vmm_control::{BootFailure, Flavour, KvmKind, MachineSpec, SpecError};
use vmm_virtio::ConsoleTail;

use crate::{
    bus::Bus,
    devices::{DeviceError, DeviceFiles},
    event,
    exits::Exits,
    kvm::{Host, KvmError, Vcpu, Vm},
    machine::Machine,
    marks::Marks,
    memory::{Memory, MemoryError},
    places::Places,
    ports::Ports,
    probe,
    process::chain,
    sys::{self, ClaimError, Inherited},
    vcpu::VcpuThread,
    wiring::{Wires, WiringError},
};

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The spec contradicts itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A descriptor is not what the spec says.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// KVM said no.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No kernel for this kind of host.
    #[error(
        "this host's KVM is {host:?}, and the spec has no kernel of flavour {needed:?}: install share/kata-rs/vmlinux-{file}"
    )]
    NoKernel {
        /// What the host is.
        host: KvmKind,
        /// What it needs.
        needed: Flavour,
        /// The same, as part of the file's name.
        file: &'static str,
    },
    /// The kernel file could not be read.
    #[error("the {0} kernel could not be read: is it a regular file, open for reading?")]
    KernelFile(&'static str, #[source] io::Error),
    /// The kernel does not fit the machine, or is damaged.
    #[error("the {0} kernel cannot be started")]
    Plan(&'static str, #[source] PlanError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More devices than places.
    #[error("the machine has {0} devices, {SLOTS_MAX} fit: use fewer disks, shares or networks")]
    TooManyDevices(usize),
    /// A device could not be built.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device could not be connected.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// No thread, descriptor or random bytes to be had.
    #[error("{0} failed: are the limits of the pod's cgroup or of open files too low?")]
    Resources(&'static str, #[source] io::Error),
}

impl BootError {
    /// For the launcher: the step, and the whole chain in one line.
    pub fn failure(&self) -> BootFailure {
        let step = match self {
            Self::Spec(_) | Self::Claim(_) => "spec",
            Self::Kvm(_) => "kvm",
            Self::NoKernel { .. } | Self::KernelFile(..) | Self::Plan(..) => "kernel",
            Self::Memory(_) => "memory",
            Self::TooManyDevices(_) | Self::Device(_) | Self::Wiring(_) => "devices",
            Self::Resources(..) => "vcpus",
        };
        BootFailure { step: step.to_owned(), message: chain(self) }
    }
}

/// Builds and starts the machine of `spec`.
pub fn boot(spec: &MachineSpec, inherited: Inherited, marks: Marks) -> Result<Machine, BootError> {
    let planned = Claimed::new(spec, inherited)?.open_kvm(spec, &marks)?.plan(spec)?;
    // After the first phase, which closes every descriptor that it does not know.
    let exits = Exits::new().map_err(|error| BootError::Resources("eventfd", error))?;
    let assembled = planned.load(&marks)?.assemble(spec, &marks, &exits)?;
    assembled.start(marks, exits)
}

fn flavour_for(kind: KvmKind) -> Flavour {
    match kind {
        KvmKind::Hardware => Flavour::Hw,
        KvmKind::Pvm => Flavour::Pvm,
    }
}

fn flavour_name(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Hw => "hw",
        Flavour::Pvm => "pvm",
    }
}

/// Every descriptor of the spec is ours, and no other is open.
struct Claimed {
    kvm: OwnedFd,
    kernels: Vec<(Flavour, File)>,
    devices: DeviceFiles,
}

impl Claimed {
    fn new(spec: &MachineSpec, mut inherited: Inherited) -> Result<Self, BootError> {
        spec.check()?;
        let kvm = inherited.claim(spec.kvm, "kvm device")?;
        let mut kernels = Vec::new();
        for kernel in &spec.kernels {
            let name = format!("{} kernel", flavour_name(kernel.flavour));
            kernels.push((kernel.flavour, inherited.claim(kernel.file, &name)?.into()));
        }
        let devices = DeviceFiles::claim(spec, &mut inherited)?;
        inherited.close_others().map_err(|error| BootError::Resources("close_range", error))?;
        Ok(Self { kvm, kernels, devices })
    }

    fn open_kvm(self, spec: &MachineSpec, marks: &Marks) -> Result<KvmReady, BootError> {
        let vm = Vm::new(Host::new(self.kvm)?)?;
        let first = vm.vcpu(0)?;
        let kind = first.kind()?;
        let count = spec.vcpus.min(probe::vcpus_max(kind, usize::from(spec.vcpus)));
        if count < spec.vcpus {
            log::warn!("software KVM runs one vCPU a machine: {} asked for, 1 given", spec.vcpus);
        }
        let mut vcpus = vec![first];
        for index in 1..count {
            vcpus.push(vm.vcpu(index)?);
        }
        vcpus.iter().try_for_each(|vcpu| vcpu.set_cpuid(&vm, count))?;
        let flavour = flavour_for(kind);
        let kernel = self.kernels.into_iter().find(|(of, _)| *of == flavour).map(|(_, file)| file);
        let absent = BootError::NoKernel { host: kind, needed: flavour, file: flavour_name(flavour) };
        marks.note("kvm ready");
        Ok(KvmReady { vm, vcpus, kind, flavour, kernel: kernel.ok_or(absent)?, devices: self.devices })
    }
}

/// KVM has a machine without memory; the kernel for it is chosen.
struct KvmReady {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    kind: KvmKind,
    flavour: Flavour,
    kernel: File,
    devices: DeviceFiles,
}

impl KvmReady {
    fn plan(self, spec: &MachineSpec) -> Result<Planned, BootError> {
        let name = flavour_name(self.flavour);
        let count = self.devices.count() + usize::from(spec.network_places);
        let slots: Vec<_> = (0..count).map_while(device_slot).collect();
        if slots.len() < count {
            return Err(BootError::TooManyDevices(count));
        }
        let kernel = read_kernel_head(&self.kernel).map_err(|error| BootError::KernelFile(name, error))?;
        let image = KernelImage::parse(&kernel.0, kernel.1).map_err(|error| BootError::Plan(name, error.into()))?;
        let layout = MemoryLayout::new(u64::from(spec.memory_mib) << 20);
        let command_line = command_line(self.flavour, spec, &slots)
            .map_err(|error| BootError::Plan(name, PlanError::CommandLine(error)))?;
        let input = BootInput {
            memory: &layout,
            vcpus: u8::try_from(self.vcpus.len()).expect("at most VCPUS_MAX"),
            kernel: &image,
            command_line: &command_line,
            initrd_len: None,
            seed: &random_seed()?,
        };
        let image = BootImage::plan(&input).map_err(|error| BootError::Plan(name, error))?;
        Ok(Planned { ready: self, layout, image, slots })
    }
}

/// The first bytes of the kernel file, and its length. Read at an offset: the file's position may be shared with other machines.
fn read_kernel_head(file: &File) -> io::Result<(Vec<u8>, u64)> {
    use std::os::unix::fs::FileExt;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut head = vec![0; KERNEL_HEAD_LEN.min(usize::try_from(metadata.len()).unwrap_or(KERNEL_HEAD_LEN))];
    file.read_exact_at(&mut head, 0)?;
    Ok((head, metadata.len()))
}

/// Software KVM shows the guest the host's processor, and has not all that it has: where that has pages of 1 GiB, Linux would use them above
/// 4 GiB of memory, and fault. (INVPCID is another; the kernel's patch keeps off it.) And where that is subject to speculative return stack overflow, the
/// kernel of this flavour, which is built without a defence (guest-kernel/config/pvm.config), says so on the early console at each boot: 100
/// characters of two exits each.
const PVM_WORDS: &str = "nogbpages spec_rstack_overflow=off";

fn command_line(
    flavour: Flavour,
    spec: &MachineSpec,
    slots: &[DeviceSlot],
) -> Result<String, vmm_boot::CommandLineError> {
    let mut line = CommandLine::new(!spec.disks.is_empty());
    slots.iter().for_each(|slot| line.device(*slot));
    if flavour == Flavour::Pvm {
        line.extra(PVM_WORDS)?;
    }
    line.extra(&spec.extra_cmdline)?;
    line.finish()
}

fn random_seed() -> Result<[u8; 32], BootError> {
    let mut seed = [0; 32];
    let read = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    // Up to 256 bytes come whole (getrandom(2)).
    read.map(|_| seed).map_err(|error| BootError::Resources("getrandom", error.into()))
}

/// It is decided what goes where.
struct Planned {
    ready: KvmReady,
    layout: MemoryLayout,
    image: BootImage,
    slots: Vec<DeviceSlot>,
}

impl Planned {
    fn load(self, marks: &Marks) -> Result<Loaded, BootError> {
        let memory = Memory::new(self.layout)?;
        marks.note("memory ready");
        // KVM waits some milliseconds for its readers before it shows memory to the guest (synchronize_srcu); the copy fills them.
        thread::scope(|scope| {
            let shown = thread::Builder::new()
                .name("memory-slots".to_owned())
                .spawn_scoped(scope, || self.ready.vm.set_memory(&memory))
                .map_err(|error| BootError::Resources("a thread", error))?;
            memory.load(&self.image, &self.ready.kernel)?;
            Ok::<_, BootError>(shown.join().expect("it cannot panic: panics end the process")?)
        })?;
        if self.ready.kind == KvmKind::Pvm {
            let start = self.image.kernel.iter().map(|copy| copy.address).min();
            memory.map_ahead(start.unwrap_or_default());
        }
        self.ready.vcpus[0].set_boot_state(&self.image.cpu)?;
        marks.note("kernel loaded");
        let kernel_bytes = self.image.kernel.iter().map(|copy| copy.len).sum();
        Ok(Loaded { ready: self.ready, memory, slots: self.slots, kernel_bytes })
    }
}

/// Memory holds all that the kernel needs to start.
struct Loaded {
    ready: KvmReady,
    memory: Memory,
    slots: Vec<DeviceSlot>,
    kernel_bytes: u64,
}

impl Loaded {
    fn assemble(self, spec: &MachineSpec, marks: &Marks, exits: &Exits) -> Result<Assembled, BootError> {
        let KvmReady { vm, vcpus, kind, flavour, devices, .. } = self.ready;
        let (sender, events) = event::queue().map_err(|error| BootError::Resources("eventfd", error))?;
        let tail = Arc::new(ConsoleTail::new());
        let early = devices.early_console().map_err(|error| BootError::Resources("dup", error))?;
        let (called_marks, called_exits) = (marks.clone(), exits.clone());
        let on_call = Box::new(move |_port| {
            called_exits.note_call();
            called_marks.note("agent call");
        });
        let devices = devices.build(spec, tail.clone(), on_call)?;
        let first = devices.list.len() - devices.networks.len();
        let networks = Places::new(first, &self.slots[first..], devices.networks);
        let wires = Wires { vm: &vm, memory: &self.memory, exits, events: &sender };
        let (mut list, mut transports) = (devices.list.into_iter(), Vec::new());
        for slot in &self.slots {
            transports.push(list.next().map(|device| wires.connect(device, *slot)).transpose()?);
            if transports.last().is_some_and(Option::is_none) {
                wires.empty(*slot).map_err(WiringError::Descriptors)?;
            }
        }
        let bus = Arc::new(Bus::new(Ports::new(early, tail), transports, marks.clone(), sender.clone()));
        marks.note("devices ready");
        Ok(Assembled {
            vm,
            vcpus,
            kind: (kind, flavour),
            memory: self.memory,
            bus,
            sender,
            events,
            disks: devices.disk_bytes_read,
            networks,
            kernel_bytes: self.kernel_bytes,
        })
    }
}

/// Everything is there but the threads of the vCPUs.
struct Assembled {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    kind: (KvmKind, Flavour),
    memory: Memory,
    bus: Arc<Bus>,
    sender: event::EventSender,
    events: event::EventReceiver,
    disks: Vec<Arc<AtomicU64>>,
    networks: Places,
    kernel_bytes: u64,
}

impl Assembled {
    fn start(self, marks: Marks, exits: Exits) -> Result<Machine, BootError> {
        sys::install_kick().map_err(|error| BootError::Resources("sigaction", error))?;
        marks.note("vcpus run");
        let mut vcpus = Vec::new();
        for vcpu in self.vcpus {
            let thread = VcpuThread::start(vcpu, self.bus.clone(), exits.add_vcpu(), self.sender.clone());
            vcpus.push(thread.map_err(|error| BootError::Resources("a vCPU thread", error))?);
        }
        Ok(Machine {
            kind: self.kind,
            vcpus,
            bus: self.bus,
            events: self.events,
            sender: self.sender,
            memory: self.memory,
            vm: self.vm,
            marks,
            exits,
            kernel_bytes: self.kernel_bytes,
            disks: self.disks,
            networks: self.networks,
        })
    }
}
