//! Asks the kernel and waits for its answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use nix::{libc, setsockopt_impl, sys::socket::setsockopt};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
        recvfrom, sendto, socket_with,
    },
};

use crate::{
    NetlinkError, Result,
    reply::{self, Reply},
};

/// Longest datagram that is read. The kernel fills them up to 32 KiB, and goes beyond only for an interface with hundreds of virtual functions.
const DATAGRAM_LEN_MAX: usize = 128 << 10;
/// How often a list is read that changes under the reading.
const READINGS_MAX: usize = 10;
/// The kernel's own address.
const KERNEL: u32 = 0;

setsockopt_impl!(SentencesWanted, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool, nix::sys::socket::sockopt::SetBool);
setsockopt_impl!(EchoUnwanted, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool, nix::sys::socket::sockopt::SetBool);

#[derive(Clone)]
struct SentencesWanted;
#[derive(Clone)]
struct EchoUnwanted;

/// What is asked and answered: [`packet::RouteNetlinkMessage`](crate::packet::RouteNetlinkMessage), or for who must be small a type of one's own,
/// since that one brings the code for all messages there are.
pub trait Message: NetlinkSerializable + NetlinkDeserializable + Clone {}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone> Message for M {}

/// One conversation. Every question waits for its answer.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a conversation with the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no rtnetlink, or there are no descriptors left.
    pub fn open() -> Result<Self> {
        Self::open_with(0)
    }

    /// The same, in these multicast groups.
    pub(crate) fn open_with(groups: u32) -> Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(failed("be opened"))?;
        // Kernels before 4.12 have neither: they answer without sentences, and with an echo that is skipped.
        let _ = setsockopt(&fd, SentencesWanted, &true);
        let _ = setsockopt(&fd, EchoUnwanted, &true);
        bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(failed("be bound"))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM_LEN_MAX] })
    }

    /// Has the kernel change something, and waits until it is done. `flags` are `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn change<M: Message>(&mut self, message: M, flags: u16) -> Result<()> {
        self.ask(message, NLM_F_ACK | flags)?;
        loop {
            for reply in self.receive::<M>()?.0 {
                match reply {
                    Reply::End => return Ok(()),
                    Reply::Refused(refusal) => return Err(refusal),
                    Reply::Item(_) => {}
                }
            }
        }
    }

    /// Lists all of the kind that the message asks for. A list that changed under the reading is read again.
    ///
    /// # Errors
    /// The kernel refuses, or the list does not hold still.
    pub fn dump<M: Message>(&mut self, message: M) -> Result<Vec<M>> {
        for _ in 0..READINGS_MAX {
            let (list, interrupted) = self.read_list(message.clone())?;
            if !interrupted {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unsteady(READINGS_MAX))
    }

    fn read_list<M: Message>(&mut self, message: M) -> Result<(Vec<M>, bool)> {
        self.ask(message, NLM_F_DUMP)?;
        let mut list = Vec::new();
        let mut interrupted = false;
        loop {
            let (replies, changed) = self.receive()?;
            interrupted |= changed;
            for reply in replies {
                match reply {
                    Reply::Item(item) => list.push(item),
                    Reply::End => return Ok((list, interrupted)),
                    Reply::Refused(refusal) => return Err(refusal),
                }
            }
        }
    }

    fn ask<M: Message>(&mut self, message: M, flags: u16) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut question = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        let kernel = SocketAddrNetlink::new(KERNEL, 0);
        sendto(&self.fd, &bytes, SendFlags::empty(), &kernel).map(drop).map_err(failed("send"))
    }

    /// What the kernel answers to the last question.
    fn receive<M: Message>(&mut self) -> Result<(Vec<Reply<M>>, bool)> {
        let len = self.receive_datagram(RecvFlags::empty()).map_err(failed("receive"))?;
        reply::read(&self.buffer[..len], Some(self.sequence))
    }

    /// Whatever comes, for a listener.
    pub(crate) fn overhear<M: Message>(&mut self, how: RecvFlags) -> std::result::Result<Result<Vec<Reply<M>>>, Errno> {
        let len = self.receive_datagram(how)?;
        Ok(reply::read(&self.buffer[..len], None).map(|(replies, _)| replies))
    }

    /// The next datagram of the kernel. Anybody may write to a netlink socket; nobody else is listened to.
    fn receive_datagram(&mut self, how: RecvFlags) -> std::result::Result<usize, Errno> {
        loop {
            match recvfrom(&self.fd, self.buffer.as_mut_slice(), how | RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok((_, _, sender)) if !is_kernel(sender.as_ref()) => {}
                Ok((len, whole_len, _)) if whole_len > len => return Err(Errno::MSGSIZE),
                Ok((len, ..)) => return Ok(len),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_kernel(sender: Option<&SocketAddrAny>) -> bool {
    sender
        .and_then(|sender| SocketAddrNetlink::try_from(sender.clone()).ok())
        .is_some_and(|sender| sender.pid() == KERNEL)
}

pub(crate) fn failed(doing: &'static str) -> impl Fn(Errno) -> NetlinkError {
    move |errno| NetlinkError::Socket { doing, errno }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkFlags, LinkMessage},
        route::{RouteAttribute, RouteMessage},
    };

    use super::*;
    use crate::own_namespace;

    const LO: u32 = 1;

    fn lo_up() -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = LO;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        RouteNetlinkMessage::SetLink(message)
    }

    fn address(last: u8) -> RouteNetlinkMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = LO;
        message.header.prefix_len = 32;
        message.attributes.push(AddressAttribute::Local(Ipv4Addr::new(10, 0, 0, last).into()));
        RouteNetlinkMessage::NewAddress(message)
    }

    #[test]
    fn needs_root_a_change_is_done_when_it_returns() {
        own_namespace::within("needs_root_a_change_is_done_when_it_returns", || {
            let mut socket = Socket::open().expect("opened");
            socket.change(lo_up(), 0).expect("changed");
            let links = socket.links().expect("listed");
            assert!(links.iter().any(|link| link.is_loopback() && link.is_up()));
        });
    }

    #[test]
    fn needs_root_a_refusal_has_the_kernels_number_and_sentence() {
        own_namespace::within("needs_root_a_refusal_has_the_kernels_number_and_sentence", || {
            let mut socket = Socket::open().expect("opened");
            socket.change(address(1), NLM_F_CREATE | NLM_F_EXCL).expect("added");
            let twice = socket.change(address(1), NLM_F_CREATE | NLM_F_EXCL).expect_err("it is there");
            assert!(twice.is_there_already(), "{twice}");
            let mut nowhere = RouteMessage::default();
            nowhere.header.address_family = AddressFamily::Inet;
            nowhere.attributes.push(RouteAttribute::Oif(4711));
            let refused = socket.change(RouteNetlinkMessage::NewRoute(nowhere), NLM_F_CREATE).expect_err("no such");
            assert!(matches!(&refused, NetlinkError::Refused { sentence, .. } if !sentence.is_empty()), "{refused:?}");
            socket.links().expect("the conversation goes on");
        });
    }

    #[test]
    fn needs_root_a_list_of_many_datagrams_is_whole() {
        own_namespace::within("needs_root_a_list_of_many_datagrams_is_whole", || {
            let mut socket = Socket::open().expect("opened");
            socket.change(lo_up(), 0).expect("changed");
            let mut names = 0;
            for third in 0..4u8 {
                for last in 0..250u8 {
                    let mut message = AddressMessage::default();
                    message.header.family = AddressFamily::Inet;
                    message.header.index = LO;
                    message.header.prefix_len = 32;
                    message.attributes.push(AddressAttribute::Local(Ipv4Addr::new(10, 1, third, last).into()));
                    socket.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE).expect("added");
                    names += 1;
                }
            }
            let list = socket.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).expect("listed");
            let ours = list.iter().filter(|item| {
                matches!(item, RouteNetlinkMessage::NewAddress(m) if m.header.family == AddressFamily::Inet
                    && m.header.prefix_len == 32)
            });
            assert_eq!(ours.count(), names);
        });
    }

    #[test]
    fn needs_root_what_another_process_writes_is_not_an_answer() {
        own_namespace::within("needs_root_what_another_process_writes_is_not_an_answer", || {
            let mut socket = Socket::open().expect("opened");
            let stranger = Socket::open().expect("opened");
            let name = rustix::net::getsockname(&socket.fd).expect("named");
            let ours = SocketAddrNetlink::try_from(name).expect("netlink");
            let port = SocketAddrNetlink::new(ours.pid(), 0);
            // An acknowledgement of the next question.
            let mut lie = Vec::new();
            lie.extend(36u32.to_ne_bytes());
            lie.extend(2u16.to_ne_bytes());
            lie.extend(0u16.to_ne_bytes());
            lie.extend(1u32.to_ne_bytes());
            lie.extend([0; 24]);
            sendto(&stranger.fd, &lie, SendFlags::empty(), &port).expect("sent");
            let mut absent = LinkMessage::default();
            absent.header.index = 4711;
            let refused = socket.change(RouteNetlinkMessage::SetLink(absent), 0).expect_err("no such interface");
            assert!(refused.is_nothing_there(), "{refused}");
        });
    }
}
