//! Virtio over memory-mapped registers: section 4.2, version 2 of the device only.
//!
//! ```text
//!   vCPU exit -> registers (offset, width -> Register) -> transport --- status   (what the driver may do now)
//!                                                             |-------- queue    (what it said about each queue)
//!   vCPU <- irqfd <----------------- interrupt <--- device's thread
//! ```
//! Once the device is active, everything the driver configured is frozen until a reset; the device owns its copy of the queues.
//! A second transport needs another `registers`, and nothing else of this.

mod interrupt;
mod placeholder;
mod queue;
mod registers;
mod status;
mod transport;

pub use interrupt::OnLost;
pub use placeholder::read_placeholder;
pub use transport::{MmioTransport, TransportEvent};

/// Bytes of address space that a device takes.
pub const WINDOW_LEN: u64 = 0x1000;
/// Offset of QueueNotify, where the machine registers one ioeventfd per queue.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;
