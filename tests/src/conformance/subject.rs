//! A runtime under test: its name, its shim, and a place for its bundles.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context;
use tempfile::TempDir;

use crate::{containerd::RUNC, prefix, rootfs};

/// Of the next id. One for all subjects of a program: they may run at the same time, and their pods have folders of those names.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A runtime that cases are run against.
pub struct Subject {
    runtime: String,
    folder: TempDir,
}

impl Subject {
    /// The runtime of this name, with busybox unpacked for its containers.
    ///
    /// # Errors
    /// There is no shim for it, or no image.
    pub fn new(runtime: &str) -> anyhow::Result<Self> {
        // Short: sockets and fifos are in it.
        let folder = tempfile::Builder::new().prefix("kata-rs-c-").tempdir()?;
        let subject = Self { runtime: runtime.to_owned(), folder };
        subject.shim()?;
        let image = prefix::image("busybox");
        rootfs::unpack(&image, &subject.busybox()).with_context(|| format!("{}: `make build`", image.display()))?;
        Ok(subject)
    }

    /// As containerd names it, such as io.containerd.runc.v2.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Is it the measure of the others?
    pub fn is_runc(&self) -> bool {
        self.runtime == RUNC
    }

    /// Its last name but one, for the table: `runc`, `kata-rs`.
    pub fn short_name(&self) -> &str {
        short_name(&self.runtime)
    }

    /// The shim's program, named as containerd derives it (runtime/v2/README.md, "Runtime Shim"), in our prefix or on PATH.
    ///
    /// # Errors
    /// It is in neither, or the runtime has no name of that form.
    pub fn shim(&self) -> anyhow::Result<PathBuf> {
        let mut words = self.runtime.rsplit('.');
        let (version, name) = words.next().zip(words.next()).context("a runtime is named as io.containerd.NAME.v2")?;
        let program = format!("containerd-shim-{name}-{version}");
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::iter::once(prefix::path().join("bin"))
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(&program))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("{program} is neither in {} nor on PATH", prefix::path().display()))
    }

    /// A folder that is gone with the subject.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// busybox as a folder; containers share it below their own writable layer.
    pub fn busybox(&self) -> PathBuf {
        self.folder().join("busybox")
    }

    /// The containerd namespace of this run.
    pub fn namespace(&self) -> String {
        format!("conformance-{}", std::process::id())
    }

    /// An identifier that was not used before, the same in no two runs at the same time.
    pub fn fresh_id(&self) -> String {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{}-{number}", self.short_name(), std::process::id())
    }
}

/// A runtime's last name but one.
pub fn short_name(runtime: &str) -> &str {
    runtime.rsplit('.').nth(1).unwrap_or(runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_without_a_shim_is_named() {
        let error = Subject::new("io.containerd.nobody.v9").err().expect("no such shim").to_string();
        assert!(error.contains("containerd-shim-nobody-v9"), "{error}");
    }
}
