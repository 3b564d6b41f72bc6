//! Generates the messages and the ttrpc service from `proto/agent.proto`, without protoc.
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/agent.proto"])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("agent.proto is valid");
    for name in ["agent.rs", "agent_ttrpc.rs"] {
        without_inner_attributes(&out.join(name));
    }
    println!("cargo:rerun-if-changed=proto/agent.proto");
}

/// `include!` inside a module takes no inner attributes; lib.rs puts its own on the module.
fn without_inner_attributes(path: &std::path::Path) {
    let text = std::fs::read_to_string(path).expect("just generated");
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|l| [l, "\n"])
        .collect();
    std::fs::write(path, kept).expect("OUT_DIR is writable");
}
