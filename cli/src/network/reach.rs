//! Which families of addresses the host reaches the world by: those that have a default route. Reading is apart from judging.

use std::fs;

/// What a container's network can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// RTF_UP and RTF_REJECT of linux/route.h.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

impl Reach {
    /// Of the network namespace that this process is in.
    pub fn of_host() -> Self {
        // A kernel without a family has no file of its routes.
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::of(&read("/proc/self/net/route"), &read("/proc/self/net/ipv6_route"))
    }

    /// Judges the two lists of routes, as proc(5) has them.
    fn of(v4: &str, v6: &str) -> Self {
        Self { v4: v4.lines().any(is_default_v4), v6: v6.lines().any(is_default_v6) }
    }

    /// Is there anything to reach?
    pub fn is_nowhere(self) -> bool {
        !self.v4 && !self.v6
    }
}

/// Interface, destination, gateway, flags, ..., mask (the eighth).
fn is_default_v4(line: &str) -> bool {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    fields.len() > 7 && fields[1] == "00000000" && fields[7] == "00000000" && leads_somewhere(fields[3])
}

/// Destination, prefix, source, prefix, next hop, metric, uses, ..., flags, interface.
fn is_default_v6(line: &str) -> bool {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    fields.len() > 9
        && fields[0].bytes().all(|digit| digit == b'0')
        && fields[1] == "00"
        && fields[9] != "lo"
        && leads_somewhere(fields[8])
}

fn leads_somewhere(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP != 0 && flags & REJECT == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    const NONE_V6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";
    const V6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n";

    #[test]
    fn a_default_route_is_what_reaches_the_world() {
        assert_eq!(Reach::of(V4, NONE_V6), Reach { v4: true, v6: false });
        assert_eq!(Reach::of("", &format!("{NONE_V6}{V6}")), Reach { v4: false, v6: true });
        let neighbours_only: String = V4.lines().filter(|line| !line.contains("010200C0")).collect();
        assert!(Reach::of(&neighbours_only, NONE_V6).is_nowhere());
        assert!(Reach::of("garbage", "garbage\n\n").is_nowhere());
    }
}
