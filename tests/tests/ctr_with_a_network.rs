//! `ctr run --cni`: a network that containerd's own client makes for a container, at the task's pid, between its creation and its start.

use std::{process::Command, time::Duration};

use tests::{Containerd, NetworkNamespace, Residue, command, containerd::RUNTIME, needs, node::poll_until};

/// What the plugin gives the container.
const SUBNET: &str = "10.79.0.0/24";
/// Of the host's end.
const GATEWAY: &str = "10.79.0.1";

/// Longest that the kernel takes to clear away what nobody holds any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// `ctr` looks for plugins and their configuration in fixed places, and keeps what they said in a third: here each is its own, and so is the host's end of the network.
fn with_a_network(containerd: &Containerd, network: &NetworkNamespace, words: &[String]) -> Command {
    let plugin = serde_json::json!({ "type": "ptp", "ipam": { "type": "host-local", "subnet": SUBNET, "routes": [{ "dst": "0.0.0.0/0" }] } });
    let list = serde_json::json!({ "cniVersion": "0.4.0", "name": "ctr", "plugins": [plugin] });
    let script = "set -e
        mount --make-rprivate /
        for folder in /etc /opt /var/lib; do mount -t tmpfs tmpfs $folder; done
        mkdir -p /etc/cni/net.d /opt/cni
        ln -s /usr/lib/cni /opt/cni/bin
        echo \"$LIST\" > /etc/cni/net.d/10-ctr.conflist
        exec \"$@\"";
    let ctr = containerd.ctr(words);
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.path().display()));
    command.args(["unshare", "--mount", "sh", "-c", script, "sh"]).env("LIST", list.to_string());
    command.arg(ctr.get_program()).args(ctr.get_args());
    command
}

#[test]
fn the_container_begins_with_the_network_that_ctr_made_and_nothing_is_left_of_it() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("nsenter"), Program("/usr/lib/cni/ptp"));
    let containerd = Containerd::start();
    let busybox = containerd.import("busybox");
    let network = NetworkNamespace::new().expect("made");
    let (before, empty) = (Residue::now(), network.ip("-br link").expect("shown"));
    let line = format!("ip -o -4 address show dev eth0; ping -c 1 -W 5 {GATEWAY}");
    let id = containerd.fresh_id();
    let words = containerd.container_arguments(RUNTIME, &["--cni"], &busybox, &id, &["sh", "-c", &line]);
    let printed = command::run(&mut with_a_network(&containerd, &network, &words)).success();
    assert!(printed.contains("inet 10.79.0.") && printed.contains("1 packets received"), "{printed}");
    // The pair goes with the container's namespace, which the kernel takes apart a moment after its last process.
    let gone = || Ok((network.ip("-br link")? == empty).then_some(()));
    assert!(poll_until(SETTLES_WITHIN, gone).expect("shown").is_some(), "{}", network.ip("-br link").expect("shown"));
    before.assert_nothing_new();
}
