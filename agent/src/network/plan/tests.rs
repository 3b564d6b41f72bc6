use std::{collections::BTreeMap, net::IpAddr};

use agent_protocol::messages as m;
use proptest::{collection::btree_map, prelude::*, sample::subsequence};

use super::*;
use crate::network::{device::Devices, route};

/// A device of these tests: number, name and last byte of the MAC.
fn link(index: u32, name: &str, mac: u8, up: bool) -> Device {
    Device { index, name: name.to_owned(), mac: vec![2, 0, 0, 0, 0, mac], mtu: 1500, up, ..Device::default() }
}

fn interface(name: &str, mac: u8, addresses: &[(&str, u8)]) -> Interface {
    let address = |(address, prefix_length): &(&str, u8)| Address {
        address: address.parse().unwrap(),
        prefix_length: *prefix_length,
        peer: None,
        broadcast: None,
        scope: 0,
    };
    let addresses = addresses.iter().map(address).collect();
    Interface { name: name.to_owned(), mac: [2, 0, 0, 0, 0, mac], mtu: None, addresses, no_arp: false }
}

fn bytes(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `10.0.0.0/8`, or nothing for all; by that router, or nobody.
fn route(destination: &str, gateway: &str, interface: &str) -> Route {
    let (address, length) = destination.split_once('/').unwrap_or(("0.0.0.0", "0"));
    let destination = bytes(address);
    let wanted = m::Route {
        family: if destination.len() == 4 { 2 } else { 10 },
        destination,
        prefix_length: length.parse().unwrap(),
        gateway: if gateway.is_empty() { Vec::new() } else { bytes(gateway) },
        interface: interface.to_owned(),
        ..Default::default()
    };
    Route::parse(&wanted).unwrap()
}

fn network(interfaces: Vec<Interface>, routes: Vec<Route>) -> Network {
    Network { interfaces, routes, ..Default::default() }
}

#[test]
fn a_fresh_device_becomes_the_interface_in_one_step_before_its_addresses() {
    let links = [link(2, "eth1", 7, false)];
    let wanted = Interface { mtu: Some(1400), ..interface("eth0", 7, &[("10.0.0.5", 24)]) };
    let change = Change { index: 2, name: "eth0".into(), rename: true, mtu: Some(1400), no_arp: false };
    let address = wanted.addresses[0].clone();
    let steps = interfaces(&[wanted], &links, &[]);
    assert_eq!(steps, [Step::SetInterface(change), Step::AddAddress("eth0".into(), address)]);
}

#[test]
fn a_link_local_address_that_is_told_is_the_only_one() {
    let wanted = interface("eth0", 7, &[("fe80::7", 64)]);
    let silent = |links: &[Device]| {
        let steps = interfaces(std::slice::from_ref(&wanted), links, &[]);
        matches!(steps[0], Step::NoOwnLinkLocal { index: 2, .. })
    };
    assert!(silent(&[link(2, "eth0", 7, false)]));
    assert!(!silent(&[link(2, "eth0", 7, true)]), "it has one already");
    let untold = interfaces(&[interface("eth0", 7, &[("2001:db8::7", 64)])], &[link(2, "eth0", 7, false)], &[]);
    assert!(matches!(untold[0], Step::SetInterface(_)), "the kernel finds one");
}

#[test]
fn who_swap_names_pass_by_names_that_nobody_has() {
    let links = [link(2, "eth0", 7, true), link(3, "eth1", 8, true)];
    let steps = interfaces(&[interface("eth1", 7, &[]), interface("eth0", 8, &[])], &links, &[]);
    assert!(matches!(&steps[..2], [Step::MoveAside { index: 2, .. }, Step::MoveAside { index: 3, .. }]), "{steps:?}");
    assert_eq!(steps.len(), 4);
}

#[test]
fn a_stranger_in_the_way_moves_aside_and_stays_there() {
    let links = [link(2, "eth0", 9, false), link(3, "eth1", 7, false)];
    let wanted = [interface("eth0", 7, &[])];
    assert!(matches!(interfaces(&wanted, &links, &[])[0], Step::MoveAside { index: 2, .. }));
    let devices = Devices::find(&wanted, &links).unwrap();
    assert_eq!((devices.name(2), devices.name(3), devices.index("eth0")), (Some("moved2"), Some("eth0"), 3));
}

#[test]
fn what_is_made_on_top_of_a_device_is_not_taken_for_it() {
    let links = [link(2, "eth0", 7, true), link(3, "eth0.5", 7, true)];
    assert_eq!(interfaces(&[interface("eth0", 7, &[])], &links, &[]), []);
}

#[test]
fn the_kernels_own_addresses_stay_and_others_go() {
    let links = [link(2, "eth0", 7, true)];
    let has = |addresses: &[(&str, u8)]| {
        interface("", 0, addresses).addresses.into_iter().map(|address| (2, address)).collect::<Vec<_>>()
    };
    let steps = interfaces(&[interface("eth0", 7, &[])], &links, &has(&[("fe80::1", 64), ("fd00::1", 64)]));
    assert!(matches!(&steps[..], [Step::RemoveAddress(_, gone)] if gone.to_string() == "fd00::1/64"), "{steps:?}");
}

#[test]
fn a_link_local_address_that_is_wanted_otherwise_is_replaced() {
    let links = [link(2, "eth0", 7, true)];
    let has = [(2, interface("", 0, &[("fe80::5", 64)]).addresses.remove(0))];
    let told: Vec<_> =
        interfaces(&[interface("eth0", 7, &[("fe80::5", 128)])], &links, &has).iter().map(Step::to_string).collect();
    assert_eq!(told, ["take the address fe80::5/64 from eth0", "give eth0 the address fe80::5/128"]);
}

#[test]
fn addresses_that_go_with_the_first_of_their_range_are_made_again() {
    let links = [link(2, "eth0", 7, true)];
    let both = interface("eth0", 7, &[("10.0.0.5", 24), ("10.0.0.6", 24), ("10.1.0.6", 24)]).addresses;
    let has: Vec<_> = both.into_iter().map(|address| (2, address)).collect();
    let steps = interfaces(&[interface("eth0", 7, &[("10.0.0.6", 24), ("10.1.0.6", 24)])], &links, &has);
    let told: Vec<_> = steps.iter().map(Step::to_string).collect();
    assert_eq!(told, ["take the address 10.0.0.5/24 from eth0", "give eth0 the address 10.0.0.6/24"]);
}

#[test]
fn a_router_is_reached_before_it_is_named() {
    let routes_wanted = vec![route("", "10.0.0.1", "eth0"), route("10.0.0.1/32", "", "eth0")];
    let told: Vec<_> = routes(&network(vec![interface("eth0", 7, &[])], routes_wanted), &[], &[])
        .iter()
        .map(Step::to_string)
        .collect();
    assert_eq!(told, ["make the route 10.0.0.1/32 dev eth0", "make the route 0.0.0.0/0 via 10.0.0.1 dev eth0"]);
}

#[test]
fn a_default_route_that_changes_is_never_missing() {
    let old = route("", "10.0.0.1", "eth0");
    let new = route("", "10.0.0.2", "eth0");
    let steps = routes(&network(vec![interface("eth0", 7, &[])], vec![new.clone()]), &[old], &[]);
    assert_eq!(steps, [Step::ReplaceRoute(new)]);
}

#[test]
fn routes_of_routers_of_others_and_of_the_kernels_own_stay() {
    let wanted = network(vec![interface("eth0", 7, &[])], vec![]);
    let local = Route { table: 255, ..route("10.0.0.5/32", "", "eth0") };
    let link_local = Route { protocol: 2, ..route("fe80::/64", "", "eth0") };
    let router = Route { protocol: 9, ..route("", "10.0.0.1", "eth0") };
    assert_eq!(routes(&wanted, &[local, link_local, router, route("10.9.0.0/16", "", "tun0")], &[]), []);
    let old = route("10.9.0.0/16", "", "eth0");
    assert_eq!(routes(&wanted, std::slice::from_ref(&old), &[]), [Step::RemoveRoute(old)]);
}

#[test]
fn a_route_of_an_address_that_a_plugin_took_away_goes() {
    let kernel = Route { protocol: 2, ..route("10.0.0.0/8", "", "eth0") };
    let wanted = network(vec![interface("eth0", 7, &[])], vec![route("10.0.0.0/8", "10.0.0.1", "eth0")]);
    let steps = routes(&wanted, &[kernel], &[]);
    assert_eq!(steps, [Step::ReplaceRoute(wanted.routes[0].clone())]);
}

#[test]
fn a_rule_that_is_there_is_not_made_again() {
    let rule = |priority| Rule::parse(&m::Rule { family: 2, priority, ..Default::default() }).unwrap();
    let wanted = Network { rules: vec![rule(1), rule(2)], ..Network::default() };
    assert_eq!(routes(&wanted, &[], &[rule(1), rule(3)]), [Step::AddRule(rule(2))]);
}

/// A guest whose kernel does as Linux does, for all that the plan counts on.
#[derive(Debug, Clone)]
struct Guest {
    links: Vec<Device>,
    addresses: Vec<(u32, Address)>,
    routes: Vec<Route>,
}

impl Guest {
    fn rename(&mut self, index: u32, name: &str) {
        assert!(self.links.iter().all(|link| link.name != name), "{name} is taken");
        self.link(index).name = name.to_owned();
    }

    fn link(&mut self, index: u32) -> &mut Device {
        self.links.iter_mut().find(|link| link.index == index).unwrap()
    }

    fn carry_out(&mut self, step: Step, devices: &Devices) {
        match step {
            Step::MoveAside { index, .. } => self.rename(index, &aside(index)),
            Step::NoOwnLinkLocal { .. } => {}
            Step::SetInterface(change) => {
                if change.rename {
                    self.rename(change.index, &change.name);
                }
                let link = self.link(change.index);
                link.mtu = change.mtu.unwrap_or(link.mtu);
                link.up = true;
                link.no_arp = change.no_arp;
            }
            Step::RemoveAddress(name, address) => self.remove_address(devices.index(&name), &address),
            Step::AddAddress(name, address) => {
                let index = devices.index(&name);
                let twin = |(i, own): &(u32, Address)| *i == index && own.address == address.address && *own != address;
                assert!(address.address.is_ipv4() || !self.addresses.iter().any(twin), "{address} is there already");
                if !self.addresses.contains(&(index, address.clone())) {
                    self.addresses.push((index, address));
                }
            }
            Step::RemoveRoute(route) => {
                let at = self.routes.iter().position(|own| *own == route).expect("it is there");
                self.routes.remove(at);
            }
            Step::AddRoute(route) => {
                assert!(!self.routes.contains(&route));
                self.routes.push(route);
            }
            Step::ReplaceRoute(route) => {
                let mut there = self.routes.iter_mut().filter(|own| own.is_in_place_of(&route));
                *there.next().expect("there is one") = route.clone();
                assert!(there.next().is_none(), "which one is a matter of luck");
            }
            Step::SetNeighbour(_) | Step::AddRule(_) => {}
        }
    }

    /// With the first IPv4 address of a range go the others.
    fn remove_address(&mut self, index: u32, address: &Address) {
        let in_range = |own: &(u32, Address)| own.0 == index && own.1.goes_with(address);
        let Some(at) = self.addresses.iter().position(|own| *own == (index, address.clone())) else {
            assert!(address.address.is_ipv4(), "it is there, or went with another");
            return;
        };
        let first = self.addresses.iter().position(in_range) == Some(at);
        self.addresses.remove(at);
        if first && address.address.is_ipv4() {
            self.addresses.retain(|own| !in_range(own));
        }
    }

    /// Both parts, as [`Network::apply`] does it; how many steps they had.
    fn apply(&mut self, wanted: &Network) -> usize {
        let devices = Devices::find(&wanted.interfaces, &self.links).unwrap();
        let first = interfaces(&wanted.interfaces, &self.links, &self.addresses);
        let mut count = first.len();
        first.into_iter().for_each(|step| self.carry_out(step, &devices));
        let second = routes(wanted, &self.routes, &[]);
        count += second.len();
        let made: Vec<bool> = second
            .iter()
            .filter_map(|step| match step {
                Step::AddRoute(route) | Step::ReplaceRoute(route) => Some(route.needs_another()),
                _ => None,
            })
            .collect();
        assert!(made.is_sorted(), "routers come after the ways to them: {second:?}");
        second.into_iter().for_each(|step| self.carry_out(step, &devices));
        count
    }
}

const NAMES: [&str; 5] = ["eth0", "eth1", "eth2", "net1", "dev"];

/// Some of an interface's addresses: each with one prefix.
fn addresses() -> impl Strategy<Value = Vec<Address>> {
    const IPS: [&str; 7] = ["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.5", "fd00::5", "fd00::6", "fe80::5"];
    btree_map(proptest::sample::select(&IPS), any::<bool>(), 0..5).prop_map(|chosen: BTreeMap<&str, bool>| {
        let length = |ip: &str, long: bool| match (ip.contains(':'), long) {
            (false, false) => 16,
            (false, true) => 24,
            (true, false) => 64,
            (true, true) => 128,
        };
        let all: Vec<_> = chosen.into_iter().map(|(ip, long)| (ip, length(ip, long))).collect();
        interface("", 0, &all).addresses
    })
}

/// Some routes over some interfaces, by some makers.
fn some_routes() -> impl Strategy<Value = Vec<Route>> {
    let destination = proptest::sample::select(&["", "10.0.0.0/16", "10.9.0.0/24", "10.0.0.1/32", "fd01::/64"]);
    let one = (destination, 0..3u8, 0..NAMES.len(), 3..5u8, 0..2u32).prop_map(|(to, gateway, at, protocol, metric)| {
        let family = if to.contains(':') { "fd00::" } else { "10.0.0." };
        let gateway = if gateway == 0 { String::new() } else { format!("{family}{gateway}") };
        Route { protocol, metric, ..route(to, &gateway, NAMES[at]) }
    });
    proptest::collection::vec(one, 0..8).prop_map(|mut routes| {
        let all = std::mem::take(&mut routes);
        for route in all {
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        routes
    })
}

fn guest() -> impl Strategy<Value = Guest> {
    let names = Just(NAMES.to_vec()).prop_shuffle();
    (names, [addresses(), addresses(), addresses()], some_routes(), any::<[bool; 3]>()).prop_map(
        |(names, addresses, routes, up)| {
            let links = (0..3).map(|at| link(at + 2, names[at as usize], at as u8, up[at as usize])).collect();
            let own = (2..).zip(addresses).flat_map(|(index, own)| own.into_iter().map(move |one| (index, one)));
            Guest { links, addresses: own.collect(), routes }
        },
    )
}

fn wanted() -> impl Strategy<Value = Network> {
    let macs = subsequence(vec![0u8, 1, 2], 0..=3).prop_shuffle();
    let names = Just(NAMES.to_vec()).prop_shuffle();
    (macs, names, [addresses(), addresses(), addresses()], some_routes(), any::<bool>()).prop_map(
        |(macs, names, addresses, mut routes, no_arp)| {
            let one = |((mac, name), addresses): ((u8, &str), Vec<Address>)| Interface {
                addresses,
                no_arp,
                mtu: Some(1400),
                ..interface(name, mac, &[])
            };
            let interfaces: Vec<_> = macs.into_iter().zip(names).zip(addresses).map(one).collect();
            routes.retain(|route| interfaces.iter().any(|own| own.name == route.hops[0].interface));
            network(interfaces, routes)
        },
    )
}

proptest! {
    /// Whatever was there, afterwards it is as wanted, what was not named is as it was, and a second time nothing is left to do.
    #[test]
    fn a_plan_leads_from_anything_to_what_is_wanted(before in guest(), wanted in wanted()) {
        let mut guest = before.clone();
        guest.apply(&wanted);
        for interface in &wanted.interfaces {
            let link = guest.links.iter().find(|link| link.mac == interface.mac).unwrap();
            prop_assert_eq!((&link.name, link.mtu, link.up), (&interface.name, 1400, true));
            prop_assert_eq!(link.no_arp, interface.no_arp);
            let own: Vec<_> = guest.addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, own)| own).collect();
            prop_assert!(interface.addresses.iter().all(|address| own.contains(&address)));
            prop_assert!(own.iter().all(|own| own.is_link_local() || interface.addresses.contains(own)));
        }
        let named = |index: u32| wanted.interfaces.iter().any(|i| i.device(&before.links).unwrap().index == index);
        for (index, address) in before.addresses.iter().filter(|(index, _)| !named(*index)) {
            prop_assert!(guest.addresses.contains(&(*index, address.clone())));
        }
        prop_assert!(wanted.routes.iter().all(|route| guest.routes.contains(route)));
        let on_ours = |route: &Route| wanted.interfaces.iter().any(|own| own.name == route.hops[0].interface);
        for route in &guest.routes {
            prop_assert!(wanted.routes.contains(route) || (!on_ours(route) && before.routes.contains(route)), "{}", route);
        }
        let kept = before.routes.iter().filter(|route| !on_ours(route)).all(|route| guest.routes.contains(route));
        prop_assert!(kept);
        prop_assert_eq!(guest.apply(&wanted), 0);
    }

    /// A route that the kernel is told is the one that it tells.
    #[test]
    fn a_route_survives_its_message(routes in some_routes(), table in 1..1000u32, mtu in prop::option::of(576..9000u32)) {
        let interfaces: Vec<_> = NAMES.iter().zip(0..).map(|(name, mac)| interface(name, mac, &[])).collect();
        let links: Vec<_> = NAMES.iter().zip(0..).map(|(name, at)| link(u32::from(at) + 2, name, at, true)).collect();
        let devices = Devices::find(&interfaces, &links).unwrap();
        for route in routes {
            let route = Route { table, mtu, ..route };
            prop_assert_eq!(route::Route::of(&route.message(&devices), &devices), Some(route));
        }
    }
}
