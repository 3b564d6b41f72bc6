//! Where the built files are.

use std::path::PathBuf;

/// The staged installation: KATA_RS_PREFIX, or `target/stage` of this checkout.
pub fn path() -> PathBuf {
    match std::env::var_os("KATA_RS_PREFIX") {
        Some(path) => path.into(),
        None => workspace().join("target/stage"),
    }
}

/// A program of ours.
pub fn bin(name: &str) -> PathBuf {
    path().join("bin").join(name)
}

/// An OCI archive for tests: `busybox` or `python`.
pub fn image(name: &str) -> PathBuf {
    let folder = std::env::var_os("KATA_RS_IMAGES").map_or_else(|| workspace().join("target/images"), PathBuf::from);
    folder.join(format!("{name}.tar"))
}

/// The emulated machine of the hardware lane.
pub fn machine() -> PathBuf {
    std::env::var_os("KATA_RS_MACHINE").map_or_else(|| workspace().join("target/machine"), PathBuf::from)
}

/// The checkout.
pub fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
