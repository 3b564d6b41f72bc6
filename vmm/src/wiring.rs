//! A device in its slot: its registers on the bus and in memory, its interrupt line, its notifications.

use std::io;

use vmm_boot::DeviceSlot;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_virtio::{
    MmioTransport, VirtioDevice,
    mmio::{INTERRUPT_ACK_OFFSET, INTERRUPT_ACK_VALUE, QUEUE_NOTIFY_OFFSET, Window},
};

use crate::{
    event::{Event, EventSender},
    exits::Exits,
    kvm::{KvmError, Vm},
    memory::Memory,
};

/// Why a device is not connected.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// KVM said no.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No descriptor to be had.
    #[error("eventfd failed: are the limits of the pod's cgroup or of open files too low?")]
    Descriptors(#[from] io::Error),
}

/// What devices are connected to.
#[derive(Clone, Copy)]
pub struct Wires<'a> {
    /// For its interrupt and its notifications.
    pub vm: &'a Vm,
    /// For its queues, and for the page of its registers.
    pub memory: &'a Memory,
    /// For the acknowledgements of its interrupts.
    pub exits: &'a Exits,
    /// For its loss.
    pub events: &'a EventSender,
}

impl Wires<'_> {
    /// Connects a device. The machine ends when the host's part of it is lost.
    pub fn connect(&self, device: Box<dyn VirtioDevice>, slot: DeviceSlot) -> Result<MmioTransport, WiringError> {
        let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let window = self.empty(slot)?;
        let mut transport = MmioTransport::new(device, self.memory.mapped().clone(), interrupt, window)?;
        if let Err(error) = self.join(&transport, slot) {
            // The slot is to be good for another try; what was not made cannot be taken back, which is no further error.
            let _ = self.disconnect(&transport, slot);
            return Err(error.into());
        }
        report_loss(&mut transport, self.events.clone());
        Ok(transport)
    }

    /// The registers of a slot, in which the guest finds a placeholder.
    pub fn empty(&self, slot: DeviceSlot) -> io::Result<Window> {
        Window::new(self.memory.registers().clone(), slot.address)
    }

    fn join(&self, transport: &MmioTransport, slot: DeviceSlot) -> Result<(), KvmError> {
        self.vm.connect_interrupt(transport.irq(), slot.line)?;
        written(transport, self.exits, slot)
            .try_for_each(|(event, address, value)| self.vm.connect_notification(event, address, value))
    }

    /// Disconnects it, so that the slot is as if it had never been there.
    pub fn disconnect(&self, transport: &MmioTransport, slot: DeviceSlot) -> Result<(), WiringError> {
        // Each by itself: one that fails keeps no other.
        let ends: Vec<_> = written(transport, self.exits, slot)
            .map(|(event, address, value)| self.vm.disconnect_notification(event, address, value))
            .collect();
        let line = self.vm.disconnect_interrupt(transport.irq(), slot.line);
        Ok(ends.into_iter().chain([line]).collect::<Result<(), _>>()?)
    }
}

/// The writes of a driver that KVM answers by itself: what it rings for each, the register's address, and the value.
fn written<'a>(
    transport: &'a MmioTransport,
    exits: &'a Exits,
    slot: DeviceSlot,
) -> impl Iterator<Item = (&'a EventFd, u64, u32)> {
    let kicks = (0u32..).zip(transport.notify_eventfds());
    let kicks = kicks.map(move |(queue, event)| (event, slot.address + QUEUE_NOTIFY_OFFSET, queue));
    kicks.chain([(exits.acknowledgements(), slot.address + INTERRUPT_ACK_OFFSET, INTERRUPT_ACK_VALUE)])
}

/// Ends the machine, with the device's name and the cause, when the host's part of this device is lost: the guest cannot get it back.
fn report_loss(transport: &mut MmioTransport, events: EventSender) {
    let device = transport.device_traits().name.clone();
    transport.on_lost(Box::new(move |cause| {
        events.send(Event::DeviceLost { device: device.clone(), message: cause.to_owned() });
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vm_memory::{GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::EventFd;
    use vmm_virtio::{ActivateError, Activation, DeviceTraits, Interrupt, QueueState, VirtioDevice};

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
        let pages = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
        let window = Window::new(pages, 0).expect("a page");
        let device = Box::new(Probe(Arc::clone(&way_back)));
        let mut transport = MmioTransport::new(device, memory, line, window).expect("new");
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
