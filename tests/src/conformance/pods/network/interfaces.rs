//! What a pod has: addresses, routes and interfaces, as the plugins made them.

use anyhow::ensure;

use super::{ANSWER, PORT, Subject, ask_from_the_node, client, ips, node, pod_on, same, serve};
use crate::{
    containerd::RUNC,
    node::{Container, Network, Template},
};

pub(super) fn addresses(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let told = ips(&pod)?;
    same("families", told.len(), 2)?;
    let container = pod.start(Template::pause())?;
    let shown = container.sh("ip -o addr show dev eth0")?;
    for (address, prefix) in told.iter().zip(["24", "64"]) {
        ensure!(shown.contains(&format!(" {address}/{prefix} ")), "{address}/{prefix} is not in {shown}");
    }
    ensure!(container.sh("ip -o link show dev eth0")?.contains("UP"), "eth0 is up");
    ensure!(container.sh("ip -o addr show dev lo")?.contains("127.0.0.1/8"), "lo has its address");
    let names = container.sh("ls /sys/class/net | sort")?;
    same("interfaces", names.as_str(), "eth0\nlo\n")?;
    Ok(pod.remove()?)
}

/// Routes of a family, one a line, sorted, without what differs in how they are printed.
fn shown_routes(container: &Container, flags: &str) -> anyhow::Result<Vec<String>> {
    let printed = container.sh(&format!("ip {flags} route"))?;
    let mut lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    Ok(lines)
}

pub(super) fn routes(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let told = ips(&pod)?;
    let container = pod.start(Template::pause())?;
    let four = shown_routes(&container, "-4")?;
    let wanted = [
        format!("10.98.1.0/24 dev eth0 scope link src {}", told[0]),
        format!("default via {} dev eth0", Network::Dual.gateway()),
    ];
    same("IPv4", four, wanted.to_vec())?;
    let six = shown_routes(&container, "-6")?;
    for wanted in ["default via fd00:98:1::1 dev eth0", "fd00:98:1::/64 dev eth0"] {
        ensure!(six.iter().any(|line| line.starts_with(wanted)), "{wanted} is not in {six:?}");
    }
    Ok(pod.remove()?)
}

pub(super) fn point_to_point(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Small, subject)?;
    let told = ips(&pod)?;
    let container = pod.start(Template::pause())?;
    let gateway = Network::Small.gateway();
    let wanted = [
        format!("10.98.3.0/24 via {gateway} dev eth0 src {}", told[0]),
        format!("{gateway} dev eth0 scope link src {}", told[0]),
        format!("default via {gateway} dev eth0"),
    ];
    same("routes", shown_routes(&container, "-4")?, wanted.to_vec())?;
    container.sh(&format!("ping -c 1 -W 10 {gateway}"))?;
    Ok(pod.remove()?)
}

pub(super) fn hardware_address(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let told = ips(&pod)?;
    let container = pod.start(Template::pause())?;
    container.sh(&format!("ping -c 1 -W 10 {}", Network::Dual.gateway()))?;
    let own = container.sh("cat /sys/class/net/eth0/address")?;
    let seen = node()?.network().ip(&format!("neigh show {}", told[0]))?;
    ensure!(seen.contains(own.trim()), "the pod says {own}, the node sees {seen}");
    Ok(pod.remove()?)
}

pub(super) fn two(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Two, subject)?;
    let _server = serve(&pod)?;
    let looks = pod.start(Template::pause())?;
    same("interfaces", looks.sh("ls /sys/class/net | sort")?.as_str(), "eth0\neth1\nlo\n")?;
    same("MTU of the second", looks.sh("cat /sys/class/net/eth1/mtu")?.trim(), "1400")?;
    for gateway in [Network::Two.gateway(), "10.98.5.1"] {
        looks.sh(&format!("ping -c 1 -W 10 {gateway}"))?;
    }
    let second = looks.sh("ip -o -4 addr show dev eth1 | sed 's,.* inet \\([0-9.]*\\)/.*,\\1,'")?;
    for address in [ips(&pod)?[0].as_str(), second.trim()] {
        same(&format!("answer by {address}"), ask_from_the_node(address, PORT)?.as_str(), ANSWER)?;
    }
    Ok(pod.remove()?)
}

pub(super) fn macvlan(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Macvlan, subject)?;
    let server = serve(&pod)?;
    let address = &ips(&pod)?[0];
    same("answer", ask_from_the_node(address, PORT)?.as_str(), ANSWER)?;
    let other = node()?.pod_on(Network::Macvlan, RUNC)?;
    let _others = serve(&other)?;
    client(&server, &format!("ask('{0}', b'beside')\nsend('{0}', b'beside')", ips(&other)?[0]))?;
    other.remove()?;
    Ok(pod.remove()?)
}

pub(super) fn shared(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let (one, two) = (pod.start(Template::pause())?, pod.start(Template::pause())?);
    let shown = |container: &Container| container.sh("ip -o addr show dev eth0");
    same("interface", shown(&one)?, shown(&two)?)?;
    Ok(pod.remove()?)
}
