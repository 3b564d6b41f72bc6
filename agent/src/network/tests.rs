use super::*;

fn interface(name: &str, mac: u8) -> m::NetworkInterface {
    m::NetworkInterface { name: name.into(), mac: vec![2, 0, 0, 0, 0, mac], ..Default::default() }
}

fn default_route(interface: &str) -> m::Route {
    m::Route { family: 2, gateway: vec![10, 0, 0, 1], interface: interface.into(), ..Default::default() }
}

/// One interface and a default route over it, changed so.
fn refused(change: impl FnOnce(&mut m::Network)) -> String {
    let mut wanted = m::Network::new();
    wanted.interfaces.push(interface("eth0", 1));
    wanted.routes.push(default_route("eth0"));
    assert!(Network::parse(&wanted).is_ok());
    change(&mut wanted);
    let error = Network::parse(&wanted).expect_err("refused");
    assert!(error.is_invalid());
    error.to_string()
}

#[test]
fn no_network_is_a_network_without_anything_to_do() {
    assert_eq!(Network::parse(&m::Network::new()).unwrap(), Network::default());
}

#[test]
fn two_interfaces_differ_in_name_and_mac() {
    assert!(refused(|wanted| wanted.interfaces.push(interface("eth0", 2))).contains("another name"));
    assert!(refused(|wanted| wanted.interfaces.push(interface("eth1", 1))).contains("another MAC"));
    assert!(refused(|wanted| wanted.interfaces.push(interface("lo", 2))).contains("guest's own"));
    assert!(refused(|wanted| wanted.interfaces[0].mac.push(0)).contains("6 bytes"));
    assert!(refused(|wanted| wanted.interfaces[0].mac[0] |= 1).contains("that of a group"));
    assert!(refused(|wanted| wanted.interfaces[0].mac.fill(0)).contains("all zeros"), "it would be the loopback's");
}

#[test]
fn routes_and_neighbours_are_of_interfaces_that_are_there() {
    assert!(refused(|wanted| wanted.routes.push(default_route("eth1"))).contains("\"eth1\""));
    let neighbour = |interface: &str| m::Neighbour {
        address: vec![10, 0, 0, 1],
        mac: vec![2; 6],
        interface: interface.into(),
        ..Default::default()
    };
    assert!(refused(|wanted| wanted.neighbours.push(neighbour("eth1"))).contains("neighbour"));
    let mut wanted = m::Network::new();
    wanted.neighbours.push(neighbour("lo"));
    wanted.routes.push(default_route("lo"));
    assert!(Network::parse(&wanted).is_ok());
}

#[test]
fn a_route_leads_somewhere_or_says_that_it_does_not() {
    assert!(refused(|wanted| wanted.routes[0].kind = 10).contains("kind of a route"));
    let rule = refused(|wanted| {
        wanted.routes[0].gateway.clear();
        wanted.routes[0].interface.clear();
    });
    assert!(rule.contains("names an interface"), "{rule}");
    let no_interface = refused(|wanted| wanted.routes[0].interface.clear());
    assert!(no_interface.contains("interface of a route"), "{no_interface}");
    let both = refused(|wanted| wanted.routes[0].next_hops.push(m::NextHop::new()));
    assert!(both.contains("in place of gateway and interface"), "{both}");
}

#[test]
fn a_route_is_of_one_family_but_for_ipv4_by_an_ipv6_router() {
    let v6 = vec![0xfe; 16];
    let mut wanted = m::Network::new();
    wanted.interfaces.push(interface("eth0", 1));
    wanted.routes.push(m::Route { gateway: v6.clone(), ..default_route("eth0") });
    assert!(Network::parse(&wanted).is_ok());
    assert!(refused(|wanted| wanted.routes[0].family = 10).contains("gateway"));
    assert!(refused(|wanted| wanted.routes[0].family = 3).contains("10 for IPv6"));
    assert!(refused(|wanted| wanted.routes[0].preferred_source = v6.clone()).contains("preferred source"));
    assert!(refused(|wanted| wanted.routes[0].destination = v6.clone()).contains("destination"));
    let source = refused(|wanted| {
        wanted.routes[0].source = vec![10, 0, 0, 0];
        wanted.routes[0].source_prefix_length = 8;
    });
    assert!(source.contains("IPv4 has rules for that"), "{source}");
}

#[test]
fn numbers_fit_their_fields() {
    assert!(refused(|wanted| wanted.interfaces[0].mtu = 67).contains("MTU"));
    assert!(refused(|wanted| wanted.interfaces[0].mtu = 65_536).contains("MTU"));
    assert!(refused(|wanted| wanted.routes[0].mtu = 1).contains("MTU of a route"));
    assert!(refused(|wanted| wanted.routes[0].scope = 256).contains("scope"));
    assert!(refused(|wanted| wanted.routes[0].protocol = 256).contains("protocol"));
    assert!(refused(|wanted| wanted.routes[0].flags = 1).contains("on-link"));
    assert!(refused(|wanted| wanted.routes[0].prefix_length = 33).contains("prefix"));
}

#[test]
fn lists_have_an_end() {
    let too_many = |told: &str, what: &str| assert!(told.contains(what) && told.contains("too many"), "{told}");
    too_many(&refused(|wanted| wanted.routes = vec![default_route("eth0"); ROUTES_MAX + 1]), "routes");
    too_many(&refused(|wanted| wanted.neighbours = vec![m::Neighbour::new(); NEIGHBOURS_MAX + 1]), "neighbours");
    too_many(&refused(|wanted| wanted.rules = vec![m::Rule::new(); RULES_MAX + 1]), "rules");
    too_many(&refused(|wanted| wanted.interfaces = vec![interface("eth0", 1); 33]), "interfaces");
    let address = m::InterfaceAddress { address: vec![10, 0, 0, 1], ..Default::default() };
    too_many(&refused(|wanted| wanted.interfaces[0].addresses = vec![address; 257]), "addresses");
    let ways = refused(|wanted| {
        wanted.routes[0] = m::Route { next_hops: vec![m::NextHop::new(); 65], family: 2, ..Default::default() }
    });
    too_many(&ways, "next hops");
}

#[test]
fn a_device_that_is_not_there_is_told_by_mac_and_name() {
    let wanted = Network { interfaces: Interface::parse_all(&[interface("eth0", 7)]).unwrap(), ..Network::default() };
    let error = Devices::find(&wanted.interfaces, &[]).unwrap_err().to_string();
    assert!(error.contains("02:00:00:00:00:07") && error.contains("eth0"), "{error}");
}
