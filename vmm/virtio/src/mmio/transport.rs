//! The registers of one device and the life behind them.

use std::{io, sync::Arc};

use virtio_bindings::bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    interrupt::{MmioInterrupt, OnLost},
    queue::QueueRegisters,
    registers::Register,
    status::{self, Step},
    window::{Shown, Window},
};
use crate::{
    device::{Activation, ActiveQueue, DeviceTraits, Interrupt, VirtioDevice},
    fault::with_causes,
    log_limit::warn_limited,
};

/// "krs1", little-endian. Means nothing to drivers.
const VENDOR: u32 = 0x3173_726b;
/// Length and base of a shared memory region that does not exist (section 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// What a write by the driver has led to, for boot marks and for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportEvent {
    /// The driver set DRIVER_OK and the device serves.
    DriverOk,
    /// The driver reset the device; it is stopped.
    Reset,
    /// The driver gave up (FAILED), or the device could not start (DEVICE_NEEDS_RESET).
    Failed,
}

/// One virtio-mmio device. Calls come from vCPU threads, one at a time; the driver's reads do not come here, but go to the window's page.
pub struct MmioTransport {
    window: Window,
    device: Box<dyn VirtioDevice>,
    traits: DeviceTraits,
    memory: GuestMemoryMmap,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<EventFd>,
    status: u8,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
}

impl MmioTransport {
    /// Wraps a device; the window shows a placeholder until [`Self::publish`]. `irq` is the irqfd that the machine registered with KVM; interrupts are edges.
    ///
    /// Fails when the kernel has no more eventfds for this process.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        irq: EventFd,
        window: Window,
    ) -> io::Result<Self> {
        let traits = device.traits();
        let kicks = traits.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC));
        let transport = Self {
            kicks: kicks.collect::<io::Result<_>>()?,
            queues: traits.queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
            device,
            traits,
            memory,
            interrupt: Arc::new(MmioInterrupt::new(irq, window.clone())),
            window,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        };
        transport.show_constants();
        transport.show_power_on();
        Ok(transport)
    }

    /// From now on a driver that looks sees the device, and not the placeholder. Comes after all that the driver's writes need.
    pub fn publish(&self) {
        self.window.set(Shown::DeviceType, self.traits.device_type);
    }

    fn show_constants(&self) {
        self.window.set(Shown::Vendor, VENDOR);
        let region = [
            Shown::SharedMemoryLenLow,
            Shown::SharedMemoryLenHigh,
            Shown::SharedMemoryBaseLow,
            Shown::SharedMemoryBaseHigh,
        ];
        region.into_iter().for_each(|register| self.window.set(register, NO_SHARED_MEMORY));
    }

    /// What changes in a device's life, as after power-on.
    fn show_power_on(&self) {
        self.window.set(Shown::Status, 0);
        self.window.set(Shown::InterruptStatus, 0);
        let mut config = vec![0; usize::try_from(self.traits.config_len).unwrap_or(0)];
        self.device.read_config(0, &mut config);
        self.window.set_config(&config);
        self.show_selected();
    }

    /// The registers that depend on what the driver has written before.
    fn show_selected(&self) {
        let queue = self.queues.get(usize::try_from(self.queue_select).unwrap_or(usize::MAX));
        self.window.set(Shown::DeviceFeatures, word(self.traits.features, self.device_features_select));
        self.window.set(Shown::QueueSizeMax, queue.map_or(0, |queue| u32::from(queue.size_max())));
        self.window.set(Shown::QueueReady, queue.map_or(0, |queue| u32::from(queue.ready())));
    }

    /// What the device is.
    pub fn device_traits(&self) -> &DeviceTraits {
        &self.traits
    }

    /// The irqfd by which the device interrupts the guest.
    pub fn irq(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// The eventfd by which the driver kicks queue `queue_index`; `None` when there is no such queue. The machine registers it as ioeventfd at
    /// [`QUEUE_NOTIFY_OFFSET`](super::QUEUE_NOTIFY_OFFSET), four bytes, matching the value `queue_index`.
    pub fn notify_eventfd(&self, queue_index: u16) -> Option<&EventFd> {
        self.kicks.get(usize::from(queue_index))
    }

    /// All of them, in the order of the queues.
    pub fn notify_eventfds(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Calls `hook` with the cause when the device cannot serve for the host's sake: the kernel refused something, or a server went away.
    /// The call comes from the device's thread, or from a vCPU's when the device does not even start. Set it before the guest runs.
    /// What the driver does wrong is not told here: the driver sees DEVICE_NEEDS_RESET, and that is all.
    pub fn on_lost(&mut self, hook: OnLost) {
        self.interrupt.on_lost(hook);
    }

    /// Stops the device, as at the machine's end. The queues' positions come back; empty when it did not run.
    pub fn stop(&mut self) -> Vec<QueueState> {
        self.device.stop()
    }

    /// The driver writes `data` at `offset` of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<TransportEvent> {
        match Register::decode(offset, data.len()) {
            Register::Config { offset } => {
                self.write_config(offset, data);
                None
            }
            Register::Nothing => None,
            Register::Status => self.write_status(u32::from_le_bytes(data.try_into().ok()?)),
            register => {
                self.write_register(register, u32::from_le_bytes(data.try_into().ok()?));
                self.show_selected();
                None
            }
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        if offset < self.traits.config_len && self.status & (status::DRIVER | status::FAILED) == status::DRIVER {
            self.device.write_config(offset, data);
        }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        match register {
            Register::DeviceFeaturesSelect => self.device_features_select = value,
            Register::DriverFeaturesSelect => self.driver_features_select = value,
            Register::QueueSelect => self.queue_select = value,
            Register::DriverFeatures => self.choose_features(value),
            Register::QueueNotify => self.notify(value),
            Register::InterruptAcknowledge => self.interrupt.acknowledge(value),
            Register::QueueSize | Register::QueueReady | Register::QueueAddress(..) => {
                self.write_queue(register, value);
            }
            // Handled by the caller.
            Register::Status | Register::Config { .. } | Register::Nothing => (),
        }
    }

    fn choose_features(&mut self, value: u32) {
        if !status::features_open(self.status) {
            return;
        }
        match self.driver_features_select {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | u64::from(value),
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (u64::from(value) << 32),
            _ => (),
        }
    }

    fn write_queue(&mut self, register: Register, value: u32) {
        if !status::queues_open(self.status) {
            return;
        }
        let selected = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(selected) else { return };
        match register {
            Register::QueueSize => queue.set_size(value),
            Register::QueueAddress(ring, half) => queue.set_address(ring, half, value),
            Register::QueueReady => {
                if let Err(fault) = queue.set_ready(value, &self.memory) {
                    warn_limited!("device {}: queue {selected} is refused: {fault}", self.traits.name);
                }
            }
            _ => (),
        }
    }

    // Kicks come as ioeventfd; a write that still arrives here came before the machine registered it, or has a strange value.
    fn notify(&self, value: u32) {
        if !status::live(self.status) {
            return;
        }
        let kick = usize::try_from(value).ok().and_then(|index| self.kicks.get(index));
        if let Some(Err(error)) = kick.map(|kick| kick.write(1)) {
            log::debug!("device {}: queue {value} was already kicked: {error}", self.traits.name);
        }
    }

    fn write_status(&mut self, written: u32) -> Option<TransportEvent> {
        match status::step(self.status, written) {
            Step::Reset => {
                self.reset();
                Some(TransportEvent::Reset)
            }
            Step::To(next) => {
                self.set_status(next);
                None
            }
            Step::Features(next) => {
                self.judge_features(next);
                None
            }
            Step::Activate(next) => Some(self.activate(next)),
            Step::Failed(next) => {
                self.set_status(next);
                warn_limited!("device {}: the driver gave up on it", self.traits.name);
                Some(TransportEvent::Failed)
            }
            Step::Same => None,
            Step::Illegal => {
                warn_limited!("device {}: status {:#x} may not become {written:#x}", self.traits.name, self.status);
                None
            }
        }
    }

    // A refused FEATURES_OK is simply not set; the driver reads the field back to learn of it (section 3.1.1).
    fn judge_features(&mut self, next: u8) {
        let chosen = self.driver_features;
        if chosen & !self.traits.features == 0 && chosen & (1 << VIRTIO_F_VERSION_1) != 0 {
            self.set_status(next);
        } else {
            warn_limited!("device {}: features {chosen:#x} are refused", self.traits.name);
        }
    }

    // But for a reset the field only grows, and DEVICE_NEEDS_RESET is set in the window by the device's thread.
    fn set_status(&mut self, next: u8) {
        self.status = next;
        self.window.set_bits(Shown::Status, u32::from(next));
    }

    fn activate(&mut self, next: u8) -> TransportEvent {
        self.set_status(next);
        let activated = self.activation().and_then(|with| Ok(self.device.activate(with)?));
        match activated {
            Ok(()) => TransportEvent::DriverOk,
            Err(error) => {
                let cause = format!("it does not start: {}", with_causes(&*error));
                warn_limited!("device {}: {cause}", self.traits.name);
                self.interrupt.lost(&cause);
                TransportEvent::Failed
            }
        }
    }

    fn activation(&self) -> Result<Activation, Box<dyn std::error::Error>> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (registers, kick) in self.queues.iter().zip(&self.kicks) {
            queues.push(ActiveQueue { queue: registers.build(&self.memory, event_idx)?, kick: kick.try_clone()? });
        }
        Ok(Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        })
    }

    fn reset(&mut self) {
        // From here on nobody else writes to the window.
        self.device.stop();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues = self.traits.queue_sizes.iter().copied().map(QueueRegisters::new).collect();
        self.show_power_on();
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.stop();
        self.window.vacate();
    }
}

/// The 32 bits of `features` that `select` names; there are only two such words.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
