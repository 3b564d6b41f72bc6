//! Ports that lead to a pod: of the node (hostPort), and of a client (port-forward).

use std::net::ToSocketAddrs;

use anyhow::{Context, ensure};
use cri::v1;

use super::{ANSWER, PORT, Subject, ask_from_the_node, node, pod_on, same, send_from_the_node, serve};
use crate::node::{Network, Pod, Template, handler_on};

/// The node's own addresses on the network.
const NODE: [&str; 2] = ["10.98.1.1", "fd00:98:1::1"];

/// Starts a pod with a port of the node, asks for it at these addresses, and checks that nobody is there without the pod.
fn with_host_port(
    subject: &Subject,
    protocol: v1::Protocol,
    addresses: &[&str],
    ask: fn(&str, u16) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    // Of the two runtimes' pods, which may be there at once.
    let port: u16 = if subject.is_runc() { 18080 } else { 18081 };
    config.port_mappings.push(v1::PortMapping {
        protocol: protocol.into(),
        container_port: PORT.into(),
        host_port: port.into(),
        ..Default::default()
    });
    let handler = handler_on(Network::Dual, subject.short_name());
    let pod = node.run_pod_of_handler(&handler, config)?;
    let _server = serve(&pod)?;
    addresses.iter().try_for_each(|address| ask(address, port))?;
    pod.remove()?;
    for address in addresses {
        ensure!(ask(address, port).is_err(), "{address}: the port still leads somewhere");
    }
    Ok(())
}

fn answers(address: &str, port: u16) -> anyhow::Result<()> {
    same("answer", ask_from_the_node(address, port)?.as_str(), ANSWER)
}

pub(super) fn host_port(subject: &Subject) -> anyhow::Result<()> {
    with_host_port(subject, v1::Protocol::Tcp, &NODE[..1], answers)
}

pub(super) fn host_port_of_six(subject: &Subject) -> anyhow::Result<()> {
    with_host_port(subject, v1::Protocol::Tcp, &NODE[1..], answers)
}

pub(super) fn host_port_of_datagrams(subject: &Subject) -> anyhow::Result<()> {
    with_host_port(subject, v1::Protocol::Udp, &NODE, send_from_the_node)
}

/// Servers on the loopback only: of IPv4 at 8081, of IPv6 at 8082, of both at 8083. Each answers so many bytes, of which the first four tell how many, with them.
const LOOPBACK_SERVER: &str = "
import socket, threading
def exactly(peer, count):
    block = b''
    while len(block) < count:
        more = peer.recv(count - len(block))
        if not more: raise EOFError
        block += more
    return block
def answer(peer):
    peer.sendall(exactly(peer, int.from_bytes(exactly(peer, 4), 'little')))
    peer.close()
def serve(address, port):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family)
    def accept():
        while True: threading.Thread(target=answer, args=[listener.accept()[0]]).start()
    threading.Thread(target=accept).start()
for address, port in [('127.0.0.1', 8081), ('::1', 8082), ('127.0.0.1', 8083), ('::1', 8083)]: serve(address, port)
print('ready', flush=True)
";

/// Sends bytes by port-forward and tells what comes back.
fn echoed(pod: &Pod, port: u16, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut forward = pod.forward(port)?;
    forward.send(&u32::try_from(bytes.len())?.to_le_bytes())?;
    bytes.chunks(32 << 10).try_for_each(|chunk| forward.send(chunk))?;
    forward.finish()
}

pub(super) fn forwarded(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    pod.start(Template::python(LOOPBACK_SERVER))?.wait_for_output("ready")?;
    // containerd goes by the node's own /etc/hosts, which may know localhost by IPv4 only; ours looks at the other family by itself.
    let known = ("localhost", 0).to_socket_addrs()?.any(|address| address.is_ipv6());
    let ports = [8081, 8083].into_iter().chain((known || !subject.is_runc()).then_some(8082));
    for port in ports {
        let heard = echoed(&pod, port, b"hello").with_context(|| format!("port {port}"))?;
        same("echo", heard, b"hello".to_vec())?;
    }
    Ok(pod.remove()?)
}

pub(super) fn forwarded_much(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    pod.start(Template::python(LOOPBACK_SERVER))?.wait_for_output("ready")?;
    let bytes: Vec<u8> = (0..16 << 20_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    ensure!(echoed(&pod, 8081, &bytes)? == bytes, "other bytes came back");
    Ok(pod.remove()?)
}

pub(super) fn forwarded_nowhere(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let _container = pod.start(Template::pause())?;
    let error = pod.forward(8084)?.finish().expect_err("nobody serves there");
    ensure!(format!("{error:#}").contains("connect"), "{error:#}");
    Ok(pod.remove()?)
}
