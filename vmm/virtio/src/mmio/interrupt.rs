//! The way back to the driver: interrupt status bits and the irqfd.

use std::{io, sync::OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::{
    status,
    window::{Shown, Window},
};
use crate::device::Interrupt;

/// InterruptStatus: the device used a buffer.
const USED_BUFFER: u32 = 1;
/// InterruptStatus: the configuration or the status changed.
const CONFIG_CHANGE: u32 = 2;

/// One interrupt line, shared by the transport (vCPU threads) and the device's thread.
pub(super) struct MmioInterrupt {
    line: EventFd,
    window: Window,
    on_lost: OnceLock<OnLost>,
}

/// Called with the cause when the host's part of an active device is lost.
pub type OnLost = Box<dyn Fn(&str) + Send + Sync>;

impl MmioInterrupt {
    pub(super) fn new(line: EventFd, window: Window) -> Self {
        Self { line, window, on_lost: OnceLock::new() }
    }

    /// Sets the hook; only the first one counts.
    pub(super) fn on_lost(&self, hook: OnLost) {
        if self.on_lost.set(hook).is_err() {
            log::debug!("a device's hook for its loss was set already");
        }
    }

    /// The irqfd.
    pub(super) fn line(&self) -> &EventFd {
        &self.line
    }

    /// What the driver wrote to InterruptACK. "Used buffer", once said, stays until a reset: a driver looks into its rings, whatever it has acknowledged.
    /// So nobody need hear of that bit's acknowledgement, which KVM answers by itself
    /// ([`INTERRUPT_ACK_OFFSET`](super::INTERRUPT_ACK_OFFSET)), and who rings the line from another process need not tell us (vhost-user, vhost-net).
    pub(super) fn acknowledge(&self, bits: u32) {
        self.window.clear_bits(Shown::InterruptStatus, bits & CONFIG_CHANGE);
    }

    // The line is rung even when the bit was set before: the driver may be past reading it, and a lost edge is a hung guest.
    fn raise(&self, bit: u32) {
        self.window.set_bits(Shown::InterruptStatus, bit);
        if let Err(error) = self.line.write(1) {
            // Only a counter at its maximum fails, and then the line is rung as loudly as can be.
            log::debug!("the interrupt line was already rung: {error}");
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn signal_queues(&self, indexes: &[u16]) {
        if !indexes.is_empty() {
            self.raise(USED_BUFFER);
        }
    }

    fn signal_config(&self, offset: u32, field: u16) {
        self.window.set_config_field(offset, field);
        let generation = self.window.get(Shown::ConfigGeneration);
        self.window.set(Shown::ConfigGeneration, generation.wrapping_add(1));
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.window.set_bits(Shown::Status, u32::from(status::NEEDS_RESET));
        self.raise(CONFIG_CHANGE);
    }

    fn lost(&self, cause: &str) {
        self.needs_reset();
        if let Some(hook) = self.on_lost.get() {
            hook(cause);
        }
    }

    fn queue_eventfd(&self) -> io::Result<EventFd> {
        self.window.set_bits(Shown::InterruptStatus, USED_BUFFER);
        self.line.try_clone()
    }
}
