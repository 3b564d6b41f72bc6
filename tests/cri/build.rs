//! Generates the client from `proto/api.proto`, without protoc and without the server half.

use std::{env, fs, path::PathBuf};

const INTERFACE: &str = "proto/api.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={INTERFACE}");
    let files = protox::compile([INTERFACE], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Comments of the interface are not written for rustdoc, which would take their indented parts for Rust to be tested.
    tonic_prost_build::configure().build_server(false).disable_comments(["."]).out_dir(&out).compile_fds(files)?;
    fs::metadata(out.join("runtime.v1.rs"))?;
    Ok(())
}
