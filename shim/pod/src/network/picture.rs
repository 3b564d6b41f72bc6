//! What a network namespace has, read in one go.

use std::collections::BTreeMap;

use agent_protocol::messages as m;
use netlink::{
    Link, Socket,
    packet::{
        RouteNetlinkMessage,
        address::AddressMessage,
        neighbour::{NeighbourFlags, NeighbourMessage},
        route::RouteMessage,
        rule::RuleMessage,
    },
};

use super::{
    redirect,
    wording::{self, Names},
};

/// What takes the incoming frames of an interface before the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// Filters of others, or none yet.
    Others,
    /// A filter of ours.
    Ours,
}

/// What a namespace has, in the guest's words where the guest is told of it.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Addresses, with the numbers of their interfaces.
    pub addresses: Vec<(u32, m::InterfaceAddress)>,
    /// Routes.
    pub routes: Vec<m::Route>,
    /// Neighbours that somebody wrote down.
    pub neighbours: Vec<m::Neighbour>,
    /// Rules beyond the first three.
    pub rules: Vec<m::Rule>,
    /// Interfaces whose incoming frames are taken; most are not.
    pub ingress: BTreeMap<u32, Ingress>,
    /// What the guest cannot be told.
    pub unsaid: Vec<String>,
}

impl Picture {
    /// Reads all of it.
    pub(crate) fn read(socket: &mut Socket) -> netlink::Result<Self> {
        let links = socket.links()?;
        let names: Names = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let mut picture = Self { links, ingress: ingress(socket)?, ..Self::default() };
        for question in questions() {
            for answer in socket.dump(question)? {
                picture.note(&answer, &names);
            }
        }
        Ok(picture)
    }

    fn note(&mut self, answer: &RouteNetlinkMessage, names: &Names) {
        match answer {
            RouteNetlinkMessage::NewAddress(message) => self.addresses.extend(wording::address(message)),
            RouteNetlinkMessage::NewRoute(message) => match wording::route(message, names) {
                Ok(route) => self.routes.extend(route),
                Err(sentence) => self.unsaid.push(sentence),
            },
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbours.extend(wording::neighbour(message, names)),
            RouteNetlinkMessage::NewRule(message) => match wording::rule(message) {
                Ok(rule) => self.rules.extend(rule),
                Err(sentence) => self.unsaid.push(sentence),
            },
            _ => {}
        }
    }

    /// The interface of this number.
    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }
}

/// Of both families each.
fn questions() -> [RouteNetlinkMessage; 5] {
    let mut proxied = NeighbourMessage::default();
    proxied.header.flags = NeighbourFlags::Proxy;
    [
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        RouteNetlinkMessage::GetNeighbour(proxied),
        RouteNetlinkMessage::GetRule(RuleMessage::default()),
    ]
}

/// Who takes incoming frames, by interface.
pub(crate) fn ingress(socket: &mut Socket) -> netlink::Result<BTreeMap<u32, Ingress>> {
    let mut found = BTreeMap::new();
    let disciplines = socket.dump(redirect::disciplines())?;
    for index in disciplines.iter().filter_map(redirect::takes_incoming_of) {
        let ours = socket.dump(redirect::filters(index))?.iter().any(redirect::is_ours);
        found.insert(index, if ours { Ingress::Ours } else { Ingress::Others });
    }
    Ok(found)
}
