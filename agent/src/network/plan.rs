//! From what the guest has and what is wanted to the steps between. Pure.
//!
//! In two parts, as the kernel makes and drops routes when addresses come and go: interfaces with their addresses first, then, with a fresh
//! look at what is there, routes and the rest. A plan for what is there already has no step but
//! that neighbours are told again, which changes nothing.

use super::{
    Network,
    address::Address,
    device::{Device, aside},
    interface::{Change, Interface},
    neighbour::Neighbour,
    route::Route,
    rule::Rule,
};

/// One change, for which the kernel is told one message. Interfaces are named as they will be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A device has a name that another shall have.
    MoveAside {
        /// Of the device.
        index: u32,
        /// Its name until now.
        name: String,
    },
    /// The kernel gives a device no link-local address when it comes up.
    NoOwnLinkLocal {
        /// Of the device.
        index: u32,
        /// Its name until now.
        name: String,
    },
    /// A device becomes an interface.
    SetInterface(Change),
    /// Takes an address from an interface.
    RemoveAddress(String, Address),
    /// Gives it one; one that it has is no error.
    AddAddress(String, Address),
    /// Takes a route away.
    RemoveRoute(Route),
    /// Makes one beside all others.
    AddRoute(Route),
    /// Makes one in place of the one that is there, so that packets always find one of both.
    ReplaceRoute(Route),
    /// Makes a neighbour known.
    SetNeighbour(Neighbour),
    /// Makes a rule unless it is there.
    AddRule(Rule),
}

/// The first part. `has` are all addresses, with the numbers of their interfaces.
pub fn interfaces(wanted: &[Interface], devices: &[Device], has: &[(u32, Address)]) -> Vec<Step> {
    let pairs: Vec<(&Interface, &Device)> =
        wanted.iter().filter_map(|interface| Some((interface, interface.device(devices).ok()?))).collect();
    let in_the_way = |device: &&Device| {
        wanted.iter().any(|interface| interface.name == device.name)
            && !pairs.iter().any(|(interface, own)| own.index == device.index && interface.name == device.name)
    };
    let aside = |device: &Device| Step::MoveAside { index: device.index, name: device.name.clone() };
    let mut steps: Vec<Step> = devices.iter().filter(in_the_way).map(aside).collect();
    let told = pairs.iter().filter(|(interface, device)| !device.up && interface.has_told_link_local());
    steps.extend(told.map(|(_, device)| Step::NoOwnLinkLocal { index: device.index, name: device.name.clone() }));
    steps.extend(pairs.iter().filter_map(|(interface, device)| interface.change(device)).map(Step::SetInterface));
    for (interface, device) in pairs {
        let own: Vec<&Address> = has.iter().filter(|(index, _)| *index == device.index).map(|(_, own)| own).collect();
        steps.extend(addresses(interface, &own));
    }
    steps
}

/// What is not wanted goes first: one IPv6 address is there with one prefix only, and the first IPv4 address of a range takes the others
/// along, which are then made again.
fn addresses(interface: &Interface, has: &[&Address]) -> Vec<Step> {
    // The kernel's own stays, unless it is wanted in another form.
    let kept = |own: &Address| {
        interface.addresses.contains(own)
            || own.is_link_local() && interface.addresses.iter().all(|wanted| wanted.address != own.address)
    };
    let stale: Vec<&Address> = has.iter().copied().filter(|own| !kept(own)).collect();
    let missing = interface
        .addresses
        .iter()
        .filter(|wanted| !has.contains(wanted) || stale.iter().any(|stale| wanted.goes_with(stale)));
    let name = &interface.name;
    let remove = stale.iter().map(|address| Step::RemoveAddress(name.clone(), (*address).clone()));
    remove.chain(missing.map(|address| Step::AddAddress(name.clone(), address.clone()))).collect()
}

/// The second part. `has` and `rules` are all that there are.
pub fn routes(wanted: &Network, has: &[Route], rules: &[Rule]) -> Vec<Step> {
    let ours = |route: &&Route| {
        !route.hops.is_empty()
            && route.hops.iter().all(|hop| wanted.interfaces.iter().any(|own| own.name == hop.interface))
    };
    let mut stale: Vec<&Route> =
        has.iter().filter(ours).filter(|route| !route.is_by_itself() && !wanted.routes.contains(route)).collect();
    let mut missing: Vec<&Route> = wanted.routes.iter().filter(|route| !has.contains(route)).collect();
    // The sort is stable. To a router leads a route without one.
    missing.sort_by_key(|route| route.needs_another());
    stale.sort_by_key(|route| !route.needs_another());
    let mut made = Vec::new();
    for route in &missing {
        let replaced = only_one_in_its_place(route, &missing, has).filter(|old| stale.contains(old));
        stale.retain(|old| Some(*old) != replaced);
        let route = (*route).clone();
        made.push(if replaced.is_some() { Step::ReplaceRoute(route) } else { Step::AddRoute(route) });
    }
    let mut steps: Vec<Step> = stale.into_iter().cloned().map(Step::RemoveRoute).collect();
    steps.append(&mut made);
    steps.extend(wanted.neighbours.iter().cloned().map(Step::SetNeighbour));
    steps.extend(wanted.rules.iter().filter(|rule| !rules.contains(rule)).cloned().map(Step::AddRule));
    steps
}

/// Which one the kernel replaces is clear only when there is no choice.
fn only_one_in_its_place<'a>(route: &Route, missing: &[&Route], has: &'a [Route]) -> Option<&'a Route> {
    let mut there = has.iter().filter(|other| other.is_in_place_of(route));
    let first = there.next()?;
    let choice = there.next().is_some() || missing.iter().filter(|other| other.is_in_place_of(route)).count() != 1;
    (!choice).then_some(first)
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MoveAside { index, name } => write!(f, "rename the device {name} to {}", aside(*index)),
            Self::NoOwnLinkLocal { name, .. } => write!(f, "keep the kernel from giving {name} a link-local address"),
            Self::SetInterface(change) => {
                write!(f, "bring up the interface {}", change.name)?;
                change.mtu.map_or(Ok(()), |mtu| write!(f, " with an MTU of {mtu}"))
            }
            Self::RemoveAddress(name, address) => write!(f, "take the address {address} from {name}"),
            Self::AddAddress(name, address) => write!(f, "give {name} the address {address}"),
            Self::RemoveRoute(route) => write!(f, "remove the route {route}"),
            Self::AddRoute(route) | Self::ReplaceRoute(route) => write!(f, "make the route {route}"),
            Self::SetNeighbour(neighbour) => write!(f, "make the neighbour {neighbour} known"),
            Self::AddRule(rule) => write!(f, "make the rule {rule}"),
        }
    }
}

#[cfg(test)]
mod tests;
