//! A message of rtnetlink: its kind and its bytes.
//!
//! The usual type for it is an enum of all kinds, and brings the code for every sort of interface, queue and filter there is: hundreds
//! of kilobytes in the memory of every pod. The agent uses five sorts of messages, of which that about interfaces is its own.

use std::convert::Infallible;

use netlink::core::{Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Parseable};

/// What a message is about and does (RTM_*, rtnetlink(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "they are called after what they do")]
pub enum Kind {
    NewLink = 16,
    GetLink = 18,
    SetLink = 19,
    NewAddress = 20,
    DelAddress = 21,
    GetAddress = 22,
    NewRoute = 24,
    DelRoute = 25,
    GetRoute = 26,
    NewNeighbour = 28,
    NewRule = 32,
    GetRule = 34,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    /// Of this kind, with this in it.
    pub fn new(kind: Kind, content: &impl Emitable) -> Self {
        let mut body = vec![0; content.buffer_len()];
        content.emit(&mut body);
        Self { kind: kind as u16, body }
    }

    /// What is in it, if it is of this kind. What cannot be read we have not made.
    pub fn read<T: Parseable<[u8]>>(&self, kind: Kind) -> Option<T> {
        T::parse(&self.body).ok().filter(|_| self.kind == kind as u16)
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.body.len()].copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}
