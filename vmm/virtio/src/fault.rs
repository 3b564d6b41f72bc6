//! Why a device stopped serving its queues before it was told to.

use std::io;

use crate::chain::ChainFault;

/// What ends a device's thread early. The driver sees DEVICE_NEEDS_RESET, whoever is to blame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The driver's ring makes no sense.
    #[error("queue {index}: the driver broke the ring; only a reset of the device helps")]
    Ring {
        index: u16,
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver's descriptor chain makes no sense.
    #[error("queue {index}: the driver offered a broken descriptor chain; only a reset of the device helps")]
    Chain {
        index: u16,
        #[source]
        source: ChainFault,
    },
    /// The host's kernel refused something the device needs.
    #[error("{operation} failed on the host")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Fault {
    /// For `map_err`: names the operation that failed.
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}
