//! Which name servers the container asks. Pure.
//!
//! A server of the network is reached from the container as from the host. One on the host's own loopback is not; but who runs one there
//! (systemd-resolved, NetworkManager) writes down which servers it asks itself, and the container asks those. With nobody to ask there is no file.

use std::net::{IpAddr, Ipv6Addr};

/// Where the host says whom it asks, and where the programs that answer on its loopback say whom they ask.
pub const FILES: [&str; 3] =
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];
/// Longest of these files that is looked at.
pub const FILE_LEN_MAX: u64 = 64 << 10;

/// The container's resolv.conf by the host's, the first one that names a server which the container reaches. `v6` tells whether it has IPv6.
pub fn resolv_conf<'a>(texts: impl IntoIterator<Item = &'a str>, v6: bool) -> Option<String> {
    texts.into_iter().find_map(|text| reachable(text, v6))
}

fn reachable(text: &str, v6: bool) -> Option<String> {
    let mut servers = 0;
    let mut kept = String::new();
    for line in text.lines() {
        match line.split_once(char::is_whitespace).map(|(word, rest)| (word, rest.trim())) {
            // One with a zone (fe80::1%eth0) is no address.
            Some(("nameserver", address)) if address.parse().is_ok_and(|server| is_reachable(server, v6)) => {
                servers += 1
            }
            Some(("search" | "domain" | "options", _)) => {}
            _ => continue,
        }
        kept.push_str(line);
        kept.push('\n');
    }
    (servers > 0).then_some(kept)
}

fn is_reachable(server: IpAddr, v6: bool) -> bool {
    let is_link_local = |server: Ipv6Addr| server.is_unicast_link_local();
    match server {
        _ if server.is_loopback() || server.is_unspecified() => false,
        IpAddr::V4(_) => true,
        IpAddr::V6(server) => v6 && !is_link_local(server),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        resolv_conf([text], true)
    }

    #[test]
    fn servers_of_the_network_are_asked_as_they_are() {
        let host =
            "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\noptions edns0\n";
        let kept = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\noptions edns0\n";
        assert_eq!(of(host).as_deref(), Some(kept));
        let v4 = resolv_conf([host], false).expect("one is left");
        assert!(!v4.contains("2001:db8"), "{v4}");
    }

    #[test]
    fn who_answers_on_the_hosts_loopback_says_whom_it_asks() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
        let asked = "nameserver 192.0.2.1\n";
        assert_eq!(resolv_conf([stub, "", asked], true).as_deref(), Some(asked));
        assert_eq!(of(&format!("{stub}{asked}")), Some(format!("options edns0 trust-ad\n{asked}")));
    }

    #[test]
    fn with_nobody_to_ask_there_is_no_file() {
        for host in ["", "garbage\n", "nameserver ::1\n", "nameserver fe80::1%eth0\n", "nameserver fe80::1\nsearch a\n"]
        {
            assert_eq!(of(host), None, "{host}");
        }
    }
}
