//! Which interfaces of a namespace the machine gets, and what the guest is told of the rest. Pure.
//!
//! | interface | what becomes of it |
//! |---|---|
//! | `lo` | left: the guest has its own |
//! | switched off | left, as it carries nothing |
//! | Ethernet (veth, macvlan, macvtap, ipvlan, vlan, hardware), or a tap with an address, as user-space networks make it | joined |
//! | not Ethernet, or another interface's port or layer | left when nobody gave it an address (`tunl0`, `sit0`, a tap), else refused |
//! | joined to another machine already | refused |
//!
//! What carries an address is meant for the pod, and a pod that lacks it would run on half a network: it is refused instead.

use std::collections::BTreeSet;

use agent_protocol::{
    messages as m,
    network::{ADDRESSES_MAX, NEIGHBOURS_MAX, NEXT_HOPS_MAX, ROUTES_MAX, RULES_MAX},
};
use netlink::{Link, packet::link::LinkLayerType};
use serde::{Deserialize, Serialize};
use vmm_control::{MTU_MIN, NETWORKS_MAX};

use super::picture::{Ingress, Picture};
use crate::{ErrorKind, PodError};

/// Scope of an address that every IPv6 interface gives itself (RT_SCOPE_LINK).
const SCOPE_LINK: u32 = 253;

/// An interface that is joined to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joint {
    /// What is recorded of it.
    pub trace: Trace,
    /// Its address, which the guest's has too.
    pub mac: [u8; 6],
    /// Its largest packet.
    pub mtu: u16,
}

/// What is left at an interface until it is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name, for people.
    pub name: String,
    /// What takes its incoming frames is of our making.
    pub own_ingress: bool,
}

/// The plan.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// What is joined, in the order of the namespace.
    pub joints: Vec<Joint>,
    /// What the guest is told.
    pub network: m::Network,
}

/// What becomes of an interface.
enum Verdict {
    Join(Joint),
    Leave,
    Refuse(String),
}

impl Plan {
    /// Plans.
    ///
    /// # Errors
    /// An interface that is meant for the pod cannot reach it.
    pub(crate) fn of(picture: Picture) -> Result<Self, PodError> {
        let mut joints: Vec<Joint> = Vec::new();
        for link in &picture.links {
            match verdict(link, &picture) {
                Verdict::Join(joint) => joints.push(joint),
                Verdict::Leave => {}
                Verdict::Refuse(why) => return Err(refused(&link.name, &why)),
            }
        }
        check_all(&joints)?;
        let network = told(&picture, &joints);
        check_sizes(&network)?;
        Ok(Self { joints, network })
    }
}

fn verdict(link: &Link, picture: &Picture) -> Verdict {
    if link.is_loopback() || !link.is_up() {
        return Verdict::Leave;
    }
    match joint(link, picture) {
        Ok(joint) => Verdict::Join(joint),
        Err(_) if !is_meant_for_the_pod(link, picture) => Verdict::Leave,
        Err(why) => Verdict::Refuse(why),
    }
}

fn is_meant_for_the_pod(link: &Link, picture: &Picture) -> bool {
    picture.addresses.iter().any(|(index, address)| *index == link.index && address.scope != SCOPE_LINK)
}

fn joint(link: &Link, picture: &Picture) -> Result<Joint, String> {
    let name_of = |index: u32| picture.link(index).map_or("another", |other| other.name.as_str());
    let kind = if link.kind.is_empty() { "hardware" } else { &link.kind };
    let mac = <[u8; 6]>::try_from(link.mac.as_slice()).ok().filter(|_| link.layer == LinkLayerType::Ether);
    let Some(mac) = mac else {
        return Err(format!("it is no Ethernet interface ({kind}); use a plugin that makes a veth, macvlan or ipvlan"));
    };
    // One with an address is a plugin's, whose program holds the other end (passt's like). One without is some machine's own.
    if link.kind == "tun" && !is_meant_for_the_pod(link, picture) {
        return Err("it is the tap of a machine".to_owned());
    }
    if let Some(controller) = link.controller {
        return Err(format!("it is a port of {}; give the address to that one", name_of(controller)));
    }
    // The two ends of a pair do not lie on one another.
    if let Some(lower) = link.lower.filter(|_| !matches!(kind, "veth" | "netkit")) {
        let lower = name_of(lower);
        return Err(format!("it lies on {lower}, whose frames all go to the machine; make it inside the pod instead"));
    }
    if mac == [0; 6] || mac[0] & 1 != 0 {
        return Err("its hardware address is not that of one interface; give it another (`ip link set`)".to_owned());
    }
    let ingress = picture.ingress.get(&link.index);
    if ingress == Some(&Ingress::Ours) {
        return Err("it is joined to another machine already; give each pod a network namespace of its own".to_owned());
    }
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    if mtu < MTU_MIN {
        return Err(format!("its MTU is {mtu}; give it at least {MTU_MIN}"));
    }
    let trace = Trace { index: link.index, name: link.name.clone(), own_ingress: ingress.is_none() };
    Ok(Joint { trace, mac, mtu })
}

fn check_all(joints: &[Joint]) -> Result<(), PodError> {
    if joints.len() > NETWORKS_MAX {
        let sentence = format!(
            "the pod's network namespace has {} interfaces, a machine has at most {NETWORKS_MAX}: attach the pod to fewer networks",
            joints.len()
        );
        return Err(PodError::new(ErrorKind::FailedPrecondition, sentence));
    }
    for (place, joint) in joints.iter().enumerate() {
        for before in joints.iter().take(place) {
            let name = &joint.trace.name;
            if before.trace.name == *name {
                return Err(refused(name, "there are two of that name; rename one"));
            }
            if before.mac == joint.mac {
                return Err(refused(name, &same_mac(before)));
            }
        }
    }
    Ok(())
}

/// The agent takes so much and no more; better said before there is a machine.
fn check_sizes(network: &m::Network) -> Result<(), PodError> {
    let addresses = network.interfaces.iter().map(|interface| interface.addresses.len()).max().unwrap_or(0);
    let next_hops = network.routes.iter().map(|route| route.next_hops.len()).max().unwrap_or(0);
    for (count, max, what) in [
        (addresses, ADDRESSES_MAX, "addresses at one interface"),
        (network.routes.len(), ROUTES_MAX, "routes"),
        (next_hops, NEXT_HOPS_MAX, "ways of one route"),
        (network.neighbours.len(), NEIGHBOURS_MAX, "neighbours"),
        (network.rules.len(), RULES_MAX, "rules"),
    ] {
        if count > max {
            let sentence = format!(
                "the pod's network namespace has {count} {what}, a pod has at most {max}: use a plugin that makes fewer"
            );
            return Err(PodError::new(ErrorKind::FailedPrecondition, sentence));
        }
    }
    Ok(())
}

/// What a later look at the namespace changes in the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Places whose interface has gone.
    pub gone: Vec<usize>,
    /// Interfaces that have come, each with an empty place.
    pub new: Vec<(usize, Joint)>,
    /// Why others that have come are not joined.
    pub unjoined: Vec<String>,
}

/// Compares what there is with what the machine has in its places. An interface is another one when it has another number or hardware
/// address; one that is switched off for a while stays.
pub(crate) fn change(picture: &Picture, places: &[Option<Joint>]) -> Change {
    let is_there = |joint: &Joint| picture.link(joint.trace.index).is_some_and(|link| link.mac == joint.mac);
    let stays = |place: &Option<Joint>| place.as_ref().is_some_and(is_there);
    let gone = (0..places.len()).filter(|place| places[*place].is_some() && !stays(&places[*place])).collect();
    let mut empty = (0..places.len()).filter(|place| !stays(&places[*place]));
    let staying: Vec<&Joint> = places.iter().flatten().filter(|joint| is_there(joint)).collect();
    let mut change = Change { gone, ..Change::default() };
    for link in picture.links.iter().filter(|link| staying.iter().all(|joint| joint.trace.index != link.index)) {
        let joint = match verdict(link, picture) {
            Verdict::Join(joint) => joint,
            Verdict::Leave => continue,
            Verdict::Refuse(why) => {
                change.unjoined.push(refused(&link.name, &why).message);
                continue;
            }
        };
        let twin = staying
            .iter()
            .copied()
            .chain(change.new.iter().map(|(_, joint)| joint))
            .find(|other| other.mac == joint.mac);
        if let Some(twin) = twin {
            change.unjoined.push(refused(&link.name, &same_mac(twin)).message);
        } else if let Some(place) = empty.next() {
            change.new.push((place, joint));
        } else {
            let why = "the machine has no place left for a device; make the pod again with all its networks";
            change.unjoined.push(refused(&link.name, why).message);
        }
    }
    change
}

/// What there is to tell about the interfaces that are joined, and about none. One that is gone is not told of.
pub(crate) fn told<'a>(picture: &Picture, joined: impl IntoIterator<Item = &'a Joint>) -> m::Network {
    let now = |joint: &Joint| {
        let link = picture.link(joint.trace.index)?;
        let trace = Trace { name: link.name.clone(), ..joint.trace.clone() };
        // The machine's device takes no larger packets than it began with.
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX).min(joint.mtu);
        Some(Joint { trace, mac: joint.mac, mtu })
    };
    let joints: Vec<Joint> = joined.into_iter().filter_map(now).collect();
    let reachable: BTreeSet<String> =
        joints.iter().map(|joint| joint.trace.name.clone()).chain(["lo".to_owned(), String::new()]).collect();
    let reaches = |name: &String| reachable.contains(name);
    let reaches_all =
        |route: &m::Route| reaches(&route.interface) && route.next_hops.iter().all(|hop| reaches(&hop.interface));
    m::Network {
        interfaces: joints.iter().map(|joint| interface(joint, picture)).collect(),
        routes: picture.routes.iter().filter(|route| reaches_all(route)).cloned().collect(),
        neighbours: picture.neighbours.iter().filter(|neighbour| reaches(&neighbour.interface)).cloned().collect(),
        rules: picture.rules.clone(),
        ..Default::default()
    }
}

fn interface(joint: &Joint, picture: &Picture) -> m::NetworkInterface {
    let own = picture.addresses.iter().filter(|(index, _)| *index == joint.trace.index);
    let no_arp = picture.link(joint.trace.index).is_some_and(Link::is_without_arp);
    m::NetworkInterface {
        name: joint.trace.name.clone(),
        mac: joint.mac.to_vec(),
        mtu: joint.mtu.into(),
        addresses: own.map(|(_, address)| address.clone()).collect(),
        no_arp,
        ..Default::default()
    }
}

fn same_mac(other: &Joint) -> String {
    format!(
        "it has the hardware address of {} ({}); give it one of its own (`ip link set`, or the plugin's `mac`)",
        other.trace.name,
        in_words(other.mac)
    )
}

fn refused(name: &str, why: &str) -> PodError {
    let sentence = format!("the interface {name} of the pod's network namespace cannot be joined to a machine: {why}");
    PodError::new(ErrorKind::FailedPrecondition, sentence)
}

fn in_words(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use netlink::packet::link::LinkFlags;

    use super::*;

    fn veth(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: "veth".to_owned(),
            layer: LinkLayerType::Ether,
            mac: vec![2, 0, 0, 0, 0, u8::try_from(index).expect("few")],
            mtu: 1500,
            flags: LinkFlags::Up,
            lower: None,
            controller: None,
        }
    }

    fn lo() -> Link {
        let flags = LinkFlags::Up | LinkFlags::Loopback;
        Link { kind: String::new(), layer: LinkLayerType::Loopback, mac: vec![0; 6], flags, ..veth(1, "lo") }
    }

    /// A tunnel as every namespace has it, but switched on.
    fn tunnel(index: u32) -> Link {
        Link { kind: "ipip".to_owned(), layer: LinkLayerType::Tunnel, mac: vec![0; 4], ..veth(index, "tunl0") }
    }

    fn address(index: u32) -> (u32, m::InterfaceAddress) {
        (index, m::InterfaceAddress { address: vec![10, 0, 0, 2], prefix_length: 24, ..Default::default() })
    }

    fn picture(links: Vec<Link>) -> Picture {
        let addresses = links.iter().map(|link| address(link.index)).collect();
        Picture { links, addresses, ..Picture::default() }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.joints.iter().map(|joint| joint.trace.name.as_str()).collect()
    }

    fn refusal(picture: Picture) -> String {
        Plan::of(picture).expect_err("refused").message
    }

    #[test]
    fn what_is_up_and_ethernet_is_joined_and_told_in_order() {
        let down = Link { flags: LinkFlags::empty(), ..veth(4, "net2") };
        let hardware = Link { kind: String::new(), ..veth(5, "net3") };
        let plan = Plan::of(picture(vec![lo(), veth(2, "eth0"), veth(3, "net1"), down, hardware])).expect("planned");
        assert_eq!(names(&plan), ["eth0", "net1", "net3"]);
        let told: Vec<_> = plan.network.interfaces.iter().map(|i| (i.name.as_str(), i.addresses.len())).collect();
        assert_eq!(told, [("eth0", 1), ("net1", 1), ("net3", 1)]);
    }

    #[test]
    fn a_namespace_with_loopback_only_is_a_plan_without_interfaces() {
        let plan = Plan::of(picture(vec![lo()])).expect("planned");
        assert!(plan.joints.is_empty() && plan.network.interfaces.is_empty());
    }

    #[test]
    fn what_cannot_be_joined_is_left_without_an_address_and_refused_with_one() {
        let port = Link { controller: Some(2), ..veth(4, "port") };
        let vlan = Link { kind: "vlan".to_owned(), lower: Some(2), ..veth(5, "eth0.100") };
        for (link, words) in [(tunnel(6), "ipip"), (port, "port of eth0"), (vlan, "lies on eth0")] {
            let mut unaddressed = picture(vec![veth(2, "eth0"), link.clone()]);
            unaddressed.addresses.truncate(1);
            assert_eq!(names(&Plan::of(unaddressed).expect("left")), ["eth0"]);
            let sentence = refusal(picture(vec![veth(2, "eth0"), link.clone()]));
            assert!(sentence.contains(words) && sentence.contains(&link.name), "{sentence}");
        }
    }

    #[test]
    fn a_tap_is_joined_when_somebody_gave_it_an_address_and_left_to_its_machine_otherwise() {
        let tap = Link { kind: "tun".to_owned(), ..veth(3, "tap0") };
        let mut picture = picture(vec![veth(2, "eth0"), tap]);
        let unaddressed =
            Picture { addresses: picture.addresses[..1].to_vec(), links: picture.links.clone(), ..Picture::default() };
        assert_eq!(names(&Plan::of(unaddressed).expect("left")), ["eth0"]);
        picture.addresses[1].1.address = vec![10, 0, 0, 3];
        assert_eq!(names(&Plan::of(picture).expect("joined")), ["eth0", "tap0"]);
    }

    #[test]
    fn an_address_that_an_interface_gives_itself_does_not_make_it_the_pods() {
        let mut picture = picture(vec![veth(2, "eth0"), tunnel(3)]);
        picture.addresses[1].1.scope = SCOPE_LINK;
        assert_eq!(names(&Plan::of(picture).expect("left")), ["eth0"]);
    }

    #[test]
    fn the_ends_of_a_pair_do_not_lie_on_one_another() {
        let end = |index: u32, other: u32, name| Link { lower: Some(other), ..veth(index, name) };
        assert_eq!(names(&Plan::of(picture(vec![end(2, 3, "a"), end(3, 2, "b")])).expect("planned")), ["a", "b"]);
    }

    #[test]
    fn two_interfaces_of_one_name_or_address_are_refused() {
        let twin = Link { mac: veth(2, "eth0").mac, ..veth(3, "net1") };
        let sentence = refusal(picture(vec![veth(2, "eth0"), twin]));
        assert!(
            sentence.contains("net1") && sentence.contains("eth0") && sentence.contains("02:00:00:00:00:02"),
            "{sentence}"
        );
        assert!(refusal(picture(vec![veth(2, "eth0"), veth(3, "eth0")])).contains("two of that name"));
    }

    #[test]
    fn more_interfaces_than_a_machine_has_are_refused() {
        let many = |count: u32| (2..2 + count).map(|index| veth(index, &format!("net{index}"))).collect();
        assert_eq!(Plan::of(picture(many(8))).expect("planned").joints.len(), NETWORKS_MAX);
        assert!(refusal(picture(many(9))).contains("at most 8"));
    }

    #[test]
    fn more_than_the_agent_takes_is_refused_before_there_is_a_machine() {
        let mut crowded = picture(vec![veth(2, "eth0")]);
        crowded.addresses = vec![address(2); ADDRESSES_MAX + 1];
        assert!(refusal(crowded).contains("257 addresses"));
        let mut routed = picture(vec![veth(2, "eth0")]);
        routed.routes = vec![m::Route { interface: "eth0".to_owned(), ..Default::default() }; ROUTES_MAX];
        assert!(Plan::of(routed).is_ok());
    }

    #[test]
    fn what_others_made_for_incoming_frames_stays_theirs() {
        let mut shared = picture(vec![veth(2, "eth0"), veth(3, "net1")]);
        shared.ingress.insert(2, Ingress::Others);
        let plan = Plan::of(shared).expect("planned");
        assert_eq!(plan.joints.iter().map(|joint| joint.trace.own_ingress).collect::<Vec<_>>(), [false, true]);
        let mut taken = picture(vec![veth(2, "eth0")]);
        taken.ingress.insert(2, Ingress::Ours);
        assert!(refusal(taken).contains("another machine"));
    }

    #[test]
    fn routes_and_neighbours_of_what_is_not_joined_are_not_told() {
        let mut picture = picture(vec![veth(2, "eth0"), tunnel(3)]);
        picture.addresses.truncate(1);
        let route = |interface: &str| m::Route { interface: interface.to_owned(), ..Default::default() };
        let hop = |interface: &str| m::NextHop { interface: interface.to_owned(), ..Default::default() };
        let both = m::Route { next_hops: vec![hop("eth0"), hop("tunl0")], ..Default::default() };
        picture.routes = vec![route("eth0"), route("tunl0"), route(""), both];
        picture.neighbours = vec![m::Neighbour { interface: "tunl0".to_owned(), ..Default::default() }];
        let network = Plan::of(picture).expect("planned").network;
        assert_eq!(network.routes.iter().map(|r| r.interface.as_str()).collect::<Vec<_>>(), ["eth0", ""]);
        assert!(network.neighbours.is_empty());
    }

    #[test]
    fn what_changed_since_is_told_of_the_interfaces_that_are_still_there() {
        let links = vec![veth(2, "eth0"), veth(3, "net1"), veth(4, "net2")];
        let joints = Plan::of(picture(links)).expect("planned").joints;
        let narrower = Link { mtu: 1300, name: "eth9".to_owned(), ..veth(2, "eth0") };
        let wider = Link { mtu: 9000, ..veth(3, "net1") };
        let network = told(&picture(vec![narrower, wider, veth(5, "net3")]), &joints);
        let told: Vec<_> = network.interfaces.iter().map(|i| (i.name.as_str(), i.mtu)).collect();
        assert_eq!(told, [("eth9", 1300), ("net1", 1500)]);
    }

    fn places(picture: Picture, empty: usize) -> Vec<Option<Joint>> {
        let joints = Plan::of(picture).expect("planned").joints;
        joints.into_iter().map(Some).chain(std::iter::repeat_n(None, empty)).collect()
    }

    fn new_names(change: &Change) -> Vec<(usize, &str)> {
        change.new.iter().map(|(place, joint)| (*place, joint.trace.name.as_str())).collect()
    }

    #[test]
    fn what_has_come_gets_an_empty_place_and_what_has_gone_leaves_one() {
        let places = places(picture(vec![veth(2, "eth0"), veth(3, "net1")]), 1);
        assert_eq!(change(&picture(vec![veth(2, "eth0"), veth(3, "net1")]), &places), Change::default());
        let come = change(&picture(vec![veth(2, "eth0"), veth(3, "net1"), veth(4, "net2")]), &places);
        assert_eq!((new_names(&come), &come.gone[..]), (vec![(2, "net2")], &[][..]));
        let replaced = Link { mac: vec![2, 9, 9, 9, 9, 9], ..veth(2, "eth0") };
        let other = change(&picture(vec![replaced, veth(3, "net1")]), &places);
        assert_eq!((new_names(&other), &other.gone[..]), (vec![(0, "eth0")], &[0][..]));
        let gone = change(&picture(vec![veth(3, "net1")]), &places);
        assert_eq!((new_names(&gone), &gone.gone[..]), (vec![], &[0][..]));
    }

    #[test]
    fn an_interface_that_is_switched_off_keeps_its_place_and_one_that_comes_so_gets_none() {
        let places = places(picture(vec![veth(2, "eth0")]), 1);
        let off = |link| Link { flags: LinkFlags::empty(), ..link };
        assert_eq!(change(&picture(vec![off(veth(2, "eth0")), off(veth(3, "net1"))]), &places), Change::default());
    }

    #[test]
    fn what_comes_and_cannot_be_joined_is_said_with_the_reason() {
        let places = places(picture(vec![veth(2, "eth0")]), 1);
        let twin = Link { mac: veth(2, "eth0").mac, ..veth(3, "net1") };
        let links = vec![veth(2, "eth0"), twin, tunnel(4), veth(5, "net2"), veth(6, "net3")];
        let change = change(&picture(links), &places);
        assert_eq!(new_names(&change), [(1, "net2")]);
        for (sentence, words) in change.unjoined.iter().zip(["hardware address of eth0", "ipip", "no place left"]) {
            assert!(sentence.contains(words), "{sentence}");
        }
        assert_eq!(change.unjoined.len(), 3);
    }

    #[test]
    fn an_interface_that_asks_nobody_for_addresses_is_told_as_one() {
        let quiet = Link { flags: LinkFlags::Up | LinkFlags::Noarp, ..veth(2, "eth0") };
        let network = Plan::of(picture(vec![quiet, veth(3, "net1")])).expect("planned").network;
        assert_eq!(network.interfaces.iter().map(|i| i.no_arp).collect::<Vec<_>>(), [true, false]);
    }
}
