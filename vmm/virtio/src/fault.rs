//! Why a device stopped serving its queues before it was told to.

use std::{error::Error, io};

use crate::chain::ChainFault;

/// What ends a device's thread early. The driver sees DEVICE_NEEDS_RESET, whoever is to blame; the machine is told when the host is.
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
    /// The host's kernel serves the queues, and cannot make sense of one.
    #[error("a queue that vhost-net serves: the driver broke it; only a reset of the device helps")]
    Vhost,
    /// The host's kernel refused something the device needs.
    #[error("{operation} failed on the host")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    /// The process that serves the device's files has left.
    #[error("the file server of share {tag} is gone: see its log")]
    Server { tag: String },
}

impl Fault {
    /// Whether the host is to blame: then no reset by the guest helps, and the machine is of no use any more.
    pub(crate) fn is_the_hosts(&self) -> bool {
        match self {
            Self::Ring { .. } | Self::Chain { .. } | Self::Vhost => false,
            Self::Io { .. } | Self::Server { .. } => true,
        }
    }

    /// For `map_err`: names the operation that failed.
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
