//! The block device, section 5.2: one raw image or device, one queue, synchronous requests.
//!
//! A read-only disk refuses every write whatever the driver negotiated, and its file is opened without the right to write, so that one
//! mistake here is not enough. No image format is ever detected: bytes are bytes. Discard and write-zeroes are not offered.

mod backend;
mod request;

use std::{
    cmp::min,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use virtio_bindings::bindings::{
    virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX},
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

pub use backend::{BlockBackend, FileBackend, MemoryBackend};
use request::{HEADER_LEN, ID_LEN, Request, SECTOR_LEN, Status};

use crate::{
    answer::{Answer, Life},
    chain::{Chain, ChainFault},
    config::read_bytes,
    device::{ActivateError, Activation, DeviceTraits, VirtioDevice},
    fault::Fault,
    log_limit::warn_limited,
};

/// Device type of the block device.
const DEVICE_TYPE: u32 = 2;
/// Requests that can be waiting.
const QUEUE_SIZE: u16 = 128;
/// Most data buffers of one request: the queue less the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Longest data buffer.
const SEGMENT_LEN_MAX: u32 = 64 * 1024;
/// Bytes moved between file and guest in one step; the only memory a running disk takes.
const COPY_LEN: usize = 64 * 1024;
/// Capacity, size_max and seg_max.
const CONFIG_LEN: usize = 16;

/// A block device that is not yet, or is, driven.
pub struct Block {
    name: String,
    features: u64,
    capacity: u64,
    bytes_read: Arc<AtomicU64>,
    life: Life<Disk>,
}

impl Block {
    /// A disk of `backend`'s bytes. `name` is for threads and logs. `serial` is what GET_ID answers; what is beyond 20 bytes is cut.
    pub fn new(name: &str, backend: Box<dyn BlockBackend>, read_only: bool, serial: &str) -> Self {
        let capacity = backend.len() / SECTOR_LEN;
        let bytes_read = Arc::new(AtomicU64::new(0));
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(into, byte)| *into = byte);
        let disk = Disk {
            backend,
            read_only,
            id,
            capacity,
            flush_after_write: true,
            copy: Vec::new(),
            bytes_read: bytes_read.clone(),
        };
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX;
        if read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        Self { name: name.to_owned(), features, capacity, bytes_read, life: Life::Stopped(disk) }
    }

    /// Bytes that the guest has read, over all lives of the device.
    pub fn bytes_read(&self) -> Arc<AtomicU64> {
        self.bytes_read.clone()
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: self.features,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_LEN as u32,
            name: self.name.clone(),
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        let fields = [&self.capacity.to_le_bytes()[..], &SEGMENT_LEN_MAX.to_le_bytes(), &SEGMENTS_MAX.to_le_bytes()];
        config.iter_mut().zip(fields.into_iter().flatten()).for_each(|(into, byte)| *into = *byte);
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        self.life.start(&self.name, with)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.life.stop()
    }
}

/// What the thread owns.
struct Disk {
    backend: Box<dyn BlockBackend>,
    read_only: bool,
    id: [u8; ID_LEN],
    capacity: u64,
    flush_after_write: bool,
    copy: Vec<u8>,
    bytes_read: Arc<AtomicU64>,
}

impl Answer for Disk {
    const CHAIN_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_LEN_MAX as u64 + HEADER_LEN as u64 + 1;

    // Without FLUSH the driver has no way to ask, so every write must be durable by itself (section 5.2.5.2).
    fn agreed(&mut self, features: u64) {
        self.flush_after_write = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn answer(&mut self, index: u16, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, Fault> {
        self.serve(chain, memory).map_err(|source| Fault::Chain { index, source })
    }
}

/// Why the data of a request did not move.
enum MoveFault {
    /// The backend failed: the request's status says so.
    Backend(io::Error),
    /// The chain failed: the device needs a reset.
    Chain(ChainFault),
}

impl Disk {
    // The header is the first 16 readable bytes and the status the last writable one, however the driver cut its buffers (section 2.7.4).
    fn serve(&mut self, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, ChainFault> {
        let mut header = [0; HEADER_LEN];
        chain.read(memory, 0, &mut header)?;
        let status_at = chain.writable_len().checked_sub(1).ok_or(ChainFault::TooShort { len: 0, wanted: 1 })?;
        let request = Request::parse(
            header,
            chain.readable_len().saturating_sub(HEADER_LEN),
            status_at,
            self.capacity,
            self.read_only,
        );
        let (status, written) = match request {
            Ok(request) => self.carry_out(request, chain, memory)?,
            Err(status) => (status, 0),
        };
        chain.write(memory, status_at, &[status as u8])?;
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    fn carry_out(
        &mut self,
        request: Request,
        chain: &Chain,
        memory: &GuestMemoryMmap,
    ) -> Result<(Status, usize), ChainFault> {
        let (moved, written) = match request {
            Request::Read { offset, len } => (self.read(offset, len, chain, memory), len),
            Request::Write { offset, len } => (self.write(offset, len, chain, memory), 0),
            Request::Flush => (self.backend.flush().map_err(MoveFault::Backend), 0),
            Request::Id => (chain.write(memory, 0, &self.id).map_err(MoveFault::Chain), ID_LEN),
        };
        match moved {
            Ok(()) => Ok((Status::Ok, written)),
            Err(MoveFault::Chain(fault)) => Err(fault),
            Err(MoveFault::Backend(error)) => {
                warn_limited!("a disk request failed on the host: {request:?}: {error}");
                Ok((Status::IoError, 0))
            }
        }
    }

    fn read(&mut self, offset: u64, len: usize, chain: &Chain, memory: &GuestMemoryMmap) -> Result<(), MoveFault> {
        self.copy.resize(COPY_LEN, 0);
        for start in (0..len).step_by(COPY_LEN) {
            let part = self.copy.get_mut(..min(COPY_LEN, len - start)).unwrap_or_default();
            self.backend.read_at(part, offset + start as u64).map_err(MoveFault::Backend)?;
            chain.write(memory, start, part).map_err(MoveFault::Chain)?;
            self.bytes_read.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, len: usize, chain: &Chain, memory: &GuestMemoryMmap) -> Result<(), MoveFault> {
        self.copy.resize(COPY_LEN, 0);
        for start in (0..len).step_by(COPY_LEN) {
            let part = self.copy.get_mut(..min(COPY_LEN, len - start)).unwrap_or_default();
            chain.read(memory, HEADER_LEN + start, part).map_err(MoveFault::Chain)?;
            self.backend.write_at(part, offset + start as u64).map_err(MoveFault::Backend)?;
        }
        if self.flush_after_write { self.backend.flush().map_err(MoveFault::Backend) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
