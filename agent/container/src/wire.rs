//! The conversation between the agent and its stage, over one SOCK_SEQPACKET pair.
//!
//! ```text
//!   agent                                   stage            the newborn
//!     | Order (memfd) + stdio + cgroup ------>|                  |
//!     |                                       |-- clone3 ------->|
//!     |<------------- Born {pid} + pidfd -----| exits            | steps ...
//!     |<------------- Ready (+ terminal) ------------------------| at the gate
//!     | Start --------------------------------------------------->| execve
//!     |<------------- end of stream: the program runs -----------|
//!     |<------------- Failed {step, ...} ------------------------|  (in place of Ready or of the end of stream)
//! ```
//! Born and Ready come from two processes, so in any order.

use crate::plan::Namespace;
use crate::steps::{Failure, Step};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Longest packet: a report whose texts are cut to what a message needs.
const MAX_PACKET: usize = 64 * 1024;
/// Most descriptors in one packet: order, cgroup, target, and three of stdio.
const MAX_FDS: usize = 6;

/// Everything a stage is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub birth: Birth,
    pub steps: Vec<Step>,
}

/// Into what the new process is born.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// Namespaces joined by path before.
    pub join: Vec<(Namespace, PathBuf)>,
    /// Namespaces of the target process that are joined before, all at once.
    pub join_target: bool,
    /// Namespaces made.
    pub new: Vec<Namespace>,
}

/// What a descriptor that comes with an order is for. The packet is one of these per descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    Order = b'o',
    Cgroup = b'c',
    Target = b't',
    Stdin = b'0',
    Stdout = b'1',
    Stderr = b'2',
}

/// What a stage answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    Born { pid: u32 },
    Ready,
    Failed(Failure),
}

/// The packet that opens the gate.
pub const START: &[u8] = b"start";

/// Sends one packet.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one packet; None at the end of the stream.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // No packet of this conversation is empty, so nothing received is the end.
    Ok((received.bytes != 0).then_some((bytes, fds)))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

impl Report {
    pub fn send(&self, socket: BorrowedFd<'_>, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(socket, &serde_json::to_vec(self)?, fd.as_slice())
    }
}

impl Order {
    /// An order can be as long as the arguments of a program, so it travels in a file.
    pub fn to_file(&self) -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("order", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = File::from(fd);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file.into())
    }

    pub fn from_file(fd: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::from(fd).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Sends the order with what goes along.
    pub fn send(&self, socket: BorrowedFd<'_>, others: &[(Role, BorrowedFd<'_>)]) -> io::Result<()> {
        let file = self.to_file()?;
        let all = [(Role::Order, file.as_fd())].into_iter().chain(others.iter().copied());
        let (roles, fds): (Vec<u8>, Vec<_>) = all.map(|(role, fd)| (role as u8, fd)).unzip();
        send(socket, &roles, &fds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair")
    }

    #[test]
    fn an_order_of_a_megabyte_arrives_whole_with_its_descriptors() {
        let (agent, stage) = pair();
        let order = Order { birth: Birth::default(), steps: vec![Step::Hostname("x".repeat(1 << 20))] };
        order.send(agent.as_fd(), &[(Role::Stdin, agent.as_fd())]).expect("sent");
        let (roles, mut fds) = receive(stage.as_fd()).expect("received").expect("not the end");
        assert_eq!(roles, [Role::Order as u8, Role::Stdin as u8]);
        assert_eq!(fds.len(), 2);
        let back = Order::from_file(fds.remove(0)).expect("read");
        assert!(matches!(&back.steps[0], Step::Hostname(name) if name.len() == 1 << 20));
    }

    #[test]
    fn the_end_of_the_stream_is_none() {
        let (agent, stage) = pair();
        drop(agent);
        assert!(receive(stage.as_fd()).expect("received").is_none());
    }
}
