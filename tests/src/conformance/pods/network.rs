//! The network of a pod: what a CNI plugin gave it is what its containers have, and who reaches whom.
//!
//! The node of these cases has its networks in a namespace of its own, so nothing of them is on the host. A case sees the same from a pod of
//! either runtime; where two pods meet, the other one is runc's unless the case says otherwise.

mod inside;
mod interfaces;
mod ports;
mod reach;
mod sizes;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, ensure};

use super::{super::Case, Subject, same};
use crate::node::{Container, Network, Node, Pod, Template};

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

/// `ask(address, bytes)` by TCP, which returns the size of a segment, `send(address, bytes)` by UDP; the last bytes of a program decide what it
/// does with them.
const CLIENT: &str = "
import hashlib, socket
def ask(address, block):
    peer = socket.create_connection((address, 8080), timeout=30)
    peer.sendall(block)
    segment = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    peer.shutdown(socket.SHUT_WR)
    answer = b''
    while more := peer.recv(65536): answer += more
    assert answer.decode() == f'{len(block)} {hashlib.sha256(block).hexdigest()}', answer
    return segment
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
    let case = |name, run| Case::new(GROUP, name, run);
    let mut cases = vec![
        case("the pod has the addresses that CRI tells, at eth0, and a loopback interface", interfaces::addresses),
        case("its routes are those that the plugin made", interfaces::routes),
        case("a point-to-point plugin's routes are kept, too", interfaces::point_to_point),
        case("its hardware address is the one on its network", interfaces::hardware_address),
        case("containers of the pod see the same interface", interfaces::shared),
        case("a pod with two interfaces has both, and reaches through each", interfaces::two),
        case("a macvlan interface reaches and is reached", interfaces::macvlan),
        case("it reaches its gateway over both families, by ping", reach::gateway),
        case("it reaches a server of the node over both families", reach::node_server),
        case("the node reaches its server over both families, as probes do", reach::from_the_node),
        case("it reaches another pod, and is reached, by TCP and UDP over both families", reach::another_pod),
        case("two pods of one runtime reach each other, by TCP and UDP over both families", reach::pod_of_its_kind),
        case("it reaches itself by its own address", reach::itself),
        case("a pod with IPv4 alone reaches and is reached, and has no global IPv6 address", reach::four),
        case("a pod with IPv6 alone reaches and is reached", reach::six),
        case("multicast reaches the pods that joined", reach::multicast),
        case("a closed port refuses at once", reach::refused),
        case("16 MiB arrive whole each way", sizes::much),
        case("16 MiB arrive whole each way between two pods of one runtime", sizes::much_in_its_kind),
        case(
            "16 MiB arrive whole each way where packets have 9000 bytes, in segments of that size",
            sizes::jumbo_segments,
        ),
        case("a datagram of 20000 bytes arrives whole, in fragments", sizes::fragments),
        case("a packet that may not be cut is as large as its network takes, 1400 bytes", sizes::small_packets),
        case("a packet that may not be cut is as large as its network takes, 1500 bytes", sizes::usual_packets),
        case("a packet that may not be cut is as large as its network takes, 9000 bytes", sizes::jumbo_packets),
        case(
            "a ping of 8000 bytes that may not be cut passes where the network takes 9000 bytes, and only there",
            sizes::ping,
        ),
        case("a port of the node leads to the pod (hostPort)", ports::host_port),
        case("a port of the node leads to the pod over IPv6 (hostPort)", ports::host_port_of_six),
        case("a port of the node leads to the pod by UDP over both families (hostPort)", ports::host_port_of_datagrams),
        case(
            "port-forward reaches a server on the pod's loopback, over both families where it listens",
            ports::forwarded,
        ),
        case("port-forward carries 16 MiB whole each way", ports::forwarded_much),
        case("port-forward to a closed port tells of an error", ports::forwarded_nowhere),
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

/// Starts two pods that serve, of these runtimes, and runs a program in each for every address of the other.
fn between(network: Network, runtimes: [&str; 2], program: impl Fn(&str) -> String) -> anyhow::Result<()> {
    let [one, other] = runtimes.map(|runtime| node()?.pod_on(network, runtime));
    let (one, other) = (one?, other?);
    let (server, others_server) = (serve(&one)?, serve(&other)?);
    for (from, to) in [(&server, &other), (&others_server, &one)] {
        for address in ips(to)? {
            client(from, &program(&address))?;
        }
    }
    one.remove()?;
    Ok(other.remove()?)
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

/// Sends one datagram from the node and checks that it comes back.
fn send_from_the_node(address: &str, port: u16) -> anyhow::Result<()> {
    let address = SocketAddr::new(address.parse()?, port);
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = node()?.network().run(|| UdpSocket::bind(any))?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.connect(address)?;
    socket.send(b"datagram")?;
    let mut answer = [0; 16];
    let len = socket.recv(&mut answer).with_context(|| format!("{address}"))?;
    same("datagram", &answer[..len], b"datagram".as_slice())
}
