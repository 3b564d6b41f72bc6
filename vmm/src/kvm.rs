//! One KVM machine: concrete, no trait. What can be decided without KVM is decided elsewhere.

use std::os::fd::OwnedFd;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryBackend;
use vmm_boot::{BootCpu, DescriptorTable, IDENTITY_MAP_ADDRESS, SegmentState, TSS_ADDRESS};
use vmm_control::KvmKind;
use vmm_sys_util::{errno, eventfd::EventFd};

use crate::{
    cpuid::{self, Topology},
    memory::Memory,
    sys::{self, Access},
};

/// Why KVM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not /dev/kvm.
    #[error("the given descriptor is not /dev/kvm: open /dev/kvm for reading and writing")]
    NotKvm,
    /// An interface of another age.
    #[error("/dev/kvm speaks API version {0}, this VMM needs {KVM_API_VERSION}: use a host kernel of this century")]
    Version(i32),
    /// Something that the machine cannot do without.
    #[error("KVM of this host lacks {}: use a host kernel that has it", .0.join(", "))]
    Missing(Vec<String>),
    /// An ioctl failed.
    #[error("KVM refused {operation}")]
    Ioctl {
        /// What was tried.
        operation: &'static str,
        /// From the kernel.
        #[source]
        source: errno::Error,
    },
}

fn refused(operation: &'static str) -> impl FnOnce(errno::Error) -> KvmError {
    move |source| KvmError::Ioctl { operation, source }
}

/// What the machine cannot do without, by KVM's own names.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// This register reads [`PVM_SIGNATURE`] ("PVM") on software KVM; elsewhere it does not exist.
const MSR_PVM_SIGNATURE: u32 = 0x4b56_4d11;
const PVM_SIGNATURE: u64 = 0x4d_5650;

/// An opened /dev/kvm of the right version.
#[derive(Debug)]
pub struct Host(Kvm);

impl Host {
    /// Checks that `fd` is /dev/kvm.
    pub fn new(fd: OwnedFd) -> Result<Self, KvmError> {
        let kvm = sys::kvm(fd);
        match kvm.get_api_version() {
            version if version == KVM_API_VERSION as i32 => Ok(Self(kvm)),
            // The ioctl does not exist on other kinds of files.
            -1 => Err(KvmError::NotKvm),
            version => Err(KvmError::Version(version)),
        }
    }

    /// Names of required capabilities that this host lacks.
    pub fn missing(&self) -> Vec<String> {
        REQUIRED.iter().filter(|(cap, _)| !self.0.check_extension(*cap)).map(|(_, name)| (*name).to_owned()).collect()
    }

    /// KVM_GET_API_VERSION.
    pub fn api_version(&self) -> i32 {
        self.0.get_api_version()
    }

    /// Most vCPUs that KVM takes (KVM_CAP_MAX_VCPUS). That may be more than the host has processors, on which they then take turns.
    pub fn vcpus_max(&self) -> usize {
        self.0.get_max_vcpus()
    }
}

/// A machine without memory, with its interrupt controllers.
///
/// There is no PIT: with kvm-clock and the TSC deadline timer Linux asks for none (apic_needs_pit), and nothing else ticks.
#[derive(Debug)]
pub struct Vm {
    host: Host,
    fd: VmFd,
    supported_cpuid: CpuId,
    tsc_deadline: bool,
}

impl Vm {
    /// A new machine.
    pub fn new(host: Host) -> Result<Self, KvmError> {
        let missing = host.missing();
        if !missing.is_empty() {
            return Err(KvmError::Missing(missing));
        }
        let fd = host.0.create_vm().map_err(refused("a new machine (KVM_CREATE_VM)"))?;
        let high = usize::try_from(TSS_ADDRESS).expect("64-bit host");
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(high).map_err(refused("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(refused("interrupt controllers (KVM_CREATE_IRQCHIP)"))?;
        let supported_cpuid =
            host.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = host.0.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { host, fd, supported_cpuid, tsc_deadline })
    }

    /// Most vCPUs of one machine on this host.
    pub fn vcpus_max(&self) -> usize {
        self.host.vcpus_max()
    }

    /// A new vCPU. The first tells what kind of KVM this is.
    pub fn vcpu(&self, index: u8) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(refused("a new vCPU (KVM_CREATE_VCPU)"))?;
        Ok(Vcpu { index, fd })
    }

    /// Gives the guest its memory, and shows it the registers of its devices, which it then reads as memory; its writes there exit to us.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), KvmError> {
        let ram = memory.mapped().iter().map(|region| (region, Access::ReadWrite));
        let registers = memory.registers().iter().map(|region| (region, Access::ReadOnly));
        (0u32..)
            .zip(ram.chain(registers))
            .try_for_each(|(slot, (region, access))| sys::set_memory_slot(&self.fd, slot, region, access))
            .map_err(refused("guest memory (KVM_SET_USER_MEMORY_REGION)"))
    }

    /// From now on a write to `interrupt` pulls interrupt line `line`.
    pub fn connect_interrupt(&self, interrupt: &EventFd, line: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(interrupt, line).map_err(refused("a device interrupt (KVM_IRQFD)"))
    }

    /// No longer.
    pub fn disconnect_interrupt(&self, interrupt: &EventFd, line: u32) -> Result<(), KvmError> {
        self.fd.unregister_irqfd(interrupt, line).map_err(refused("the end of a device interrupt (KVM_IRQFD)"))
    }

    /// From now on a 32-bit guest write of `value` at `address`, a kick or an acknowledgement, makes `event` readable, without an exit to us.
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("a write of a driver that it is to answer (KVM_IOEVENTFD)"))
    }

    /// No longer.
    pub fn disconnect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("the end of a write of a driver that it answers (KVM_IOEVENTFD)"))
    }
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
}

impl Vcpu {
    /// Its index and APIC id.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// What kind of KVM it runs on.
    pub fn kind(&self) -> Result<KvmKind, KvmError> {
        let mut msrs = msrs(&[(MSR_PVM_SIGNATURE, 0)]);
        // An unknown register is not an error: KVM says that it read none.
        let read = self.fd.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
        let is_pvm = read == 1 && msrs.as_slice()[0].data == PVM_SIGNATURE;
        Ok(if is_pvm { KvmKind::Pvm } else { KvmKind::Hardware })
    }

    /// Tells it what processor it is.
    pub fn set_cpuid(&self, vm: &Vm, vcpus: u8) -> Result<(), KvmError> {
        let topology = Topology { vcpu: self.index, vcpus, tsc_deadline: vm.tsc_deadline };
        let entries = cpuid::for_vcpu(vm.supported_cpuid.as_slice(), topology);
        let cpuid = CpuId::from_entries(&entries)
            .map_err(|_| refused("so many CPUID leaves")(errno::Error::new(libc::E2BIG)))?;
        self.fd.set_cpuid2(&cpuid).map_err(refused("the vCPU's CPUID (KVM_SET_CPUID2)"))
    }

    /// Puts the boot processor before its first instruction. What is not set here has its value after reset, which is what
    /// Linux expects: FPU, local APIC, system call registers.
    pub fn set_boot_state(&self, cpu: &BootCpu) -> Result<(), KvmError> {
        // Fast string operations, as firmware leaves them; write-back as the default memory type.
        const MSR_MISC_ENABLE: (u32, u64) = (0x1a0, 1);
        const MSR_MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 0x806);
        for msr in [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE] {
            self.fd.set_msrs(&msrs(&[msr])).map_err(refused("KVM_SET_MSRS"))?;
        }
        let mut sregs = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer);
        sregs.gdt = table(cpu.gdt);
        sregs.cs = segment(cpu.code);
        sregs.tr = segment(cpu.task);
        for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *data = segment(cpu.data);
        }
        self.fd.set_sregs(&sregs).map_err(refused("the vCPU's system registers (KVM_SET_SREGS)"))?;
        let regs = kvm_regs {
            rip: cpu.rip,
            rsp: cpu.rsp,
            rbp: cpu.rsp,
            rsi: cpu.rsi,
            rflags: cpu.rflags,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(refused("the vCPU's registers (KVM_SET_REGS)"))
    }

    /// For the thread that runs it.
    pub fn into_fd(self) -> VcpuFd {
        self.fd
    }
}

fn msrs(values: &[(u32, u64)]) -> Msrs {
    let entries: Vec<_> =
        values.iter().map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).expect("a handful, KVM takes hundreds")
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

fn segment(segment: SegmentState) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: segment.limit(),
        selector: segment.selector,
        type_: segment.kind(),
        s: segment.bit(44).into(),
        dpl: u8::from(segment.bit(45)) | (u8::from(segment.bit(46)) << 1),
        present: segment.bit(47).into(),
        avl: segment.bit(52).into(),
        l: segment.bit(53).into(),
        db: segment.bit(54).into(),
        g: segment.bit(55).into(),
        ..Default::default()
    }
}
