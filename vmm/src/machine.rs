//! A running machine and its main loop.

use std::{
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use vmm_control::{Ending, Flavour, FromMachine, KvmKind, Report, ToMachine, frame::FrameError};

use crate::{
    bus::Bus,
    control::Control,
    event::{Event, EventReceiver, EventSender},
    exits::Exits,
    kvm::Vm,
    marks::Marks,
    memory::Memory,
    network::HostEnds,
    places::{PlaceError, Places},
    process::chain,
    vcpu::{VcpuEnd, VcpuThread},
    wiring::Wires,
};

/// How long the vCPUs, and after them the devices, may take to stop. A device that waits for a stuck server is left behind: the process ends anyhow.
const STOP_TIME_MAX: Duration = Duration::from_secs(1);

/// All that belongs to a machine whose vCPUs run.
pub struct Machine {
    /// Kind of KVM and flavour of the kernel.
    pub kind: (KvmKind, Flavour),
    /// The vCPUs that run; software KVM has one, whatever was asked for.
    pub vcpus: Vec<VcpuThread>,
    /// Ports and devices.
    pub bus: Arc<Bus>,
    /// Where vCPUs and devices report.
    pub events: EventReceiver,
    /// Where a device that comes later reports.
    pub sender: EventSender,
    /// Guest memory.
    pub memory: Memory,
    /// With it go the interrupt lines (irqfd) of the devices.
    pub vm: Vm,
    /// Moments of the boot.
    pub marks: Marks,
    /// Counters of exits.
    pub exits: Exits,
    /// Bytes of the kernel that were copied.
    pub kernel_bytes: u64,
    /// Bytes read until now, one counter a disk.
    pub disks: Vec<Arc<AtomicU64>>,
    /// Places for network devices; those of the spec are in the first ones.
    pub networks: Places,
}

impl Machine {
    /// The news that the vCPUs run.
    pub fn booting(&self) -> FromMachine {
        let (kvm, kernel) = self.kind;
        FromMachine::Booting { kvm, kernel }
    }

    /// Runs to the machine's end. An error means that the launcher is gone: the machine ends with the process, at once.
    pub fn run(mut self, control: &mut Control) -> Result<Ending, FrameError> {
        loop {
            if let Some(event) = self.events.take() {
                return Ok(self.stop(ending_of(event)));
            }
            if self.launcher_calls(control) {
                match control.receive()? {
                    ToMachine::Report => control.send(&FromMachine::Report(self.report()))?,
                    ToMachine::AttachNetwork { place, taps, vhosts, interface } => {
                        // They are behind the message whether we want them or not.
                        let ends = control.receive_descriptors(taps.saturating_add(vhosts)).map(|mut taps| {
                            let vhosts = taps.split_off(taps.len().saturating_sub(vhosts));
                            HostEnds { taps, vhosts }
                        });
                        let attach = |places: &mut Places, wires: Wires<'_>, bus: &Bus| {
                            places.attach(place, &interface, ends?, wires, bus)
                        };
                        control.send(&self.change_network(place, attach))?;
                    }
                    ToMachine::DetachNetwork { place } => {
                        control
                            .send(&self.change_network(place, |places, wires, bus| places.detach(place, wires, bus)))?;
                    }
                    ToMachine::Stop => return Ok(self.stop(Ending::Stopped)),
                    // Sent once, first; a second one has no meaning.
                    ToMachine::Boot(_) => log::warn!("the launcher sent a second machine: ignored"),
                }
            }
        }
    }

    /// Waits for the launcher or an event; true when the launcher has something to say, be it only a hang-up.
    fn launcher_calls(&self, control: &Control) -> bool {
        let mut waits = [PollFd::new(control, PollFlags::IN), PollFd::new(&self.events, PollFlags::IN)];
        match poll(&mut waits, None) {
            Ok(_) => !waits[0].revents().is_empty(),
            // A signal for the process: look at what there is.
            Err(Errno::INTR) => false,
            Err(error) => unreachable!("poll on two open descriptors cannot fail otherwise: {error}"),
        }
    }

    /// Changes what is in a place for a network device; the answer for the launcher.
    fn change_network(
        &mut self,
        place: usize,
        change: impl FnOnce(&mut Places, Wires<'_>, &Bus) -> Result<(), PlaceError>,
    ) -> FromMachine {
        let wires = Wires { vm: &self.vm, memory: &self.memory, exits: &self.exits, events: &self.sender };
        let changed = change(&mut self.networks, wires, &self.bus);
        FromMachine::NetworkChanged { place, failure: changed.err().map(|error| chain(&error)) }
    }

    /// Figures of this moment.
    fn report(&self) -> Report {
        Report {
            vcpus: u8::try_from(self.vcpus.len()).expect("at most VCPUS_MAX"),
            marks: self.marks.list(),
            exits: self.exits.total(),
            exits_at_call: self.exits.at_call(),
            kernel_bytes: self.kernel_bytes,
            disk_bytes_read: self.disks.iter().map(|disk| disk.load(Ordering::Relaxed)).collect(),
            memory_touched_bytes: self.memory.touched_bytes(),
            networks: self.networks.report(),
        }
    }

    /// Stops the vCPUs, then the devices, so that the guest's last words are out before its end is told.
    fn stop(self, ending: Ending) -> Ending {
        self.vcpus.iter().for_each(VcpuThread::stop);
        let deadline = Instant::now() + STOP_TIME_MAX;
        let mut running = self.vcpus.len() - usize::from(ending_of_vcpu(&ending));
        while running > 0 {
            match self.events.take_until(deadline) {
                Some(Event::VcpuEnded { .. }) => running -= 1,
                Some(Event::DeviceLost { .. }) => {}
                None => break,
            }
        }
        match self.bus.stop() {
            Ok(stopped) if stopped.recv_timeout(STOP_TIME_MAX).is_ok() => {}
            _ => log::warn!("a device did not stop in time: its last output may be missing"),
        }
        ending
    }
}

/// How the first event decides the machine's end.
fn ending_of(event: Event) -> Ending {
    match event {
        Event::VcpuEnded { end: VcpuEnd::Stopped, .. } => Ending::Stopped,
        Event::VcpuEnded { end: VcpuEnd::Reset, .. } => Ending::GuestReset,
        Event::VcpuEnded { end: VcpuEnd::TripleFault, .. } => Ending::TripleFault,
        Event::VcpuEnded { vcpu, end: VcpuEnd::Fault(message) } => Ending::VcpuFault { vcpu, message },
        Event::DeviceLost { device, message } => Ending::DeviceFault { device, message },
    }
}

/// Whether this end was told by a vCPU that has ended, so that one less is to be waited for.
fn ending_of_vcpu(ending: &Ending) -> bool {
    matches!(ending, Ending::GuestReset | Ending::TripleFault | Ending::VcpuFault { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_decides_how_the_machine_ended() {
        let reset = Event::VcpuEnded { vcpu: 0, end: VcpuEnd::Reset };
        assert_eq!(ending_of(reset), Ending::GuestReset);
        let fault = Event::VcpuEnded { vcpu: 3, end: VcpuEnd::Fault("why".to_owned()) };
        assert_eq!(ending_of(fault), Ending::VcpuFault { vcpu: 3, message: "why".to_owned() });
        let lost = Event::DeviceLost { device: "fs0".to_owned(), message: "gone".to_owned() };
        assert!(!ending_of_vcpu(&ending_of(lost)), "all vCPUs still run");
    }
}
