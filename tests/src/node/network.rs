//! The networks that pods can be on: one list of CNI plugins each, and a runtime handler for each runtime on each network, as containerd
//! takes a handler's own `cni_conf_dir`.
//!
//! All of it is in a network namespace of the node's own: bridges, addresses, port mappings.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use serde_json::{Value, json};

use super::{Node, Pod, handler};
use crate::{Containerd, NetworkNamespace};

/// A network of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A bridge with addresses of both families, and ports of the node that lead to pods.
    Dual,
    /// A bridge with IPv4 alone.
    Four,
    /// A bridge with IPv6 alone.
    Six,
    /// A point-to-point link with packets of at most 1400 bytes.
    Small,
    /// A bridge with packets of 9000 bytes.
    Jumbo,
    /// Two interfaces: of [`Network::Dual`]'s kind, and of [`Network::Small`]'s.
    Two,
    /// A macvlan interface below one of the node's.
    Macvlan,
}

/// The node's interface below which [`Network::Macvlan`] is, and the other end of that link.
const MACVLAN_LINK: [&str; 2] = ["kr-below", "kr-beside"];

impl Network {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Dual, Self::Four, Self::Six, Self::Small, Self::Jumbo, Self::Two, Self::Macvlan];

    /// Its name in files and handlers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dual => "dual",
            Self::Four => "four",
            Self::Six => "six",
            Self::Small => "small",
            Self::Jumbo => "jumbo",
            Self::Two => "two",
            Self::Macvlan => "macvlan",
        }
    }

    /// The largest packet.
    pub fn mtu(self) -> u32 {
        match self {
            Self::Small => 1400,
            Self::Jumbo => 9000,
            _ => 1500,
        }
    }

    /// The node's own address on it that pods reach, without the prefix.
    pub fn gateway(self) -> &'static str {
        match self {
            Self::Dual | Self::Two => "10.98.1.1",
            Self::Four => "10.98.7.1",
            Self::Six => "fd00:98:2::1",
            Self::Small => "10.98.3.1",
            Self::Jumbo => "10.98.4.1",
            Self::Macvlan => "10.98.6.1",
        }
    }

    /// The lists of plugins, one an interface.
    fn lists(self, data: &Path) -> Vec<Value> {
        let bridge = |name: &str, ranges: &[&str], mtu: u32| {
            json!({ "type": "bridge", "bridge": format!("kr-{name}"), "isGateway": true, "isDefaultGateway": true, "ipMasq": false,
                    "hairpinMode": true, "mtu": mtu, "ipam": addresses(data, name, ranges) })
        };
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        let ptp = |name: &str, range: &str, default: bool| {
            let mut ipam = addresses(data, name, &[range]);
            if default {
                ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            }
            json!({ "type": "ptp", "mtu": 1400, "ipam": ipam })
        };
        let list = |name: &str, plugins: Value| json!({ "cniVersion": "0.4.0", "name": format!("kr-{name}"), "plugins": plugins });
        let dual = ["10.98.1.0/24", "fd00:98:1::/64"];
        match self {
            Self::Dual => vec![list("dual", json!([bridge("dual", &dual, 1500), portmap]))],
            Self::Four => vec![list("four", json!([bridge("four", &["10.98.7.0/24"], 1500)]))],
            Self::Six => vec![list("six", json!([bridge("six", &["fd00:98:2::/64"], 1500)]))],
            Self::Small => vec![list("small", json!([ptp("small", "10.98.3.0/24", true)]))],
            Self::Jumbo => vec![list("jumbo", json!([bridge("jumbo", &["10.98.4.0/24"], 9000)]))],
            // On the same bridge as Dual, so that pods of both meet there.
            Self::Two => vec![
                list("dual", json!([bridge("dual", &dual, 1500), portmap])),
                list("second", json!([ptp("second", "10.98.5.0/24", false)])),
            ],
            Self::Macvlan => {
                let ipam = addresses(data, "macvlan", &["10.98.6.0/24"]);
                vec![list("macvlan", json!([{ "type": "macvlan", "master": MACVLAN_LINK[0], "ipam": ipam }]))]
            }
        }
    }
}

fn addresses(data: &Path, name: &str, ranges: &[&str]) -> Value {
    let ranges: Vec<_> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    json!({ "type": "host-local", "dataDir": data.join(name), "ranges": ranges })
}

impl Node {
    /// Starts one in a network of its own, where pods can be on any [`Network`].
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_in_own_network() -> anyhow::Result<Self> {
        let network = Arc::new(NetworkNamespace::new()?);
        // With every first pod of a bridge the node would look for duplicates of its own address there, and have none for a second or two.
        network.run(|| fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")).context("accept_dad")?;
        let [below, beside] = MACVLAN_LINK;
        network.ip(&format!("link add {below} type veth peer name {beside}"))?;
        network.ip(&format!("link set {below} up"))?;
        network.ip(&format!("link set {beside} up"))?;
        network.ip(&format!("addr add {}/24 dev {beside}", Network::Macvlan.gateway()))?;
        let containerd = Containerd::start_for_pods_in(Arc::clone(&network), handlers);
        Self::of(containerd, Some(network))
    }

    /// Starts a pod on a network.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn pod_on(&self, network: Network, runtime: &str) -> anyhow::Result<Pod<'_>> {
        let name = handler_on(network, handler(runtime));
        Pod::run(self, &name, self.pod_config()).with_context(|| format!("a pod on the network {}", network.name()))
    }

    /// Where its containerd and its networks are.
    ///
    /// # Panics
    /// The node has no network of its own.
    pub fn network(&self) -> &NetworkNamespace {
        self.network.as_deref().expect("started by start_in_own_network")
    }
}

/// The handler's name: `kata-rs-dual`.
pub fn handler_on(network: Network, handler: &str) -> String {
    format!("{handler}-{}", network.name())
}

/// Their tables in containerd's configuration. Writes the lists of plugins that these name.
fn handlers(folder: &Path) -> String {
    let mut text = String::new();
    for network in Network::ALL {
        let lists = network.lists(&folder.join("addresses"));
        let conf = folder.join("networks").join(network.name());
        fs::create_dir_all(&conf).expect("writable");
        for (number, list) in lists.iter().enumerate() {
            fs::write(conf.join(format!("{number}.conflist")), list.to_string()).expect("writable");
        }
        for runtime in ["runc", "kata-rs"] {
            let table =
                format!("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{}", handler_on(network, runtime));
            text += &format!(
                "    [{table}]\n      runtime_type = \"io.containerd.{runtime}.v2\"\n      cni_conf_dir = \"{}\"\n      cni_max_conf_num = {}\n",
                conf.display(),
                lists.len()
            );
        }
    }
    text
}
