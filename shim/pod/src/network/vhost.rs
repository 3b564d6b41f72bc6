//! vhost-net, with which the host's kernel moves a device's frames.

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use rustix::io::Errno;

use crate::PodError;

/// Where it comes from. The node may be there without the module, which the kernel loads when it is opened.
pub(super) const DEVICE: &str = "/dev/vhost-net";

/// One instance for each queue; none where the host has no vhost-net, and the VMM moves the frames itself.
///
/// # Errors
/// The host has it, and does not give it.
pub(super) fn open(path: &Path, queues: usize) -> Result<Vec<OwnedFd>, PodError> {
    let one = || File::options().read(true).write(true).open(path).map(OwnedFd::from);
    match (0..queues).map(|_| one()).collect() {
        Ok(opened) => Ok(opened),
        Err(error) if is_absent(&error) => {
            log::info!("this host has no vhost-net ({error}): the virtual machine monitor moves the pod's frames");
            Ok(Vec::new())
        }
        Err(error) => {
            let what = format!(
                "cannot open {}, which the operator's network_vhost asks for (give access to it, or set network_vhost = false)",
                path.display()
            );
            Err(PodError::host(what, error))
        }
    }
}

/// No node, or a node without a module behind it.
fn is_absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV | Errno::NXIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_an_instance_and_a_host_without_has_none() {
        assert_eq!(open(Path::new("/dev/null"), 3).expect("opened").len(), 3);
        assert!(open(Path::new("/dev/no-such-device"), 3).expect("none").is_empty());
    }

    #[test]
    fn one_that_is_there_and_not_given_is_an_error_with_the_key() {
        let error = open(Path::new("/dev/null/below"), 1).expect_err("no folder").message;
        assert!(error.contains("network_vhost"), "{error}");
    }
}
