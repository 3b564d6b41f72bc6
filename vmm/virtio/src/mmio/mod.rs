//! Virtio over memory-mapped registers: section 4.2, version 2 of the device only.
//!
//! ```text
//!   write: vCPU exit -> registers (offset, width -> Register) -> transport --- status   (what the driver may do now)
//!                                                                 |   |------- queue    (what it said about each queue)
//!   read: no exit, memory <------- window <-----------------------|
//!                                    |
//!   vCPU <- irqfd <------------- interrupt <--- device's thread
//! ```
//! Once the device is active, everything the driver configured is frozen until a reset; the device owns its copy of the queues.
//! A second transport needs another `registers`, and nothing else of this.

mod interrupt;
mod queue;
mod registers;
mod status;
mod transport;
mod window;

pub use interrupt::OnLost;
pub use transport::{MmioTransport, TransportEvent};
pub use window::Window;

/// Bytes of address space that a device takes.
pub const WINDOW_LEN: u64 = 0x1000;
/// Offset of QueueNotify, where the machine registers one ioeventfd per queue.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;
/// Offset of InterruptACK, where the machine registers an ioeventfd for [`INTERRUPT_ACK_VALUE`].
pub const INTERRUPT_ACK_OFFSET: u64 = 0x64;
/// The acknowledgement of used buffers alone, of which the device need not hear.
pub const INTERRUPT_ACK_VALUE: u32 = 1;
