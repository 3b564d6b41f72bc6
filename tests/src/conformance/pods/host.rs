//! Namespaces of the host, which a container in a machine of its own has no way into.

use anyhow::{Context, ensure};
use cri::v1;

use super::{super::Case, Subject, node, same};
use crate::node::Template;

const GROUP: &str = "Pods: host namespaces";
const NO_WAY_IN: &str =
    "the pod has a kernel of its own, so there is no way into the host's namespaces: refused with that sentence";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "hostNetwork is the host's network", network).unlike_in_a_vm(NO_WAY_IN, no_network),
        Case::new(GROUP, "hostPID shows the host's processes", pids).unlike_in_a_vm(NO_WAY_IN, no_pids),
        Case::new(GROUP, "hostIPC is the host's ipc namespace", ipc).unlike_in_a_vm(NO_WAY_IN, no_ipc),
    ]
}

#[derive(Clone, Copy, PartialEq)]
enum Wish {
    Network,
    Pids,
    Ipc,
}

impl Wish {
    fn grant(self, options: &mut v1::NamespaceOption) {
        let of_the_node = v1::NamespaceMode::Node.into();
        match self {
            Self::Network => options.network = of_the_node,
            Self::Pids => options.pid = of_the_node,
            Self::Ipc => options.ipc = of_the_node,
        }
    }

    /// As a pod's author writes it.
    fn field(self) -> &'static str {
        match self {
            Self::Network => "hostNetwork",
            Self::Pids => "hostPID",
            Self::Ipc => "hostIPC",
        }
    }
}

fn config(wish: Wish) -> anyhow::Result<v1::PodSandboxConfig> {
    let mut config = node()?.pod_config();
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    wish.grant(context.namespace_options.get_or_insert_default());
    if wish == Wish::Network {
        // The kubelet gives a pod in the host's network no name of its own.
        config.hostname = String::new();
    }
    Ok(config)
}

/// What a shell line prints in a container that is in the host's namespace.
fn printed(subject: &Subject, wish: Wish, line: &str) -> anyhow::Result<String> {
    let pod = node()?.run_pod(subject.runtime(), config(wish)?)?;
    let template = Template::sh(line).security(|c| wish.grant(c.namespace_options.get_or_insert_default()));
    let (status, printed) = pod.run_to_end(template)?;
    ensure!(status.exit_code == 0, "exit {}: {printed}", status.exit_code);
    pod.remove()?;
    Ok(printed)
}

fn same_as_the_hosts(subject: &Subject, wish: Wish, name: &str) -> anyhow::Result<()> {
    let inside = printed(subject, wish, &format!("readlink /proc/self/ns/{name}"))?;
    let outside = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
    same(name, inside.trim(), &outside.to_string_lossy())
}

fn network(subject: &Subject) -> anyhow::Result<()> {
    same_as_the_hosts(subject, Wish::Network, "net")
}

fn pids(subject: &Subject) -> anyhow::Result<()> {
    same_as_the_hosts(subject, Wish::Pids, "pid")
}

fn ipc(subject: &Subject) -> anyhow::Result<()> {
    same_as_the_hosts(subject, Wish::Ipc, "ipc")
}

fn refused(subject: &Subject, wish: Wish) -> anyhow::Result<()> {
    let error = node()?
        .run_pod(subject.runtime(), config(wish)?)
        .err()
        .with_context(|| format!("{} was taken", wish.field()))?;
    ensure!(error.message().contains(wish.field()), "{error}");
    Ok(())
}

fn no_network(subject: &Subject) -> anyhow::Result<()> {
    refused(subject, Wish::Network)
}

fn no_pids(subject: &Subject) -> anyhow::Result<()> {
    refused(subject, Wish::Pids)
}

fn no_ipc(subject: &Subject) -> anyhow::Result<()> {
    refused(subject, Wish::Ipc)
}
