//! Generates the messages of `proto/sandbox_config.proto`, without protoc.
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/sandbox_config.proto"])
        .include("proto")
        .rust_protobuf()
        .run()
        .expect("sandbox_config.proto is valid");
    without_inner_attributes(&out.join("sandbox_config.rs"));
    println!("cargo:rerun-if-changed=proto/sandbox_config.proto");
}

/// `include!` inside a module takes no inner attributes; lib.rs puts its own on the module.
fn without_inner_attributes(path: &std::path::Path) {
    let text = std::fs::read_to_string(path).expect("just generated");
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    std::fs::write(path, kept).expect("OUT_DIR is writable");
}
