//! Virtio devices without KVM.
#![forbid(unsafe_code)]

mod device;

pub use device::{ActivateError, Activation, ActiveQueue, DeviceTraits, Interrupt, VirtioDevice};
