//! Hears of changes that others make.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use rustix::{io::Errno, net::RecvFlags};

use crate::{Result, Socket, reply::Reply, socket::failed};

/// What can be listened to (rtnetlink.h, RTMGRP_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Group {
    /// Interfaces come, go, change.
    Links = 0x1,
    /// Neighbours.
    Neighbours = 0x4,
    /// Addresses of IPv4.
    Ipv4Addresses = 0x10,
    /// Routes of IPv4.
    Ipv4Routes = 0x40,
    /// Rules of IPv4.
    Ipv4Rules = 0x80,
    /// Addresses of IPv6.
    Ipv6Addresses = 0x100,
    /// Routes of IPv6.
    Ipv6Routes = 0x400,
    /// Rules of IPv6 (RTNLGRP_IPV6_RULE is group 19).
    Ipv6Rules = 1 << 18,
}

/// What a listener hears.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// These changes.
    Changes(Vec<RouteNetlinkMessage>),
    /// More than it could hold: what there is now must be asked for.
    Lost,
}

/// Listens.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Socket {
    /// Listens to the calling thread's network namespace from now on.
    ///
    /// # Errors
    /// The kernel has no rtnetlink, or there are no descriptors left.
    pub fn listen(groups: &[Group]) -> Result<Listener> {
        let mask = groups.iter().fold(0, |mask, group| mask | *group as u32);
        Ok(Listener { socket: Socket::open_with(mask)? })
    }
}

impl Listener {
    /// Waits for news. To wait for something else too, poll the [descriptor](AsFd) first.
    ///
    /// # Errors
    /// The socket fails, or the kernel says what we do not understand.
    #[expect(clippy::should_implement_trait, reason = "an endless wait is no iterator")]
    pub fn next(&mut self) -> Result<News> {
        read(self.socket.overhear(RecvFlags::empty()))
    }

    /// The news that there are already, without waiting.
    ///
    /// # Errors
    /// As [`Listener::next`].
    pub fn try_next(&mut self) -> Result<Option<News>> {
        match self.socket.overhear(RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => Ok(None),
            heard => read(heard).map(Some),
        }
    }
}

fn read(heard: std::result::Result<Result<Vec<Reply<RouteNetlinkMessage>>>, Errno>) -> Result<News> {
    match heard {
        Err(Errno::NOBUFS) => Ok(News::Lost),
        Err(errno) => Err(failed("receive")(errno)),
        Ok(replies) => Ok(News::Changes(replies?.into_iter().filter_map(item).collect())),
    }
}

fn item(reply: Reply<RouteNetlinkMessage>) -> Option<RouteNetlinkMessage> {
    match reply {
        Reply::Item(item) => Some(item),
        _ => None,
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkFlags, LinkMessage};

    use super::*;
    use crate::{Link, own_namespace};

    fn set_lo(flags: LinkFlags) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 1;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        RouteNetlinkMessage::SetLink(message)
    }

    #[test]
    fn needs_root_a_change_is_heard_by_who_listens_to_its_group_only() {
        own_namespace::within("needs_root_a_change_is_heard_by_who_listens_to_its_group_only", || {
            let mut links = Socket::listen(&[Group::Links]).expect("listening");
            let mut addresses = Socket::listen(&[Group::Ipv4Addresses, Group::Ipv6Addresses]).expect("listening");
            Socket::open().expect("opened").change(set_lo(LinkFlags::Up), 0).expect("changed");
            let News::Changes(heard) = links.next().expect("heard") else { panic!("nothing is lost") };
            let up = |message: &RouteNetlinkMessage| match message {
                RouteNetlinkMessage::NewLink(link) => Link::of(link).is_up(),
                _ => false,
            };
            assert!(heard.iter().any(up), "{heard:?}");
            let News::Changes(heard) = addresses.next().expect("heard") else { panic!("nothing is lost") };
            assert!(heard.iter().all(|m| matches!(m, RouteNetlinkMessage::NewAddress(_))), "{heard:?}");
            while links.try_next().expect("heard").is_some() {}
            assert_eq!(links.try_next().expect("asked"), None, "nothing is waited for");
        });
    }

    #[test]
    fn needs_root_too_many_changes_are_news_too() {
        own_namespace::within("needs_root_too_many_changes_are_news_too", || {
            let mut listener = Socket::listen(&[Group::Links]).expect("listening");
            rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 1).expect("smaller");
            let mut socket = Socket::open().expect("opened");
            for _ in 0..100 {
                socket.change(set_lo(LinkFlags::Up), 0).expect("changed");
                socket.change(set_lo(LinkFlags::empty()), 0).expect("changed");
            }
            let mut news = std::iter::repeat_with(|| listener.next().expect("heard")).take(200);
            assert!(news.any(|news| news == News::Lost));
        });
    }
}
