//! What the host and the agent in the guest say to each other.
//!
//! # The call
//! The agent calls the host; the host never dials. When its mounts are ready the agent connects to
//! host port [`CALL_PORT`], writes one [`Hello`] line, and from then on *serves* ttrpc on that same connection
//! (`proto/agent.proto`): the host is the client. There is one such connection in a machine's life; when it ends, the machine ends.
//!
//! # Streams
//! Bytes of stdio have connections of their own, so that a slow reader holds up its own process only, and vsock's credit is the
//! back-pressure. The agent listens on guest port [`STREAM_PORT`]. The host connects, writes the stream's number as 8 bytes big
//! endian ([`stream_header`]), and from then on the connection *is* that stream, in one direction; a half close is the end of the file.
//! `CreateContainer` and `AddExec` name the streams by number. The host connects a stream before it names it.
//!
//! Numbers of a range of their own ask for a connection to a port of the guest's loopback ([`Forward`]). The agent connects there, says one byte
//! ([`forward::JOINED`]), and joins the two, in both directions, each with its half close; where nobody listens it closes without a word.
//!
//! This crate enforces one rule: both ends are built from the same words.

pub mod forward;
mod hello;
pub mod network;

pub use forward::Forward;
pub use hello::{HELLO_LEN_MAX, Hello, HelloError};

/// Host port that the agent connects to when it is ready.
pub const CALL_PORT: u32 = 1024;
/// Guest port on which the agent accepts streams.
pub const STREAM_PORT: u32 = 1025;
/// Context id of the host (virtio spec 1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;
/// Context id of every guest; each has its own VMM, so one number serves all.
pub const GUEST_CID: u32 = 3;
/// Tag of the pod's shared folder on virtio-fs.
pub const SHARE_TAG: &str = "kata-rs";
/// Where the agent mounts [`SHARE_TAG`].
pub const SHARE_MOUNT_POINT: &str = "/run/kata-rs/share";
/// Version of this conversation; host and agent must agree exactly, as they are shipped together.
pub const PROTOCOL_VERSION: u32 = 1;

/// Stream number that means "no stream": the process gets /dev/null.
pub const NO_STREAM: u64 = 0;

/// First bytes of a stream connection.
pub fn stream_header(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The number in a stream connection's first bytes.
pub fn stream_number(header: [u8; 8]) -> u64 {
    u64::from_be_bytes(header)
}

/// Messages of `proto/agent.proto`.
#[allow(missing_docs, unsafe_code, warnings, clippy::all, clippy::unwrap_used, reason = "generated code")]
#[rustfmt::skip]
pub mod messages {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}
// The generated service looks for its messages under the name of the file.
use messages as agent;

/// Client and service trait of `proto/agent.proto`.
#[allow(missing_docs, unsafe_code, warnings, clippy::all, clippy::unwrap_used, reason = "generated code")]
#[rustfmt::skip]
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
