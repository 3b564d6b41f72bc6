//! Where a guest's access to a port, or its write to a device register, ends up. Registers are read as memory (`vmm_virtio::mmio::Window`).

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmm_boot::{MMIO_SLOT_LEN, MMIO_START};
use vmm_virtio::{MmioTransport, TransportEvent};

use crate::{
    event::{Event, EventSender},
    marks::Marks,
    ports::{PortEvent, Ports},
};

/// Ports and device registers of one machine, shared by its vCPUs.
pub struct Bus {
    ports: Mutex<Ports>,
    slots: Vec<Mutex<Option<MmioTransport>>>,
    marks: Marks,
    events: EventSender,
}

impl Bus {
    /// The devices lie in slots in this order; some slots are empty.
    pub fn new(ports: Ports, devices: Vec<Option<MmioTransport>>, marks: Marks, events: EventSender) -> Self {
        devices.iter().flatten().for_each(MmioTransport::publish);
        let slots = devices.into_iter().map(Mutex::new).collect();
        Self { ports: Mutex::new(ports), slots, marks, events }
    }

    /// A port is read.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        lock(&self.ports).read(port, data);
    }

    /// A port is written.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<PortEvent> {
        lock(&self.ports).write(port, data)
    }

    /// A register is written, or an address without memory. Where no device is, nothing happens.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.slot(address) else { return };
        let mut device = lock(slot);
        let Some(transport) = &mut *device else { return };
        let event = transport.write(offset, data);
        let Some(event) = event else { return };
        let name = transport.device_traits().name.clone();
        drop(device);
        match event {
            TransportEvent::DriverOk => self.marks.note(&format!("{name} driver ok")),
            TransportEvent::Reset => {}
            TransportEvent::Failed => self.events.send(Event::DeviceLost {
                device: name,
                message: "it could not start, or the guest's driver gave up on it: see the lines before".to_owned(),
            }),
        }
    }

    /// Puts a device into a slot, or nothing; what was there comes back, still running.
    pub fn replace(&self, slot: usize, device: Option<MmioTransport>) -> Option<MmioTransport> {
        let mut place = lock(self.slots.get(slot)?);
        let before = std::mem::replace(&mut *place, device);
        place.iter().for_each(MmioTransport::publish);
        before
    }

    fn slot(&self, address: u64) -> Option<(&Mutex<Option<MmioTransport>>, u64)> {
        let from_start = address.checked_sub(MMIO_START)?;
        let slot = self.slots.get(usize::try_from(from_start / MMIO_SLOT_LEN).ok()?)?;
        Some((slot, from_start % MMIO_SLOT_LEN))
    }

    /// Stops all devices, and brings out what the guest wrote last. On a thread of its own, since a device may wait for its server;
    /// the returned channel tells when all are stopped.
    pub fn stop(self: Arc<Self>) -> io::Result<std::sync::mpsc::Receiver<()>> {
        let (done, stopped) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
            lock(&self.ports).flush();
            self.slots.iter().for_each(|slot| drop(lock(slot).as_mut().map(MmioTransport::stop)));
            // Nobody may be waiting any more.
            let _ = done.send(());
        })?;
        Ok(stopped)
    }
}

/// A panic ends the process (`panic = abort`), so that no lock is ever poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
