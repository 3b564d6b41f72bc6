//! Where our own files are.
//!
//! An installation is one folder (`/opt/kata-rs`, or `target/stage` of a build): `bin/` for what people and containerd start,
//! `libexec/kata-rs/` for what we start, `share/kata-rs/` for what the machine is made of. Nothing is looked for on PATH.
//!
//! An installed one is `versions/VERSION` below that folder, reached by links. Links are resolved once, here: what is found is the
//! version that runs, so that a pod uses the files of one version for its whole life, wherever the links point by then.

use std::path::{Path, PathBuf};

use crate::{ErrorKind, PodError};

/// Names another installation than the one the running binary is in.
pub const PREFIX_VARIABLE: &str = "KATA_RS_PREFIX";

/// Where our own files are. Found from the running binary, or KATA_RS_PREFIX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The folder of it all.
    pub prefix: PathBuf,
    /// `kata-rs-vmm`.
    pub vmm: PathBuf,
    /// The file server.
    pub virtiofsd: PathBuf,
    /// Guest kernel for KVM with VT-x or SVM; may be missing when the other is there.
    pub kernel_hw: PathBuf,
    /// Guest kernel for software KVM; may be missing when the other is there.
    pub kernel_pvm: PathBuf,
    /// The guest's root file system.
    pub guest_image: PathBuf,
}

impl Installation {
    /// The installation of the running binary (`PREFIX/bin/<binary>`), or of KATA_RS_PREFIX. Files are looked at when they are needed.
    pub fn find() -> Result<Self, PodError> {
        if let Some(prefix) = std::env::var_os(PREFIX_VARIABLE).filter(|p| !p.is_empty()) {
            // Programs are started from another folder than ours. One that is not there is named file by file later.
            let absolute = std::path::absolute(&prefix).map_err(|e| PodError::host("cannot tell where we are", e))?;
            return Ok(Self::at(&absolute.canonicalize().unwrap_or(absolute)));
        }
        let binary = std::env::current_exe()
            .map_err(|e| PodError::host("cannot tell where this binary is (/proc/self/exe)", e))?;
        // The kernel resolved all links when it started the binary (proc(5)).
        match binary.parent().and_then(Path::parent) {
            Some(prefix) => Ok(Self::at(prefix)),
            None => Err(PodError::new(
                ErrorKind::FailedPrecondition,
                format!("{} is not in the bin folder of an installation: set {PREFIX_VARIABLE}", binary.display()),
            )),
        }
    }

    /// The installation in this folder.
    pub fn at(prefix: &Path) -> Self {
        let (libexec, share) = (prefix.join("libexec/kata-rs"), prefix.join("share/kata-rs"));
        Self {
            prefix: prefix.to_owned(),
            vmm: libexec.join("kata-rs-vmm"),
            virtiofsd: libexec.join("virtiofsd"),
            kernel_hw: share.join("vmlinux-hw"),
            kernel_pvm: share.join("vmlinux-pvm"),
            guest_image: share.join("guest.erofs"),
        }
    }

    /// One clear error for a program that is not there or cannot be run.
    pub(crate) fn check_programs(&self) -> Result<(), PodError> {
        [("virtual machine monitor", &self.vmm), ("file server", &self.virtiofsd)].into_iter().try_for_each(
            |(what, path)| {
                rustix::fs::access(path, rustix::fs::Access::EXEC_OK).map_err(|errno| missing(what, path, errno.into()))
            },
        )
    }
}

/// The error for one of our own files.
pub(crate) fn missing(what: &str, path: &Path, source: std::io::Error) -> PodError {
    PodError {
        kind: ErrorKind::FailedPrecondition,
        message: format!(
            "the {what} {} cannot be used: {source}; install kata-rs completely (make build), or point {PREFIX_VARIABLE} at an installation",
            path.display()
        ),
        source: Some(Box::new(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Installation::at(folder.path()).check_programs().expect_err("nothing is there");
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        for word in ["virtual machine monitor", "libexec/kata-rs/kata-rs-vmm", "No such file", PREFIX_VARIABLE] {
            assert!(error.message.contains(word), "{word} is not in: {}", error.message);
        }
    }

    #[test]
    fn the_layout_is_the_one_that_is_staged() {
        let installation = Installation::at(Path::new("/opt/kata-rs"));
        assert_eq!(installation.virtiofsd, Path::new("/opt/kata-rs/libexec/kata-rs/virtiofsd"));
        assert_eq!(installation.guest_image, Path::new("/opt/kata-rs/share/kata-rs/guest.erofs"));
    }
}
