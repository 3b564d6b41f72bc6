//! Pods as the kubelet asks for them, through containerd's CRI socket.
//!
//! What is covered follows Kubernetes' own validation of container runtimes (cri-tools, `pkg/validate`) as far as it is about pods and
//! containers, and the fields that the kubelet fills. One containerd with both runtimes serves all cases; each case has pods of its own.

mod containers;
mod exec;
mod host;
mod limits;
mod logs;
mod manifest;
mod namespaces;
mod network;
mod sandbox;
mod security;
mod streams;
mod together;
mod volumes;

use std::{fmt::Debug, sync::OnceLock};

use anyhow::Context;

use super::{Case, Subject};
use crate::node::{Node, Pod};

/// Every case of pods.
pub fn cases() -> Vec<Case> {
    let groups = [
        sandbox::cases(),
        containers::cases(),
        exec::cases(),
        streams::cases(),
        logs::cases(),
        together::cases(),
        manifest::cases(),
        limits::cases(),
        security::cases(),
        namespaces::cases(),
        host::cases(),
        volumes::cases(),
    ];
    groups.into_iter().flatten().collect()
}

/// Every case of pods' networks, on a node of their own.
pub fn network_cases() -> Vec<Case> {
    network::cases()
}

/// The node of this program; both runtimes' cases use it at the same time.
fn node() -> anyhow::Result<&'static Node> {
    static NODE: OnceLock<Result<Node, String>> = OnceLock::new();
    let node = NODE.get_or_init(|| Node::start().map_err(|error| format!("{error:#}")));
    node.as_ref().map_err(|error| anyhow::anyhow!("no node: {error}"))
}

/// A pod without wishes.
fn pod(subject: &Subject) -> anyhow::Result<Pod<'static>> {
    node()?.plain_pod(subject.runtime()).context("a plain pod")
}

/// What a shell line prints in a pod of its own.
fn sh(subject: &Subject, line: &str) -> anyhow::Result<String> {
    node()?.sh(subject.runtime(), line)
}

/// Fails with both values unless they are the same.
fn same<T: PartialEq + Debug>(what: &str, found: T, wanted: T) -> anyhow::Result<()> {
    anyhow::ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
    Ok(())
}
