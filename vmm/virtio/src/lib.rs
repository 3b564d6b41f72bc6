//! Virtio devices and the MMIO transport, without KVM and without unsafe code.
//!
//! The guest is hostile from its first instruction, and this crate is the part of the VMM that reads what it wrote. The rules:
//! * Registers are decoded in one pure place, and what is configured cannot be changed under a device that runs ([`mmio`]).
//! * Descriptor chains are copied once and checked whole before a byte moves; each chain is completed at most once.
//! * A header is copied once into an owned value. Guest memory is never borrowed as a slice and never read twice for one decision.
//! * What a guest does wrong ends in DEVICE_NEEDS_RESET or an error status and a rate-limited line in the log; never in a panic.
//! * An active device is one thread with one wait. Nobody else touches its queues until [`VirtioDevice::stop`] has joined it.
//!
//! Numbers in comments such as "section 2.7.4" are sections of the Virtual I/O Device specification, version 1.2.
#![forbid(unsafe_code)]
// A guest must find nothing that panics; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::expect_used, clippy::panic, clippy::unreachable, clippy::string_slice)
)]

mod answer;
pub mod block;
mod chain;
mod config;
pub mod console;
mod device;
#[cfg(test)]
mod driver;
mod events;
mod fault;
mod finished;
mod fs;
mod log_limit;
pub mod mmio;
mod net;
mod rng;
mod served_queue;
mod timer;
mod vsock;
mod worker;

pub use block::{Block, BlockBackend, FileBackend};
pub use console::{Console, ConsoleTail};
pub use device::{ActivateError, Activation, ActiveQueue, DeviceTraits, Interrupt, VirtioDevice};
pub use fs::VhostUserFs;
pub use mmio::{MmioTransport, TransportEvent};
pub use net::{
    Bucket, Counter, Net, NetBackend, NetConfig, NetCounters, Offloads, RateLimit, VhostPair, VhostQueues, VhostRing,
};
pub use rng::Rng;
/// What [`VirtioDevice::stop`] gives back.
pub use virtio_queue::QueueState;
pub use vsock::{OnGuestCall, Vsock};
