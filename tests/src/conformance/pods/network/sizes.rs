//! How large: of what is sent at once, of a packet, of a segment.

use anyhow::{Context, ensure};

use super::{Subject, between, client, ips, node, pod_on, same, serve};
use crate::{containerd::RUNC, node::Network};

/// 16 MiB by TCP.
fn sixteen_mib(address: &str) -> String {
    format!("ask('{address}', bytes(range(256)) * 65536)")
}

pub(super) fn much(subject: &Subject) -> anyhow::Result<()> {
    between(Network::Dual, [subject.runtime(), RUNC], sixteen_mib)
}

pub(super) fn much_in_its_kind(subject: &Subject) -> anyhow::Result<()> {
    between(Network::Dual, [subject.runtime(); 2], sixteen_mib)
}

pub(super) fn jumbo_segments(subject: &Subject) -> anyhow::Result<()> {
    // Headers of IPv4 and TCP are 40 bytes, and 12 more with a time stamp.
    let most = Network::Jumbo.mtu() - 40;
    between(Network::Jumbo, [subject.runtime(), RUNC], |address| {
        format!("segment = {}\nassert {} <= segment <= {most}, segment", sixteen_mib(address), most - 12)
    })
}

pub(super) fn fragments(subject: &Subject) -> anyhow::Result<()> {
    between(Network::Dual, [subject.runtime(), RUNC], |address| format!("send('{address}', bytes(range(250)) * 80)"))
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

pub(super) fn small_packets(subject: &Subject) -> anyhow::Result<()> {
    packets(Network::Small, subject)
}

pub(super) fn usual_packets(subject: &Subject) -> anyhow::Result<()> {
    packets(Network::Dual, subject)
}

pub(super) fn jumbo_packets(subject: &Subject) -> anyhow::Result<()> {
    packets(Network::Jumbo, subject)
}

/// `ping(address, count)`: an echo request with so many bytes that may not be cut (RFC 792), and its reply. `too_large(address, count)`: there is
/// no way for one.
const PING: &str = "
import errno, os, struct
def checksum(block):
    total = sum(struct.unpack(f'!{len(block) // 2}H', block))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff
def ping(address, count):
    peer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    peer.settimeout(30)
    peer.setsockopt(socket.IPPROTO_IP, 10, 2)
    own, block = os.getpid() & 0xffff, os.urandom(count)
    header = lambda total: struct.pack('!BBHHH', 8, 0, total, own, 1)
    peer.sendto(header(checksum(header(0) + block)) + block, (address, 0))
    while True:
        packet = peer.recv(65536)[20:]
        kind, _, _, whose, _ = struct.unpack('!BBHHH', packet[:8])
        if (kind, whose) == (0, own): break
    assert packet[8:] == block
def too_large(address, count):
    try: ping(address, count)
    except OSError as error: assert error.errno == errno.EMSGSIZE, error
    else: assert False, 'it passed'
";

pub(super) fn ping(subject: &Subject) -> anyhow::Result<()> {
    for (network, large) in [(Network::Jumbo, "ping"), (Network::Four, "too_large"), (Network::Small, "too_large")] {
        let program = |address: &str| format!("{PING}\nping('{address}', 1000)\n{large}('{address}', 8000)");
        between(network, [subject.runtime(), RUNC], program).with_context(|| format!("{} bytes", network.mtu()))?;
    }
    Ok(())
}
