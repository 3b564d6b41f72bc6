//! One vCPU and its thread.
//!
//! ```text
//!   start ──> Running ──exit answered──> Running
//!                │ reset asked, power-off, triple fault, KVM gives up, stop asked
//!                └──────────> Ended(why): told to the main loop, the thread is over
//! ```
//! A stop is a flag and a signal: the flag says that it is meant, the signal gets the thread out of KVM_RUN.
//! vCPUs other than the first wait inside KVM until the guest's kernel starts them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{
    bus::Bus,
    event::{Event, EventSender},
    exits::{ExitCounters, ExitReason},
    kvm::Vcpu,
    ports::PortEvent,
    sys::{self, RunningVcpu},
};

/// Why a vCPU runs no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEnd {
    /// We asked for it.
    Stopped,
    /// The guest asked for a reset or switched itself off.
    Reset,
    /// The guest's kernel lost itself: triple fault.
    TripleFault,
    /// KVM cannot go on; the text says why and where.
    Fault(String),
}

/// The thread of a vCPU, from outside.
#[derive(Debug)]
pub struct VcpuThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Enough for the run loop and for activating a device, which happens in it.
const STACK_LEN: usize = 256 << 10;

impl VcpuThread {
    /// Starts to run a vCPU. Its end comes as [`Event::VcpuEnded`].
    pub fn start(vcpu: Vcpu, bus: Arc<Bus>, exits: Arc<ExitCounters>, events: EventSender) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let index = vcpu.index();
        let runner_stop = stop.clone();
        let thread = thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK_LEN).spawn(move || {
            let vcpu = RunningVcpu::new(vcpu.into_fd());
            let end = Runner { vcpu, bus, exits, stop: runner_stop }.run();
            events.send(Event::VcpuEnded { vcpu: index, end });
        })?;
        Ok(Self { stop, thread })
    }

    /// Asks it to stop; its end comes as an event, as any other.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        sys::kick(&self.thread);
    }
}

enum State {
    Running,
    Ended(VcpuEnd),
}

struct Runner {
    vcpu: RunningVcpu,
    bus: Arc<Bus>,
    exits: Arc<ExitCounters>,
    stop: Arc<AtomicBool>,
}

impl Runner {
    fn run(mut self) -> VcpuEnd {
        loop {
            if let State::Ended(end) = self.step() {
                return end;
            }
        }
    }

    /// Once into the guest and back.
    fn step(&mut self) -> State {
        match self.vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.exits.count(ExitReason::IoIn);
                self.bus.port_read(port, data);
                State::Running
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.exits.count(ExitReason::IoOut);
                match self.bus.port_write(port, data) {
                    None => State::Running,
                    Some(PortEvent::Reset) => State::Ended(VcpuEnd::Reset),
                }
            }
            Ok(VcpuExit::MmioRead(_, data)) => {
                self.exits.count(ExitReason::MmioRead);
                // Registers are memory, so nothing is at this address: all bits are one, as on a bus that nobody drives.
                data.fill(0xff);
                State::Running
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.exits.count(ExitReason::MmioWrite);
                self.bus.mmio_write(address, data);
                State::Running
            }
            Ok(VcpuExit::Hlt) => self.rare(ExitReason::Halt, fault("it halted where KVM should wait itself")),
            Ok(VcpuExit::Intr) => self.rare(ExitReason::Interrupted, State::Running),
            Ok(VcpuExit::Shutdown) => self.rare(ExitReason::Shutdown, State::Ended(VcpuEnd::TripleFault)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                self.rare(ExitReason::SystemEvent, fault("the guest reported its crash"))
            }
            Ok(VcpuExit::SystemEvent(..)) => self.rare(ExitReason::SystemEvent, State::Ended(VcpuEnd::Reset)),
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(other) => {
                let exit = format!("{other:?}");
                self.exits.count(ExitReason::Failure);
                State::Ended(VcpuEnd::Fault(format!("unexpected exit {exit}; {}", registers(self.vcpu.fd()))))
            }
            Err(error) => self.not_run(error.errno()),
        }
    }

    fn rare(&self, reason: ExitReason, next: State) -> State {
        self.exits.count(reason);
        next
    }

    /// KVM_RUN came back without having run the guest.
    fn not_run(&mut self, errno: i32) -> State {
        match errno {
            libc::EINTR | libc::EAGAIN => {
                self.exits.count(ExitReason::Interrupted);
                // In this order: a stop sets its flag before it kicks, so a kick that is cleared here has its flag seen below.
                self.vcpu.clear_kick();
                match self.stop.load(Ordering::SeqCst) {
                    true => State::Ended(VcpuEnd::Stopped),
                    false => State::Running,
                }
            }
            errno => {
                self.exits.count(ExitReason::Failure);
                State::Ended(VcpuEnd::Fault(format!("{}; {}", not_run_text(errno), registers(self.vcpu.fd()))))
            }
        }
    }

    fn internal_error(&mut self) -> State {
        self.exits.count(ExitReason::Failure);
        let (kind, data) = self.vcpu.internal_error();
        let place = registers(self.vcpu.fd());
        State::Ended(VcpuEnd::Fault(internal_error_text(kind, &data, &place)))
    }
}

fn fault(text: &str) -> State {
    State::Ended(VcpuEnd::Fault(text.to_owned()))
}

/// KVM cannot reach guest memory that the host does not give.
fn not_run_text(errno: i32) -> String {
    let hint = match errno {
        libc::EFAULT | libc::ENOMEM => {
            ": the host had no page for the guest: is the pod's memory limit below the machine's memory?"
        }
        _ => "",
    };
    format!("KVM_RUN failed ({}){hint}", io::Error::from_raw_os_error(errno))
}

/// KVM API, KVM_EXIT_INTERNAL_ERROR: the kinds, and for an instruction that was not emulated its bytes.
fn internal_error_text(kind: u32, data: &[u64], place: &str) -> String {
    let name = match kind {
        1 => "an instruction that KVM cannot emulate: is this kernel of the flavour that this host needs?",
        2 => "two events at once",
        3 => "an event that could not be delivered",
        4 => "an exit reason that KVM does not know",
        _ => "an unnamed error",
    };
    format!("internal error {kind} of KVM, {name} (data {data:x?}); {place}")
}

/// One line of registers, as far as they can be had.
fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => registers_text(&regs, &sregs),
        _ => "registers not to be had".to_owned(),
    }
}

fn registers_text(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    format!(
        "rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} cs {:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        sregs.cs.selector
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_kind_and_place() {
        let regs = kvm_regs { rip: 0x100_0000, ..Default::default() };
        let text = internal_error_text(1, &[0x0f], &registers_text(&regs, &kvm_sregs::default()));
        assert!(text.contains("cannot emulate") && text.contains("rip 0x1000000"), "{text}");
    }
}
