//! Which name servers the container asks. Pure.
//!
//! A server of the network is reached from the container as from the host. One on the host's own loopback (systemd-resolved, dnsmasq) is not:
//! passt stands in for it at an address of the container's network.

use std::net::{IpAddr, Ipv4Addr};

/// What the container's resolv.conf has, and what passt has to do for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// The file; empty for none.
    pub resolv_conf: String,
    /// passt passes questions to its own address on to this server of the host's loopback.
    pub stood_in_for: Option<Ipv4Addr>,
}

/// Longest resolv.conf of the host that is looked at.
pub const FILE_LEN_MAX: u64 = 64 << 10;

impl Resolver {
    /// Plans by the host's resolv.conf. `stand_in` is passt's own address for questions; `v6` tells whether the container has IPv6.
    pub fn plan(host: &str, stand_in: Ipv4Addr, v6: bool) -> Self {
        let mut plan = Self::default();
        let mut servers = Vec::new();
        let mut others = Vec::new();
        for line in host.lines() {
            match line.split_once(char::is_whitespace).map(|(word, rest)| (word, rest.trim())) {
                Some(("nameserver", address)) => match address.parse() {
                    Ok(IpAddr::V4(server)) if server.is_loopback() || server.is_unspecified() => {
                        let stood_in_for = if server.is_loopback() { server } else { Ipv4Addr::LOCALHOST };
                        if *plan.stood_in_for.get_or_insert(stood_in_for) == stood_in_for {
                            servers.push(IpAddr::from(stand_in));
                        }
                    }
                    Ok(server) if usable(server, v6) => servers.push(server),
                    // With a zone (fe80::1%eth0), or of a family that the container lacks.
                    _ => {}
                },
                Some(("search" | "domain" | "options", _)) => others.push(line),
                _ => {}
            }
        }
        servers.dedup();
        if !servers.is_empty() {
            let servers = servers.iter().map(|server| format!("nameserver {server}\n"));
            plan.resolv_conf = servers.chain(others.iter().map(|line| format!("{line}\n"))).collect();
        }
        plan
    }
}

fn usable(server: IpAddr, v6: bool) -> bool {
    match server {
        IpAddr::V4(_) => true,
        IpAddr::V6(server) => {
            v6 && !server.is_loopback() && !server.is_unspecified() && !server.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAND_IN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    #[test]
    fn servers_of_the_network_are_asked_as_they_are() {
        let host =
            "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\noptions edns0\n";
        let plan = Resolver::plan(host, STAND_IN, true);
        let expected = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\noptions edns0\n";
        assert_eq!(plan, Resolver { resolv_conf: expected.to_owned(), stood_in_for: None });
        let plan = Resolver::plan(host, STAND_IN, false);
        assert!(!plan.resolv_conf.contains("2001:db8"), "{}", plan.resolv_conf);
    }

    #[test]
    fn passt_stands_in_for_a_server_of_the_hosts_loopback() {
        let plan = Resolver::plan("nameserver 127.0.0.53\noptions edns0 trust-ad\n", STAND_IN, true);
        assert_eq!(plan.resolv_conf, "nameserver 10.0.0.3\noptions edns0 trust-ad\n");
        assert_eq!(plan.stood_in_for, Some(Ipv4Addr::new(127, 0, 0, 53)));
        let plan = Resolver::plan("nameserver 127.0.0.1\nnameserver 127.0.0.2\n", STAND_IN, true);
        assert_eq!(plan.resolv_conf, "nameserver 10.0.0.3\n", "it stands in for one only");
    }

    #[test]
    fn what_cannot_be_reached_is_left_out_and_nothing_is_no_file() {
        for host in ["", "garbage\n", "nameserver ::1\n", "nameserver fe80::1%eth0\n", "nameserver fe80::1\nsearch a\n"]
        {
            assert_eq!(Resolver::plan(host, STAND_IN, true), Resolver::default(), "{host}");
        }
    }
}
