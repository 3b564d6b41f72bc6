//! Pods through the CRI socket of the real containerd, as the kubelet drives it.
//!
//! One containerd serves all tests of this file, which run one after the other: counting what is left behind allows nothing beside it.
//! What a single pod does is in the conformance suite; here are many pods, and a containerd that goes away under them.

use std::sync::{LazyLock, Mutex, MutexGuard};

use tests::{
    Residue,
    containerd::{RUNC, RUNTIME},
    needs,
    node::Node,
};

fn node() -> MutexGuard<'static, Node> {
    static NODE: LazyLock<Mutex<Node>> = LazyLock::new(|| Mutex::new(Node::start().expect("a node")));
    NODE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn a_shell_line_prints_in_a_pod_of_either_runtime() {
    needs!(Kvm, Root, Stage, Program("containerd"));
    let node = node();
    for runtime in [RUNC, RUNTIME] {
        let before = Residue::now();
        assert_eq!(node.sh(runtime, "echo hello").expect("it runs"), "hello\n");
        before.assert_nothing_new();
    }
}
