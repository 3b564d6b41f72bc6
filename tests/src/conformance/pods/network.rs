//! The network of a pod: what a CNI plugin gave it is what its containers have, and who reaches whom.
//!
//! The node of these cases has its networks in a namespace of its own, so nothing of them is on the host. A case sees the same from a pod of
//! either runtime; where two pods meet, the other one is runc's.

mod inside;

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use cri::v1;

use super::{super::Case, Subject, same};
use crate::{
    containerd::RUNC,
    node::{Container, Network, Node, Pod, Template, handler_on},
};

const GROUP: &str = "Pods: network";
/// Where a pod's server answers, by TCP and UDP.
const PORT: u16 = 8080;
/// Longest that an answer over a network of this machine takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Answers each TCP connection with the number and the hash of the bytes it got, and each datagram with itself.
const SERVER: &str = "
import hashlib, select, socket, threading
def answer(peer):
    digest, count = hashlib.sha256(), 0
    while block := peer.recv(65536):
        digest.update(block)
        count += len(block)
    peer.sendall(f'{count} {digest.hexdigest()}'.encode())
    peer.close()
tcp = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(('::', 8080))
print('ready', flush=True)
while True:
    for ready in select.select([tcp, udp], [], [])[0]:
        if ready is tcp:
            threading.Thread(target=answer, args=[tcp.accept()[0]]).start()
        else:
            block, peer = udp.recvfrom(65536)
            udp.sendto(block, peer)
";

/// `ask(address, bytes)` by TCP, `send(address, bytes)` by UDP; the last bytes of a program decide what it does with them.
const CLIENT: &str = "
import hashlib, socket
def ask(address, block):
    peer = socket.create_connection((address, 8080), timeout=30)
    peer.sendall(block)
    peer.shutdown(socket.SHUT_WR)
    answer = b''
    while more := peer.recv(65536): answer += more
    assert answer.decode() == f'{len(block)} {hashlib.sha256(block).hexdigest()}', answer
def send(address, block, whole=False):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    peer = socket.socket(family, socket.SOCK_DGRAM)
    peer.settimeout(30)
    if whole: peer.setsockopt(socket.IPPROTO_IP, 10, 2)
    peer.connect((address, 8080))
    peer.send(block)
    assert peer.recv(65536) == block
";

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new(GROUP, "the pod has the addresses that CRI tells, at eth0, and a loopback interface", addresses),
        Case::new(GROUP, "its routes are those that the plugin made", routes),
        Case::new(GROUP, "a point-to-point plugin's routes are kept, too", point_to_point),
        Case::new(GROUP, "its hardware address is the one on its network", hardware_address),
        Case::new(GROUP, "it reaches its gateway over both families, by ping", gateway),
        Case::new(GROUP, "it reaches a server of the node over both families", reaches_the_node),
        Case::new(GROUP, "the node reaches its server over both families, as probes do", reached_by_the_node),
        Case::new(GROUP, "it reaches another pod, and is reached, by TCP and UDP over both families", reaches_a_pod),
        Case::new(GROUP, "it reaches itself by its own address", reaches_itself),
        Case::new(GROUP, "16 MiB arrive whole each way", much),
        Case::new(GROUP, "a datagram of 20000 bytes arrives whole, in fragments", fragments),
        Case::new(GROUP, "a packet that may not be cut is as large as its network takes, 1400 bytes", small_packets),
        Case::new(GROUP, "a packet that may not be cut is as large as its network takes, 9000 bytes", large_packets),
        Case::new(GROUP, "a pod with IPv6 alone reaches and is reached", six),
        Case::new(GROUP, "a pod with two interfaces has both, and reaches through each", two),
        Case::new(GROUP, "a macvlan interface reaches and is reached", macvlan),
        Case::new(GROUP, "multicast reaches the pods that joined", multicast),
        Case::new(GROUP, "a port of the node leads to the pod (hostPort)", host_port),
        Case::new(GROUP, "containers of the pod see the same interface", shared),
        Case::new(GROUP, "a closed port refuses at once", refused),
        Case::new(
            GROUP,
            "port-forward reaches a server on the pod's loopback, over both families where it listens",
            forwarded,
        ),
        Case::new(GROUP, "port-forward carries 16 MiB whole each way", forwarded_much),
        Case::new(GROUP, "port-forward to a closed port tells of an error", forwarded_nowhere),
    ];
    cases.extend(inside::cases());
    cases
}

fn node() -> anyhow::Result<&'static Node> {
    static NODE: OnceLock<Result<Node, String>> = OnceLock::new();
    let node = NODE.get_or_init(|| Node::start_in_own_network().map_err(|error| format!("{error:#}")));
    node.as_ref().map_err(|error| anyhow::anyhow!("no node: {error}"))
}

fn pod_on(network: Network, subject: &Subject) -> anyhow::Result<Pod<'static>> {
    node()?.pod_on(network, subject.runtime())
}

/// A pod's addresses, as CRI tells them.
fn ips(pod: &Pod) -> anyhow::Result<Vec<String>> {
    let network = pod.status()?.network.context("a pod has a network")?;
    Ok(std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|more| more.ip)).collect())
}

/// A container of a pod that serves.
fn serve<'p>(pod: &'p Pod) -> anyhow::Result<Container<'p>> {
    let server = pod.start(Template::python(SERVER))?;
    server.wait_for_output("ready")?;
    Ok(server)
}

/// Runs a program with [`CLIENT`]'s functions beside a container's first process.
fn client(container: &Container, program: &str) -> anyhow::Result<()> {
    let done = container.exec(&["python3", "-c", &format!("{CLIENT}\n{program}")])?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.exit_code == 0, "{program}: {said}");
    Ok(())
}

fn addresses(subject: &Subject) -> anyhow::Result<()> {
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

fn routes(subject: &Subject) -> anyhow::Result<()> {
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

fn point_to_point(subject: &Subject) -> anyhow::Result<()> {
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

fn hardware_address(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let told = ips(&pod)?;
    let container = pod.start(Template::pause())?;
    container.sh(&format!("ping -c 1 -W 10 {}", Network::Dual.gateway()))?;
    let own = container.sh("cat /sys/class/net/eth0/address")?;
    let seen = node()?.network().ip(&format!("neigh show {}", told[0]))?;
    ensure!(seen.contains(own.trim()), "the pod says {own}, the node sees {seen}");
    Ok(pod.remove()?)
}

fn gateway(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let container = pod.start(Template::pause())?;
    for address in [Network::Dual.gateway(), "fd00:98:1::1"] {
        container.sh(&format!("ping -c 2 -W 10 {address}"))?;
    }
    Ok(pod.remove()?)
}

fn reaches_the_node(subject: &Subject) -> anyhow::Result<()> {
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

/// What a pod's server answers to one byte from the node.
fn ask_from_the_node(address: &str, port: u16) -> anyhow::Result<String> {
    let address = SocketAddr::new(address.parse()?, port);
    let mut peer = node()?
        .network()
        .run(|| TcpStream::connect_timeout(&address, ANSWER_WITHIN))
        .with_context(|| format!("{address}"))?;
    peer.set_read_timeout(Some(ANSWER_WITHIN))?;
    peer.write_all(b"x")?;
    peer.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The hash of "x", as the server tells it.
const ANSWER: &str = "1 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";

fn reached_by_the_node(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let _server = serve(&pod)?;
    for address in ips(&pod)? {
        same(&format!("answer by {address}"), ask_from_the_node(&address, PORT)?.as_str(), ANSWER)?;
        let ip: IpAddr = address.parse()?;
        let any: IpAddr = if ip.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        let socket = node()?.network().run(|| UdpSocket::bind(SocketAddr::new(any, 0)))?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.send_to(b"datagram", SocketAddr::new(ip, PORT))?;
        let mut answer = [0; 16];
        let (len, _) = socket.recv_from(&mut answer)?;
        same("datagram", &answer[..len], b"datagram".as_slice())?;
    }
    Ok(pod.remove()?)
}

fn reaches_a_pod(subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (pod_on(Network::Dual, subject)?, node()?.pod_on(Network::Dual, RUNC)?);
    let (server, others_server) = (serve(&one)?, serve(&other)?);
    for (from, to) in [(&server, &other), (&others_server, &one)] {
        for address in ips(to)? {
            client(from, &format!("ask('{address}', b'words' * 1000)\nsend('{address}', b'datagram')"))?;
        }
    }
    one.remove()?;
    Ok(other.remove()?)
}

fn reaches_itself(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let server = serve(&pod)?;
    for address in ips(&pod)? {
        client(&server, &format!("ask('{address}', b'me')\nsend('{address}', b'me')"))?;
    }
    Ok(pod.remove()?)
}

fn much(subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (pod_on(Network::Dual, subject)?, node()?.pod_on(Network::Dual, RUNC)?);
    let (server, others_server) = (serve(&one)?, serve(&other)?);
    for (from, to) in [(&server, &other), (&others_server, &one)] {
        client(from, &format!("ask('{}', bytes(range(256)) * 65536)", ips(to)?[0]))?;
    }
    one.remove()?;
    Ok(other.remove()?)
}

fn fragments(subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (pod_on(Network::Dual, subject)?, node()?.pod_on(Network::Dual, RUNC)?);
    let (server, others_server) = (serve(&one)?, serve(&other)?);
    for (from, to) in [(&server, &other), (&others_server, &one)] {
        for address in ips(to)? {
            client(from, &format!("send('{address}', bytes(range(250)) * 80)"))?;
        }
    }
    one.remove()?;
    Ok(other.remove()?)
}

/// Sends what just fits, and what just does not, without leave to cut it.
fn packets(network: Network, subject: &Subject) -> anyhow::Result<()> {
    let (one, other) = (pod_on(network, subject)?, node()?.pod_on(network, RUNC)?);
    let (server, _others) = (serve(&one)?, serve(&other)?);
    same("MTU", server.sh("cat /sys/class/net/eth0/mtu")?.trim(), network.mtu().to_string().as_str())?;
    let address = &ips(&other)?[0];
    // Headers of IPv4 and UDP are 28 bytes.
    let fits = network.mtu() - 28;
    client(&server, &format!("send('{address}', b'x' * {fits}, whole=True)"))?;
    let too_large = client(&server, &format!("send('{address}', b'x' * {}, whole=True)", fits + 1));
    let error = too_large.expect_err("it does not fit").to_string();
    ensure!(error.contains("Message too long"), "{error}");
    one.remove()?;
    Ok(other.remove()?)
}

fn small_packets(subject: &Subject) -> anyhow::Result<()> {
    packets(Network::Small, subject)
}

fn large_packets(subject: &Subject) -> anyhow::Result<()> {
    packets(Network::Jumbo, subject)
}

fn six(subject: &Subject) -> anyhow::Result<()> {
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

fn two(subject: &Subject) -> anyhow::Result<()> {
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

fn macvlan(subject: &Subject) -> anyhow::Result<()> {
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

/// Joins a group and prints the first datagram to it.
const LISTENER: &str = "
import socket
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.bind(('', 9999))
peer.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.1.2.3') + socket.inet_aton('0.0.0.0'))
print('joined', flush=True)
print(peer.recv(100).decode(), flush=True)
";

fn multicast(subject: &Subject) -> anyhow::Result<()> {
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

fn host_port(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    // Of the two runtimes' pods, which may be there at once.
    let port = if subject.is_runc() { 18080 } else { 18081 };
    config.port_mappings.push(v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: PORT.into(),
        host_port: port,
        ..Default::default()
    });
    let handler = handler_on(Network::Dual, subject.short_name());
    let pod = node.run_pod_of_handler(&handler, config)?;
    let _server = serve(&pod)?;
    let port = u16::try_from(port)?;
    same("answer", ask_from_the_node(Network::Dual.gateway(), port)?.as_str(), ANSWER)?;
    pod.remove()?;
    ensure!(ask_from_the_node(Network::Dual.gateway(), port).is_err(), "the port still leads somewhere");
    Ok(())
}

fn shared(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let (one, two) = (pod.start(Template::pause())?, pod.start(Template::pause())?);
    let shown = |container: &Container| container.sh("ip -o addr show dev eth0");
    same("interface", shown(&one)?, shown(&two)?)?;
    Ok(pod.remove()?)
}

fn refused(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let container = pod.start(Template::pause())?;
    let address = ips(&pod)?.swap_remove(0);
    let error = ask_from_the_node(&address, 81).expect_err("nobody serves there");
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    drop(container);
    Ok(pod.remove()?)
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

fn forwarded(subject: &Subject) -> anyhow::Result<()> {
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

fn forwarded_much(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    pod.start(Template::python(LOOPBACK_SERVER))?.wait_for_output("ready")?;
    let bytes: Vec<u8> = (0..16 << 20_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    ensure!(echoed(&pod, 8081, &bytes)? == bytes, "other bytes came back");
    Ok(pod.remove()?)
}

fn forwarded_nowhere(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let _container = pod.start(Template::pause())?;
    let error = pod.forward(8084)?.finish().expect_err("nobody serves there");
    ensure!(format!("{error:#}").contains("connect"), "{error:#}");
    Ok(pod.remove()?)
}
