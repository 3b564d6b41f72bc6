//! One queue of a tap interface, for a network device.
//!
//! The launcher opened it in the pod's network namespace; this process knows no interface by name and could not open one.
//! What the descriptor is, is asked of the kernel once: a file of another kind, or a tap without the offload header, is refused before the
//! guest runs.

mod sys;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use vm_memory::VolatileSlice;
use vmm_virtio::{NetBackend, Offloads};

/// Bytes of the header before every frame: `virtio_net_hdr_v1`, as the devices of version 1 have it.
const HEADER_LEN: libc::c_int = 12;
/// What a descriptor must have been opened with.
const WANTED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
const EVERY_UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A tap queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    udp_segmentation: bool,
}

impl Tap {
    /// Takes the descriptor, with all offloads off.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = sys::interface_flags(&fd)?;
        if flags & WANTED != WANTED {
            let message = format!(
                "the interface's flags are {flags:#x}: open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR ({WANTED:#x})"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        sys::set_header_len(&fd, HEADER_LEN)?;
        // Linux before 6.2 knows nothing of UDP and refuses it.
        let udp_segmentation = sys::set_offloads(&fd, libc::TUN_F_CSUM | EVERY_UDP).is_ok();
        sys::set_offloads(&fd, 0)?;
        Ok(Self { fd, udp_segmentation })
    }

    /// Whether this host segments UDP for its taps.
    pub fn udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl NetBackend for Tap {
    // A tap takes a frame whole or not at all.
    fn send(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        sys::write_vectored(&self.fd, head, rest).map(drop)
    }

    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        // One byte more than the guest has room for: without it a frame that was cut looks like one that just fits.
        let mut spill = [0];
        sys::read_vectored(&self.fd, into, &mut spill)
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        sys::set_offloads(&self.fd, offload_flags(offloads))
    }

    fn set_joined(&mut self, joined: bool) -> io::Result<()> {
        match sys::set_queue_joined(&self.fd, joined) {
            // It is so already: the kernel takes that for a mistake.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    }
}

fn offload_flags(offloads: Offloads) -> libc::c_uint {
    let Offloads { checksum, tcp4, tcp6, ecn, udp } = offloads;
    let flags = [
        (checksum, libc::TUN_F_CSUM),
        (tcp4, libc::TUN_F_TSO4),
        (tcp6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (udp, EVERY_UDP),
    ];
    flags.into_iter().filter(|(wanted, _)| *wanted).fold(0, |sum, (_, flag)| sum | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_no_tap() {
        let file = tempfile::tempfile().expect("a file");
        let error = Tap::new(file.into()).expect_err("no tap");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}");
    }

    #[test]
    fn offloads_have_the_kernels_numbers() {
        assert_eq!(offload_flags(Offloads::default()), 0);
        let all = Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: true };
        assert_eq!(offload_flags(all), 0x6f);
    }
}
