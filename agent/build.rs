//! Links the agent at a fixed address.
//!
//! As a position-independent program, each agent and each of its stages would relocate itself at its start: some 12,000 writes, which
//! dirty 60 pages of its own, each of them a page fault, and these are the dearest thing there is on a software KVM. What is given up
//! is the random address of the agent's own code, inside a guest that is not trusted in the first place; stack, heap and vDSO stay random.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // gcc takes the last of its contradicting words: these undo the compiler driver's -static-pie.
    for word in ["-no-pie", "-static"] {
        println!("cargo:rustc-link-arg-bin=kata-rs-agent={word}");
    }
}
