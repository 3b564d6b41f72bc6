//! The control queue, section 5.1.6.5: the driver chooses how many queue pairs it uses. Nothing else is offered.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

use crate::{
    chain::{Chain, ChainFault},
    fault::Fault,
    log_limit::warn_limited,
    served_queue::ServedQueue,
};

/// Class, command, and the largest argument that is understood. The driver may send more; it is not read.
const COMMAND_LEN: usize = 4;

/// A control queue.
pub(super) struct ControlQueue {
    queue: ServedQueue,
    pairs_max: u16,
}

impl ControlQueue {
    pub(super) fn new(queue: ServedQueue, pairs_max: u16) -> Self {
        Self { queue, pairs_max }
    }

    pub(super) fn queue(&mut self) -> &mut ServedQueue {
        &mut self.queue
    }

    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Answers at most one ring full of commands; `pairs` is what the driver chose last. True when there is more to do.
    pub(super) fn turn(&mut self, memory: &GuestMemoryMmap, pairs: &mut u16) -> Result<bool, Fault> {
        let index = self.queue.index();
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(memory)? else { break };
            let chosen = self.command(&chain, memory).map_err(|source| Fault::Chain { index, source })?;
            let answer = if chosen.is_some() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            chain.write(memory, 0, &[answer as u8]).map_err(|source| Fault::Chain { index, source })?;
            *pairs = chosen.unwrap_or(*pairs);
            self.queue.complete(memory, chain, 1)?;
        }
        self.queue.want_kicks(memory)
    }

    /// The number of pairs, if that is what the command sets and it is a good one.
    fn command(&self, chain: &Chain, memory: &GuestMemoryMmap) -> Result<Option<u16>, ChainFault> {
        let len = chain.readable_len();
        if len < COMMAND_LEN {
            warn_limited!("a network device's control command of {len} bytes is refused");
            return Ok(None);
        }
        let mut bytes = [0; COMMAND_LEN];
        chain.read(memory, 0, &mut bytes)?;
        let [class, command, low, high] = bytes;
        let pairs = u16::from_le_bytes([low, high]);
        let sets_pairs =
            (u32::from(class), u32::from(command)) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        if sets_pairs && u32::from(pairs) >= VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MIN && pairs <= self.pairs_max {
            return Ok(Some(pairs));
        }
        warn_limited!("a network device's control command {class}/{command} with {pairs} is refused");
        Ok(None)
    }
}
