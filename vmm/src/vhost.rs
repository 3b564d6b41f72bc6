//! One queue pair of a network device, served by the host's kernel: an instance of vhost-net.
//!
//! The launcher opened it, as this process opens nothing by path. Making it the owner of this process's memory is the first thing that is
//! done with it, so that a descriptor of another kind is refused before the guest runs.

mod sys;

use std::{io, os::fd::OwnedFd};

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_virtio::{VhostPair, VhostQueues, VhostRing};

use sys::{Region, RingAddresses};

/// Most regions of memory that we name; a machine has two at most, below and above the hole for devices.
const REGIONS_MAX: usize = 8;

/// An instance of vhost-net.
#[derive(Debug)]
pub struct Vhost {
    fd: OwnedFd,
    features: u64,
    serves: bool,
}

impl Vhost {
    /// Takes the descriptor. From here on the kernel has a thread for it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let features = sys::features(&fd)?;
        sys::set_owner(&fd)?;
        Ok(Self { fd, features, serves: false })
    }

    fn set_up(&self, queues: &VhostQueues<'_>) -> io::Result<()> {
        sys::set_features(&self.fd, queues.features & self.features)?;
        sys::set_memory(&self.fd, &regions(queues.memory)?)?;
        for (index, ring) in (0..).zip(&queues.rings) {
            self.set_up_ring(index, ring, queues)?;
        }
        // The rings first: a tap that may carry frames already finds both.
        (0..2).try_for_each(|index| sys::set_tap(&self.fd, index, Some(queues.tap)))
    }

    fn set_up_ring(&self, index: u32, ring: &VhostRing<'_>, with: &VhostQueues<'_>) -> io::Result<()> {
        sys::set_ring_size(&self.fd, index, ring.size)?;
        sys::set_ring_position(&self.fd, index, ring.position)?;
        sys::set_ring_addresses(&self.fd, index, &addresses(ring, with.memory)?)?;
        sys::set_call(&self.fd, index, Some(with.call))?;
        sys::set_error(&self.fd, index, Some(with.broken))?;
        sys::set_kick(&self.fd, index, Some(ring.kick))
    }

    fn stop_ring(&self, index: u32) -> io::Result<u16> {
        // What could still come from either side is taken away first.
        sys::set_tap(&self.fd, index, None)?;
        sys::set_kick(&self.fd, index, None)?;
        sys::set_call(&self.fd, index, None)?;
        sys::ring_position(&self.fd, index)
    }
}

impl VhostPair for Vhost {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(&mut self, queues: &VhostQueues<'_>) -> io::Result<()> {
        self.serves = true;
        self.set_up(queues)
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        if !std::mem::take(&mut self.serves) {
            return Ok([0; 2]);
        }
        let (receive, transmit) = (self.stop_ring(0), self.stop_ring(1));
        Ok([receive?, transmit?])
    }
}

/// Guest memory, as this process sees it.
fn regions(memory: &GuestMemoryMmap) -> io::Result<Vec<Region>> {
    if memory.num_regions() > REGIONS_MAX {
        return Err(io::Error::other(format!("guest memory has more than {REGIONS_MAX} regions")));
    }
    let region = |guest: GuestAddress, len: u64| Ok(Region::new(guest.raw_value(), len, own_address(memory, guest)?));
    memory.iter().map(|part| region(part.start_addr(), part.len())).collect()
}

/// Where the rings are in this process; they were checked to lie in guest memory when the queue was set up.
fn addresses(ring: &VhostRing<'_>, memory: &GuestMemoryMmap) -> io::Result<RingAddresses> {
    let own = |address: u64| own_address(memory, GuestAddress(address));
    Ok(RingAddresses { descriptors: own(ring.descriptors)?, available: own(ring.available)?, used: own(ring.used)? })
}

fn own_address(memory: &GuestMemoryMmap, guest: GuestAddress) -> io::Result<u64> {
    let pointer = memory.get_host_address(guest).map_err(io::Error::other)?;
    Ok(pointer.addr() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_no_vhost() {
        let file = tempfile::tempfile().expect("a file");
        let error = Vhost::new(file.into()).expect_err("no vhost");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}");
    }

    #[test]
    fn memory_is_told_where_this_process_has_it() {
        let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(1 << 32), 0x20_0000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
        let told = regions(&memory).expect("two");
        for ((guest, len), region) in ranges.into_iter().zip(told) {
            let own = memory.get_host_address(guest).expect("there").addr() as u64;
            assert_eq!(region, Region::new(guest.raw_value(), len as u64, own));
        }
        assert!(own_address(&memory, GuestAddress(0x30_0000)).is_err(), "a hole");
    }
}
