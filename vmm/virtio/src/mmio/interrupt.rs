//! The way back to the driver: interrupt status bits and the irqfd.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use vmm_sys_util::eventfd::EventFd;

use crate::device::Interrupt;

/// InterruptStatus: the device used a buffer.
const USED_BUFFER: u32 = 1;
/// InterruptStatus: the configuration or the status changed.
const CONFIG_CHANGE: u32 = 2;

/// One interrupt line, shared by the transport (vCPU threads) and the device's thread.
pub(super) struct MmioInterrupt {
    line: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    foreign: AtomicBool,
    on_lost: OnceLock<OnLost>,
}

/// Called with the cause when the host's part of an active device is lost.
pub type OnLost = Box<dyn Fn(&str) + Send + Sync>;

impl MmioInterrupt {
    pub(super) fn new(line: EventFd) -> Self {
        Self {
            line,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            foreign: AtomicBool::new(false),
            on_lost: OnceLock::new(),
        }
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

    /// What the driver reads from InterruptStatus.
    pub(super) fn status(&self) -> u32 {
        let foreign = if self.foreign.load(Ordering::SeqCst) { USED_BUFFER } else { 0 };
        self.status.load(Ordering::SeqCst) | foreign
    }

    /// What the driver wrote to InterruptACK.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Differs whenever the configuration space has changed.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether the device has asked for a reset.
    pub(super) fn reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Back to the state after power-on. The device is stopped, so nobody signals meanwhile.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.foreign.store(false, Ordering::SeqCst);
    }

    // The line is rung even when the bit was set before: the driver may be past reading it, and a lost edge is a hung guest.
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
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

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    fn lost(&self, cause: &str) {
        self.needs_reset();
        if let Some(hook) = self.on_lost.get() {
            hook(cause);
        }
    }

    fn queue_eventfd(&self) -> io::Result<EventFd> {
        self.foreign.store(true, Ordering::SeqCst);
        self.line.try_clone()
    }
}
