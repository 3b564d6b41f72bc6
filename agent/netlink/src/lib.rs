//! A blocking conversation with the kernel about links, addresses, routes, neighbours, rules and filters (rtnetlink).
//!
//! Both ends of a pod's network use it: the pod's host side reads what a plugin made and joins it to the machine, the agent makes the same in the guest.
//! The messages are those of `netlink-packet-route`, passed on here as [`packet`], so that both ends have one version of them.
//!
//! - [`Socket`] asks and is answered: [`change`](Socket::change) one thing, or [`dump`](Socket::dump) all of a kind.
//! - [`Listener`] hears of changes that others make.
//! - [`Link`] is an interface in few words.
//! - [`NetlinkError`] says what the kernel said, with its own sentence where it has one.
//!
//! # Which network namespace
//! A socket speaks with the namespace in which the thread that opens it is, for all of its life, whatever thread uses it then.
//!
//! # What is deliberately absent
//! No runtime and no task: a conversation takes microseconds, and who has it is a thread in a namespace, or PID 1 while it boots. No caching either: the
//! kernel is asked each time.
#![forbid(unsafe_code)]

mod error;
mod link;
mod listener;
mod reply;
mod socket;

#[cfg(test)]
mod own_namespace;

pub use error::NetlinkError;
pub use link::Link;
pub use listener::{Group, Listener, News};
pub use netlink_packet_core as core;
pub use netlink_packet_route as packet;
pub use socket::{Message, Socket};

/// Result of a conversation.
pub type Result<T> = std::result::Result<T, NetlinkError>;
