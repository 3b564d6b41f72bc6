//! One virtio device, as the transport sees it.
//!
//! A device has two lives. While the driver configures it, the transport owns its queues and registers, and the device only answers
//! for its configuration space. [`VirtioDevice::activate`] moves the queues into the device, which then serves them on a thread of its own.
//! [`VirtioDevice::stop`] ends that thread and gives the queues back as state. Reset, pause, save and restore are all that same pair.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// What a device is, before any driver has spoken to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTraits {
    /// Device type of the virtio spec 1.2, section 5: 2 is block, 3 console, 4 entropy, 19 vsock, 26 file system.
    pub device_type: u32,
    /// Features offered, VIRTIO_F_VERSION_1 included.
    pub features: u64,
    /// Largest size of each queue, a power of two.
    pub queue_sizes: Vec<u16>,
    /// Bytes of configuration space; reads beyond are zero.
    pub config_len: u32,
    /// Name for threads and logs, at most 12 bytes: `blk0`, `vsock`, `rng`.
    pub name: String,
}

/// How a device tells the driver that there is something to look at.
pub trait Interrupt: Send + Sync {
    /// Used buffers in queue `index`.
    fn signal_queue(&self, index: u16);
    /// Used buffers in several queues at once. A transport with one interrupt line overrides this to ring it once.
    fn signal_queues(&self, indexes: &[u16]) {
        for index in indexes {
            self.signal_queue(*index);
        }
    }
    /// The configuration space has changed: at `offset`, which is even, it has this field from now on. It changes at once, so that no driver sees
    /// half of it, whether it looks at ConfigGeneration or not (section 2.5.1).
    fn signal_config(&self, offset: u32, field: u16);
    /// The driver broke the rules: DEVICE_NEEDS_RESET, and a configuration interrupt.
    fn needs_reset(&self);
    /// The host's part of the device is lost, for this cause: the same for the driver, and the machine's owner is told.
    fn lost(&self, cause: &str);
    /// An eventfd that a foreign process may write to signal used buffers (vhost-user), or the host's kernel (vhost-net). From this call on the transport
    /// reports "used buffer" on every read of the interrupt status, as it cannot know when somebody else wrote.
    fn queue_eventfd(&self) -> io::Result<EventFd>;
}

/// A queue that the driver has set up, with the eventfd by which it kicks.
pub struct ActiveQueue {
    /// Addresses, size and positions; valid and ready.
    pub queue: Queue,
    /// Readable after the driver wrote QueueNotify.
    pub kick: EventFd,
}

impl ActiveQueue {
    /// Positions of a queue that somebody else has served: they say how far they have read, and the ring says how far they have written.
    pub(crate) fn left_at(self, next_avail: Option<u16>, memory: &GuestMemoryMmap) -> QueueState {
        let mut queue = self.queue;
        if let Ok(used) = queue.used_idx(memory, Ordering::Acquire) {
            queue.set_next_used(used.0);
        }
        if let Some(position) = next_avail {
            queue.set_next_avail(position);
        }
        queue.state()
    }
}

/// All that a device needs to serve its queues.
pub struct Activation {
    /// Guest memory. Never borrowed as `&[u8]`.
    pub memory: GuestMemoryMmap,
    /// Features that both sides agreed on.
    pub features: u64,
    /// All queues, in the order of [`DeviceTraits::queue_sizes`].
    pub queues: Vec<ActiveQueue>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// Why a device could not start to serve.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// No thread to be had.
    #[error("device {device}: its thread could not start: is the pids limit of the pod's cgroup too low?")]
    Thread {
        /// The device's name.
        device: String,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// An eventfd, epoll or file operation failed.
    #[error("device {device}: {operation} failed")]
    Io {
        /// The device's name.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The device's server (vhost-user) refused or went away.
    #[error("device {device}: its server said no: {message}")]
    Server {
        /// The device's name.
        device: String,
        /// What the server said.
        message: String,
    },
}

/// One virtio device. See the module's text for its two lives.
pub trait VirtioDevice: Send {
    /// Constant for the device's whole life.
    fn traits(&self) -> DeviceTraits;
    /// Reads configuration space; called on a stopped device. Bytes beyond its end are zero. What changes while it serves is told by
    /// [`Interrupt::signal_config`].
    fn read_config(&self, offset: u32, data: &mut [u8]);
    /// Writes configuration space; called in any state. What is not writable is ignored.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// The driver set DRIVER_OK: serve these queues. Called only on a stopped device.
    fn activate(&mut self, with: Activation) -> Result<(), ActivateError>;
    /// Stops serving and joins the thread; the queues' positions come back. Idempotent: a stopped device returns an empty list.
    fn stop(&mut self) -> Vec<QueueState>;
}
