//! What a pod's own programs do to its network: names, redirects of a service mesh, interfaces of their own.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::OnceLock,
    thread,
};

use anyhow::{Context, ensure};
use cri::v1;

use super::{ANSWER, GROUP, Subject, ask_from_the_node, ips, node, pod_on, same, serve};
use crate::{
    conformance::Case,
    node::{Container, Network, Pod, Template, handler_on},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "a name is resolved by the pod's server", name),
        Case::new(GROUP, "iptables in the pod redirect what comes and what goes, as a service mesh does", redirect),
        Case::new(GROUP, "two pods with NET_ADMIN meet on a VLAN of theirs", vlan).unlike_in_runc(
            "a kernel without VLAN interfaces (CONFIG_VLAN_8021Q), as this host's may be, has none for a container; a machine's kernel has",
            vlan_of_the_host,
        ),
    ]
}

const NAME: &str = "service.test";
const NAMED: [u8; 4] = [10, 98, 1, 99];
/// Header of a message of DNS (RFC 1035, 4.1.1).
const DNS_HEADER_LEN: usize = 12;

/// A server of names on the node, for all cases: it knows one address, of every name.
fn serve_names() -> anyhow::Result<()> {
    static SERVER: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || -> anyhow::Result<()> {
        let ip: IpAddr = Network::Dual.gateway().parse()?;
        let socket = node()?.network().run(|| UdpSocket::bind(SocketAddr::new(ip, 53)))?;
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, peer)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(&answer(&question[..len]), peer);
            }
        });
        Ok(())
    };
    let started = SERVER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    started.clone().map_err(|error| anyhow::anyhow!("no server of names: {error}"))
}

/// An answer to one question for an address of IPv4.
fn answer(query: &[u8]) -> Vec<u8> {
    let labels = query.get(DNS_HEADER_LEN..).unwrap_or_default();
    let name = labels.iter().position(|byte| *byte == 0).unwrap_or(0);
    // The name's end, its type and its class.
    let question = labels.get(..name + 5).unwrap_or_default();
    let mut answer = query.get(..2).unwrap_or_default().to_vec();
    // A response without error, recursion available: one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The name is that of the question; type A, class IN, for a second, four bytes.
    answer.extend([0xc0, DNS_HEADER_LEN as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    answer.extend(NAMED);
    answer
}

fn name(subject: &Subject) -> anyhow::Result<()> {
    let mut config = node()?.pod_config();
    let servers = vec![Network::Dual.gateway().to_owned()];
    config.dns_config = Some(v1::DnsConfig { servers, ..Default::default() });
    let pod = node()?.run_pod_of_handler(&handler_on(Network::Dual, subject.short_name()), config)?;
    // The gateway is there with the first pod.
    serve_names()?;
    let program =
        format!("import socket\nprint(socket.getaddrinfo('{NAME}', 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])");
    let (status, printed) = pod.run_to_end(Template::python(&program))?;
    ensure!(status.exit_code == 0, "{printed}");
    same("address", printed.trim(), NAMED.map(|byte| byte.to_string()).join(".").as_str())?;
    Ok(pod.remove()?)
}

/// The host's iptables: what a mesh's image would bring along.
const IPTABLES: &str = "/usr/sbin/xtables-nft-multi";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
const IPTABLES_LIBRARIES: [&str; 3] = ["libxtables.so.12", "libmnl.so.0", "libnftnl.so.11"];
/// The user whose connections go out as they are, as a mesh's proxy's do.
const PROXY: u32 = 1337;

fn redirect(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let _server = serve(&pod)?;
    let tools = node()?.fresh_folder();
    bring_iptables(&tools)?;
    let template = Template::python("import signal\nsignal.sigwait([signal.SIGTERM])");
    let mesh = pod.start(admin(template.mount(&tools, "/tools", true)))?;
    for rule in [
        "PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080".to_owned(),
        format!("OUTPUT -p tcp --dport 80 -m owner ! --uid-owner {PROXY} -j REDIRECT --to-ports 8080"),
    ] {
        let set = "LD_LIBRARY_PATH=/tools XTABLES_LIBDIR=/tools/xtables /tools/iptables -t nat -A";
        mesh.sh(&format!("{set} {rule}"))?;
    }
    for address in ips(&pod)?.iter().filter(|address| !address.contains(':')) {
        same("answer to the node at port 80", ask_from_the_node(address, 80)?.as_str(), ANSWER)?;
    }
    let asks = |user: u32| {
        let program = format!(
            "import os, socket\nos.setuid({user})\npeer = socket.create_connection(('{}', 80), timeout=30)\n\
             peer.sendall(b'x')\npeer.shutdown(socket.SHUT_WR)\nprint(peer.recv(100).decode())",
            Network::Dual.gateway()
        );
        let done = mesh.exec(&["python3", "-c", &program])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        anyhow::Ok((done.exit_code, text(&done.stdout), text(&done.stderr)))
    };
    let (_, said, error) = asks(0)?;
    ensure!(said == ANSWER, "what goes out is not redirected: {said} {error}");
    let (code, _, error) = asks(PROXY)?;
    ensure!(code != 0 && error.contains("refused"), "the proxy's own goes out, where nobody serves: {code} {error}");
    pod.remove()?;
    fs::remove_dir_all(&tools)?;
    Ok(())
}

fn bring_iptables(tools: &Path) -> anyhow::Result<()> {
    fs::copy(IPTABLES, tools.join("iptables")).with_context(|| format!("{IPTABLES} (Debian's iptables)"))?;
    for library in IPTABLES_LIBRARIES {
        fs::copy(Path::new(LIBRARIES).join(library), tools.join(library)).context(library)?;
    }
    let extensions = tools.join("xtables");
    fs::create_dir(&extensions)?;
    for extension in fs::read_dir(Path::new(LIBRARIES).join("xtables"))? {
        let extension = extension?;
        fs::copy(extension.path(), extensions.join(extension.file_name()))?;
    }
    Ok(())
}

fn admin(template: Template) -> Template {
    let added = vec!["NET_ADMIN".to_owned()];
    template.security(|security| security.capabilities.get_or_insert_default().add_capabilities = added)
}

fn add_vlan(container: &Container) -> anyhow::Result<String> {
    container.sh("ip link add link eth0 name eth0.7 type vlan id 7")
}

fn vlan(subject: &Subject) -> anyhow::Result<()> {
    let pods = [pod_on(Network::Dual, subject)?, pod_on(Network::Dual, subject)?];
    let containers =
        pods.iter().map(|pod| Ok(pod.start(admin(Template::pause()))?)).collect::<anyhow::Result<Vec<_>>>()?;
    for (container, last) in containers.iter().zip(1..) {
        add_vlan(container)?;
        container.sh(&format!("ip addr add 172.30.7.{last}/24 dev eth0.7 && ip link set eth0.7 up"))?;
    }
    containers[0].sh("ping -c 2 -W 10 172.30.7.2")?;
    // As large as the interface below takes untagged.
    containers[1].sh("ping -c 1 -W 10 -s 1472 172.30.7.1")?;
    drop(containers);
    Ok(pods.iter().try_for_each(Pod::remove)?)
}

/// The same where the host's kernel has VLANs.
fn vlan_of_the_host(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod_on(Network::Dual, subject)?;
    let Err(error) = add_vlan(&pod.start(admin(Template::pause()))?) else { return vlan(subject) };
    let error = format!("{error:#}");
    ensure!(error.contains("not supported"), "{error}");
    Ok(pod.remove()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_question() {
        let query = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01";
        let answer = answer(query);
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(answer[12..query.len()], query[12..]);
        assert_eq!(answer[answer.len() - 4..], NAMED);
    }
}
