//! Whom a pod reaches, and who reaches it: the node, other pods, itself.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener},
    thread,
};

use anyhow::ensure;

use super::{
    ANSWER, PORT, Subject, ask_from_the_node, between, client, ips, node, pod_on, same, send_from_the_node, serve,
};
use crate::{
    containerd::RUNC,
    node::{Network, Template},
};

pub(super) fn gateway(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let container = pod.start(Template::pause())?;
    for address in [Network::Dual.gateway(), "fd00:98:1::1"] {
        container.sh(&format!("ping -c 2 -W 10 {address}"))?;
    }
    Ok(pod.remove()?)
}

pub(super) fn node_server(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let container = pod.start(Template::pause())?;
    for address in [Network::Dual.gateway(), "fd00:98:1::1"] {
        let ip: IpAddr = address.parse()?;
        let listener = node()?.network().run(|| TcpListener::bind(SocketAddr::new(ip, 0)))?;
        let port = listener.local_addr()?.port();
        let greeter = thread::spawn(move || listener.accept().and_then(|(mut peer, _)| peer.write_all(b"hello\n")));
        same("answer", container.sh(&format!("nc {address} {port} </dev/null"))?.as_str(), "hello\n")?;
        greeter.join().expect("no panic")?;
    }
    Ok(pod.remove()?)
}

pub(super) fn from_the_node(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let _server = serve(&pod)?;
    for address in ips(&pod)? {
        same(&format!("answer by {address}"), ask_from_the_node(&address, PORT)?.as_str(), ANSWER)?;
        send_from_the_node(&address, PORT)?;
    }
    Ok(pod.remove()?)
}

/// Words by TCP, and a datagram.
fn few(address: &str) -> String {
    format!("ask('{address}', b'words' * 1000)\nsend('{address}', b'datagram')")
}

pub(super) fn another_pod(subject: &Subject) -> anyhow::Result<()> {
    between(Network::Dual, [subject.runtime(), RUNC], few)
}

pub(super) fn pod_of_its_kind(subject: &Subject) -> anyhow::Result<()> {
    between(Network::Dual, [subject.runtime(); 2], few)
}

pub(super) fn itself(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let server = serve(&pod)?;
    for address in ips(&pod)? {
        client(&server, &format!("ask('{address}', b'me')\nsend('{address}', b'me')"))?;
    }
    Ok(pod.remove()?)
}

pub(super) fn four(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Four, subject)?;
    let told = ips(&pod)?;
    ensure!(told.len() == 1 && told[0].contains('.'), "one address of IPv4: {told:?}");
    let server = serve(&pod)?;
    // The fourth word is the scope, and 00 the global one (linux/ipv6.h).
    client(&server, "for line in open('/proc/net/if_inet6'): assert line.split()[3] != '00', line")?;
    same("answer", ask_from_the_node(&told[0], PORT)?.as_str(), ANSWER)?;
    send_from_the_node(&told[0], PORT)?;
    pod.remove()?;
    between(Network::Four, [subject.runtime(), RUNC], few)
}

pub(super) fn six(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Six, subject)?;
    let told = ips(&pod)?;
    ensure!(told.len() == 1 && told[0].contains(':'), "one address of IPv6: {told:?}");
    let server = serve(&pod)?;
    server.sh("grep -q ^fd0000980002 /proc/net/if_inet6")?;
    same("answer", ask_from_the_node(&told[0], PORT)?.as_str(), ANSWER)?;
    let other = node()?.pod_on(Network::Six, RUNC)?;
    let _others = serve(&other)?;
    client(&server, &format!("ask('{0}', b'six')\nsend('{0}', b'six')", ips(&other)?[0]))?;
    other.remove()?;
    Ok(pod.remove()?)
}

/// Joins a group and prints the first datagram to it.
const LISTENER: &str = "
import socket
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(('', 9999))
peer.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.1.2.3') + socket.inet_aton('0.0.0.0'))
print('joined', flush=True)
print(peer.recv(100).decode(), flush=True)
";

pub(super) fn multicast(subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (pod_on(Network::Dual, subject)?, node()?.pod_on(Network::Dual, RUNC)?);
    for (to, from) in [(&one, &other), (&other, &one)] {
        let listener = to.start(Template::python(LISTENER))?;
        listener.wait_for_output("joined")?;
        let program =
            "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'to all', ('239.1.2.3', 9999))";
        from.run_to_end(Template::python(program))?;
        listener.wait_for_output("to all")?;
    }
    one.remove()?;
    Ok(other.remove()?)
}

pub(super) fn refused(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let container = pod.start(Template::pause())?;
    let address = ips(&pod)?.swap_remove(0);
    let error = ask_from_the_node(&address, 81).expect_err("nobody serves there");
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    drop(container);
    Ok(pod.remove()?)
}
