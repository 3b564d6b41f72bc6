//! The network as a kernel has it: in a network namespace of the test's own, with veth pairs for the machine's devices.
#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

use std::{net::IpAddr, path::Path, process::Command};

use agent::network::{Network, Places};
use agent_protocol::messages as m;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Runs the story in a thread with a network namespace of its own, in which there are two devices: `d7` and `d8`, after their MACs.
fn in_a_machine(test: &str, story: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs root and iproute2, and in CI nothing is skipped");
        eprintln!("skipped: {test} needs root and iproute2");
        return;
    }
    let told = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        for mac in [7, 8] {
            ip(&format!(
                "link add p{mac} up mtu 9000 type veth peer name d{mac} address 02:00:00:00:00:0{mac} mtu 1500"
            ));
        }
        story();
    });
    told.join().expect("as told");
}

/// The devices of this test are no machine's: nothing of the host is looked into.
fn no_places() -> Places {
    Places::at(Path::new("/nonexistent"))
}

/// What `ip` says, of which the test says what it must.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// All that the network is about, without what the kernel does a little later: carriers, duplicates, link-local addresses.
fn state() -> Vec<String> {
    let links: Value = serde_json::from_str(&ip("-j address show")).unwrap();
    let mut all: Vec<String> = links.as_array().unwrap().iter().map(link_state).collect();
    let lists = [
        "-4 route show table all",
        "-6 route show table all",
        "rule show",
        "-6 rule show",
        "neighbour show nud permanent",
    ];
    let lines = lists.into_iter().map(ip).collect::<String>();
    let later = |line: &&str| line.contains("table local") || line.contains("fe80::") || line.contains("ff00::");
    all.extend(lines.lines().filter(|line| !later(line)).map(|line| line.replace("linkdown ", "")));
    all
}

fn link_state(link: &Value) -> String {
    let up = link["flags"].as_array().unwrap().contains(&"UP".into());
    let addresses = link["addr_info"].as_array().unwrap().iter().filter(|address| address["scope"] != "link");
    let addresses: Vec<_> = addresses.map(Value::to_string).collect();
    format!("{} {} {} {up} {addresses:?}", link["ifname"], link["mtu"], link["address"])
}

fn bytes(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(address: &str, prefix_length: u32) -> m::InterfaceAddress {
    m::InterfaceAddress { address: bytes(address), prefix_length, ..Default::default() }
}

fn interface(name: &str, mac: u8, mtu: u32, addresses: Vec<m::InterfaceAddress>) -> m::NetworkInterface {
    m::NetworkInterface { name: name.into(), mac: vec![2, 0, 0, 0, 0, mac], mtu, addresses, ..Default::default() }
}

/// `10.0.0.0/8`, or nothing for all of the router's family.
fn route(destination: &str, gateway: &str, interface: &str) -> m::Route {
    let mut route = m::Route { interface: interface.into(), ..Default::default() };
    if let Some((address, length)) = destination.split_once('/') {
        route.destination = bytes(address);
        route.prefix_length = length.parse().unwrap();
    }
    if !gateway.is_empty() {
        route.gateway = bytes(gateway);
    }
    let sample = if route.destination.is_empty() { &route.gateway } else { &route.destination };
    route.family = if sample.len() == 4 { 2 } else { 10 };
    // RT_SCOPE_LINK, as every plugin makes a route without a router.
    route.scope = if gateway.is_empty() { 253 } else { 0 };
    route
}

/// As the kernel makes it for an address, and the host tells it.
fn kernels(destination: &str, interface: &str, source: &str) -> m::Route {
    let route = m::Route { protocol: 2, ..route(destination, "", interface) };
    if source.is_empty() {
        return m::Route { metric: 256, ..route };
    }
    m::Route { preferred_source: bytes(source), ..route }
}

fn way(gateway: &str, interface: &str, weight: u32) -> m::NextHop {
    m::NextHop { gateway: bytes(gateway), interface: interface.into(), weight, ..Default::default() }
}

/// As the plugin ptp makes the first, and a bridge with a table of its own the second.
fn two_interfaces() -> m::Network {
    let ptp = m::InterfaceAddress { peer: bytes("10.1.0.1"), ..address("10.1.0.5", 32) };
    let mut bridged = address("10.2.0.5", 24);
    bridged.broadcast = bytes("10.2.0.255");
    let own_table = |route: m::Route| m::Route { table: 100, ..route };
    let rule = m::Rule {
        family: 2,
        priority: 500,
        source: bytes("10.2.0.5"),
        source_prefix_length: 32,
        table: 100,
        ..Default::default()
    };
    let neighbour = |address: &str| m::Neighbour {
        address: bytes(address),
        mac: vec![2, 0, 0, 0, 0, 0xff],
        interface: "eth0".into(),
        ..Default::default()
    };
    m::Network {
        interfaces: vec![
            interface("eth0", 7, 1400, vec![ptp, address("fd01::5", 64)]),
            interface("net1", 8, 9000, vec![bridged, address("fd02::5", 64)]),
        ],
        routes: vec![
            kernels("10.1.0.1/32", "eth0", "10.1.0.5"),
            kernels("fd01::/64", "eth0", ""),
            kernels("10.2.0.0/24", "net1", "10.2.0.5"),
            kernels("fd02::/64", "net1", ""),
            route("", "10.1.0.1", "eth0"),
            route("", "fd01::1", "eth0"),
            m::Route { preferred_source: bytes("10.2.0.5"), metric: 7, ..route("10.3.0.0/16", "10.2.0.1", "net1") },
            m::Route { mtu: 1300, ..route("10.4.0.0/16", "", "net1") },
            own_table(route("", "10.2.0.1", "net1")),
            own_table(route("10.2.0.0/24", "", "net1")),
            m::Route { flags: 4, ..route("10.5.0.0/16", "192.0.2.1", "net1") },
            m::Route { family: 2, destination: bytes("10.6.0.0"), prefix_length: 16, kind: 6, ..Default::default() },
            m::Route { kind: 7, ..route("fd06::/16", "", "lo") },
            route("10.7.0.0/16", "fd02::1", "net1"),
            m::Route {
                interface: String::new(),
                next_hops: vec![way("fd01::2", "eth0", 1), way("fd02::2", "net1", 5)],
                ..route("fd07::/16", "", "")
            },
        ],
        neighbours: vec![neighbour("10.1.0.1"), neighbour("fd01::1")],
        rules: vec![
            rule,
            m::Rule { family: 2, priority: 32766, table: 254, ..Default::default() },
            m::Rule { family: 10, priority: 501, table: 101, mark: 5, mask: 0xff, ..Default::default() },
        ],
        ..Default::default()
    }
}

fn apply(wanted: &m::Network) {
    Network::parse(&wanted.clone()).unwrap().apply(&no_places()).unwrap();
}

/// Addresses of an interface that the kernel did not give it, as `ip` writes them, and whether they can be used.
fn addresses(interface: &str) -> Vec<(String, bool)> {
    let all: Value = serde_json::from_str(&ip(&format!("-j address show dev {interface}"))).unwrap();
    let of = |address: &Value| {
        let text = format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]);
        let text = address["address"].as_str().map_or(text.clone(), |peer| format!("{text} peer {peer}"));
        (text, address["tentative"] != true)
    };
    all[0]["addr_info"].as_array().unwrap().iter().filter(|a| a["scope"] != "link").map(of).collect()
}

fn usable(addresses: &[&str]) -> Vec<(String, bool)> {
    addresses.iter().map(|address| ((*address).to_owned(), true)).collect()
}

#[test]
fn needs_root_what_is_wanted_is_what_the_kernel_has() {
    in_a_machine("needs_root_what_is_wanted_is_what_the_kernel_has", || {
        apply(&two_interfaces());
        for (name, mtu, mac) in [("eth0", 1400, "02:00:00:00:00:07"), ("net1", 9000, "02:00:00:00:00:08")] {
            let link: Value = serde_json::from_str(&ip(&format!("-j link show dev {name}"))).unwrap();
            assert_eq!(
                (&link[0]["mtu"], &link[0]["address"], &link[0]["operstate"]),
                (&mtu.into(), &mac.into(), &"UP".into())
            );
        }
        assert_eq!(addresses("eth0"), usable(&["10.1.0.5/32 peer 10.1.0.1", "fd01::5/64"]));
        assert_eq!(addresses("net1"), usable(&["10.2.0.5/24", "fd02::5/64"]));
        assert!(ip("-j address show dev net1").contains("10.2.0.255"));
        let v4 = ip("-4 route show table main");
        for line in [
            "default via 10.1.0.1 dev eth0 proto static",
            "10.1.0.1 dev eth0 proto kernel scope link src 10.1.0.5",
            "10.2.0.0/24 dev net1 proto kernel scope link src 10.2.0.5",
            "10.3.0.0/16 via 10.2.0.1 dev net1 proto static src 10.2.0.5 metric 7",
            "10.4.0.0/16 dev net1 proto static scope link mtu 1300",
            "10.5.0.0/16 via 192.0.2.1 dev net1 proto static onlink",
            "blackhole 10.6.0.0/16 proto static",
            "10.7.0.0/16 via inet6 fd02::1 dev net1 proto static",
        ] {
            assert!(v4.lines().any(|own| own.trim() == line), "{line:?} is not in\n{v4}");
        }
        assert_eq!(v4.lines().count(), 8, "{v4}");
        let own = ip("-4 route show table 100");
        let own: Vec<_> = own.lines().map(str::trim).collect();
        assert_eq!(own, ["default via 10.2.0.1 dev net1 proto static", "10.2.0.0/24 dev net1 proto static scope link"]);
        let v6 = ip("-6 route show");
        assert!(v6.contains("default via fd01::1 dev eth0 proto static metric 1024"), "{v6}");
        assert!(v6.contains("unreachable fd06::/16") && v6.contains("fd01::/64 dev eth0 proto kernel"), "{v6}");
        assert!(v6.contains("nexthop via fd01::2 dev eth0 weight 1"), "{v6}");
        assert!(v6.contains("nexthop via fd02::2 dev net1 weight 5"), "{v6}");
        assert!(ip("rule show").contains("500:\tfrom 10.2.0.5 lookup 100"));
        assert_eq!(ip("rule show").matches("lookup main").count(), 1, "the kernel's own rule is not doubled");
        assert!(ip("-6 rule show").contains("501:\tfrom all fwmark 0x5/0xff lookup 101"));
        let neighbours = ip("neighbour show nud permanent");
        for address in ["10.1.0.1", "fd01::1"] {
            let line = format!("{address} dev eth0 lladdr 02:00:00:00:00:ff PERMANENT");
            assert!(neighbours.lines().any(|own| own.trim() == line), "{neighbours}");
        }
    });
}

#[test]
fn needs_root_the_same_network_again_changes_nothing() {
    in_a_machine("needs_root_the_same_network_again_changes_nothing", || {
        apply(&two_interfaces());
        let first = state();
        apply(&two_interfaces());
        assert_eq!(state(), first);
    });
}

#[test]
fn needs_root_a_change_replaces_what_the_named_interface_had_and_nothing_else() {
    in_a_machine("needs_root_a_change_replaces_what_the_named_interface_had_and_nothing_else", || {
        apply(&two_interfaces());
        ip("address add 10.2.0.7/24 dev net1");
        ip("route add 10.9.0.0/16 via 10.2.0.1 dev net1");
        let net1 = ip("address show dev net1");
        let changed = m::Network {
            interfaces: vec![interface("eth0", 7, 1500, vec![address("10.1.0.6", 24), address("fd01::5", 128)])],
            // As ptp makes it of a range: neighbours are reached by the router only.
            routes: vec![
                route("10.1.0.254/32", "", "eth0"),
                route("10.1.0.0/24", "10.1.0.254", "eth0"),
                route("", "10.1.0.254", "eth0"),
                kernels("fd01::5/128", "eth0", ""),
                route("fd01::/64", "", "eth0"),
                route("", "fd01::1", "eth0"),
            ],
            ..Default::default()
        };
        apply(&changed);
        assert_eq!(addresses("eth0"), usable(&["10.1.0.6/24", "fd01::5/128"]));
        let v4 = ip("-4 route show");
        assert!(v4.contains("default via 10.1.0.254 dev eth0"), "{v4}");
        let range: Vec<_> = v4.lines().filter(|line| line.starts_with("10.1.0.0/24")).map(str::trim).collect();
        assert_eq!(range, ["10.1.0.0/24 via 10.1.0.254 dev eth0 proto static"], "the kernel's own route is gone");
        assert!(!v4.contains("10.1.0.1 dev eth0"), "{v4}");
        assert!(v4.contains("10.9.0.0/16 via 10.2.0.1 dev net1") && v4.contains("10.3.0.0/16"), "{v4}");
        assert_eq!(ip("address show dev net1"), net1);
        let second = state();
        apply(&changed);
        assert_eq!(state(), second);
    });
}

#[test]
fn needs_root_an_address_survives_the_first_of_its_range() {
    in_a_machine("needs_root_an_address_survives_the_first_of_its_range", || {
        let with = |addresses: &[&str]| m::Network {
            interfaces: vec![interface("eth0", 7, 0, addresses.iter().map(|own| address(own, 24)).collect())],
            routes: vec![kernels("10.1.0.0/24", "eth0", addresses[0]), route("", "10.1.0.1", "eth0")],
            ..Default::default()
        };
        apply(&with(&["10.1.0.5", "10.1.0.6"]));
        apply(&with(&["10.1.0.6"]));
        assert_eq!(addresses("eth0"), usable(&["10.1.0.6/24"]));
        assert!(ip("route show").contains("default via 10.1.0.1 dev eth0"));
    });
}

#[test]
fn needs_root_interfaces_that_are_up_swap_their_names() {
    in_a_machine("needs_root_interfaces_that_are_up_swap_their_names", || {
        let named = |first: &str, second: &str| m::Network {
            interfaces: vec![interface(first, 7, 0, vec![]), interface(second, 8, 0, vec![])],
            ..Default::default()
        };
        apply(&named("eth0", "eth1"));
        apply(&named("eth1", "eth0"));
        assert!(ip("-o link show dev eth1").contains("02:00:00:00:00:07"));
        assert!(ip("-o link show dev eth0").contains("02:00:00:00:00:08"));
    });
}

#[test]
fn needs_root_a_device_made_on_top_of_ours_is_not_taken_for_it() {
    in_a_machine("needs_root_a_device_made_on_top_of_ours_is_not_taken_for_it", || {
        ip("link add top address 02:00:00:00:00:07 type bridge");
        apply(&m::Network { interfaces: vec![interface("eth0", 7, 0, vec![])], ..Default::default() });
        assert!(ip("-o link show").contains("eth0@p7"));
        assert!(ip("-o link show dev top").contains("state DOWN"));
    });
}

#[test]
fn needs_root_a_link_local_address_that_is_told_is_the_only_one_and_good_at_once() {
    in_a_machine("needs_root_a_link_local_address_that_is_told_is_the_only_one_and_good_at_once", || {
        let mut wanted = m::Network::new();
        let told =
            m::InterfaceAddress { address: bytes("fe80::77"), prefix_length: 64, scope: 253, ..Default::default() };
        wanted.interfaces.push(m::NetworkInterface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 7],
            addresses: vec![told],
            ..Default::default()
        });
        Network::parse(&wanted).unwrap().apply(&no_places()).unwrap();
        let shown = ip("-6 -o address show dev eth0");
        assert!(shown.lines().count() == 1 && shown.contains("fe80::77/64"), "{shown}");
        assert!(!shown.contains("tentative"), "{shown}");
    });
}

#[test]
fn needs_root_a_missing_device_changes_nothing() {
    in_a_machine("needs_root_a_missing_device_changes_nothing", || {
        let before = state();
        let mut wanted = two_interfaces();
        wanted.interfaces[1].mac[5] = 9;
        let network = Network::parse(&wanted).unwrap();
        let error = network.apply(&no_places()).unwrap_err();
        assert!(error.to_string().contains("02:00:00:00:00:09 of net1"), "{error}");
        assert!(!error.is_invalid());
        assert_eq!(state(), before);
    });
}

#[test]
fn needs_root_a_refused_step_is_told_with_the_kernels_words() {
    in_a_machine("needs_root_a_refused_step_is_told_with_the_kernels_words", || {
        let mut wanted = two_interfaces();
        wanted.routes.insert(0, route("10.8.0.0/16", "192.0.2.9", "eth0"));
        let network = Network::parse(&wanted).unwrap();
        let error = network.apply(&no_places()).unwrap_err();
        assert!(error.to_string().contains("make the route 10.8.0.0/16 via 192.0.2.9 dev eth0"), "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("invalid gateway"), "{source}");
    });
}
