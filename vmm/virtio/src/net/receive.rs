//! From the host to the guest.
//!
//! The host's kernel writes each frame straight into the guest's buffers. As nobody knows a frame's length before, buffers are collected
//! until the largest frame would fit; what a frame leaves unused is kept, checked as it is, for the next. With mergeable buffers
//! (VIRTIO_NET_F_MRG_RXBUF) a frame takes as many chains as it needs, without them one.
//! A guest without buffers is asked for a kick and not looked at until then: frames wait in the host's queue, which drops what is too much.

use std::{cmp::min, collections::VecDeque};

use virtio_queue::QueueState;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::{
    backend::{NetBackend, Trouble, trouble_of_receive},
    header::{ETHERNET_LEN, HEADER_LEN, NUM_BUFFERS_AT},
    rate::Limiter,
    turn::{FRAMES_PER_TURN, Pause, Turn, held},
};
use crate::{
    chain::{Chain, ChainFault},
    fault::Fault,
    log_limit::warn_limited,
    served_queue::ServedQueue,
};

/// Most stretches of memory that one frame is read into: what one system call takes (IOV_MAX), less a few for the backend's own.
const SLICES_MAX: usize = 1000;

/// A receive queue.
pub(super) struct Receiver {
    queue: ServedQueue,
    /// Chains taken from the queue and not used yet, in the queue's order; never more than the queue has.
    waiting: VecDeque<Chain>,
    /// Bytes that they hold.
    room: usize,
    mergeable: bool,
    largest: usize,
}

/// What came of looking for a frame.
enum Found {
    Frame(usize),
    Unfit,
    Nothing,
    Gone,
}

impl Receiver {
    /// `largest` is the length of the largest frame that may come, header counted.
    pub(super) fn new(queue: ServedQueue, mergeable: bool, largest: usize) -> Self {
        Self { queue, waiting: VecDeque::new(), room: 0, mergeable, largest }
    }

    pub(super) fn queue(&mut self) -> &mut ServedQueue {
        &mut self.queue
    }

    /// The queue's positions, as if what is unused had never been taken.
    pub(super) fn into_state(mut self) -> QueueState {
        while let Some(chain) = self.waiting.pop_back() {
            self.queue.put_back(chain);
        }
        self.queue.state()
    }

    /// Takes frames while there are some, and buffers for them.
    pub(super) fn turn(
        &mut self,
        turn: &Turn<'_>,
        limiter: &mut Limiter,
        backend: &mut Box<dyn NetBackend>,
    ) -> Result<Pause, Fault> {
        for _ in 0..FRAMES_PER_TURN {
            if !self.collect(turn.memory)? {
                return Ok(Pause::NoBuffers);
            }
            // The length is known too late, so that room is asked for the largest frame; only the true length is taken.
            if let Some(wait) = held(limiter, turn, self.largest as u64) {
                return Ok(Pause::Limit(wait));
            }
            match self.find(turn, backend)? {
                Found::Frame(len) => {
                    self.deliver(turn, len)?;
                    limiter.take(len.saturating_sub(HEADER_LEN) as u64);
                }
                Found::Unfit => turn.counters.dropped_unfit.add(1),
                Found::Nothing => return Ok(Pause::Drained),
                Found::Gone => return Ok(Pause::Gone),
            }
        }
        Ok(Pause::Share)
    }

    /// Takes chains until there is room for any frame. False when the guest has too few; then it was asked for a kick.
    fn collect(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let mut asked = false;
        while !self.enough() {
            match self.queue.pop(memory)? {
                Some(chain) => {
                    self.keep(chain)?;
                    // The question was for this chain's place in the ring, and is answered.
                    asked = false;
                }
                // A second look after the question, for what came just before it; not a third, as the guest could go on so forever.
                None if !asked && self.queue.want_kicks(memory)? => asked = true,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    // A guest that offers all it has and it is too little gets the frames that fit, and the others are dropped.
    fn enough(&self) -> bool {
        let whole = self.room >= self.largest || self.waiting.len() >= usize::from(self.queue.size());
        if self.mergeable { whole } else { !self.waiting.is_empty() }
    }

    fn keep(&mut self, chain: Chain) -> Result<(), Fault> {
        let len = chain.writable_len();
        // Every buffer holds a header at least (section 5.1.6.3.1).
        if len < HEADER_LEN {
            let source = ChainFault::TooShort { len, wanted: HEADER_LEN };
            return Err(Fault::Chain { index: self.queue.index(), source });
        }
        self.room = self.room.saturating_add(len);
        self.waiting.push_back(chain);
        Ok(())
    }

    fn find(&self, turn: &Turn<'_>, backend: &mut Box<dyn NetBackend>) -> Result<Found, Fault> {
        let index = self.queue.index();
        let slices = self.slices(turn.memory).map_err(|source| Fault::Chain { index, source })?;
        let room: usize = slices.iter().map(VolatileSlice::len).sum();
        Ok(match backend.receive(&slices) {
            Ok(len) if (HEADER_LEN + ETHERNET_LEN..=room).contains(&len) => Found::Frame(len),
            Ok(_) => Found::Unfit,
            Err(error) => match trouble_of_receive(&error) {
                Trouble::Moment => Found::Nothing,
                Trouble::Frame => {
                    warn_limited!("device {}: the host could not hand over a frame: {error}", turn.name);
                    Found::Unfit
                }
                Trouble::Gone => Found::Gone,
            },
        })
    }

    /// The memory behind the chains that the next frame may take, from the first on.
    fn slices<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Result<Vec<VolatileSlice<'a>>, ChainFault> {
        let chains = if self.mergeable { self.waiting.len() } else { 1 };
        let mut left = self.largest;
        let parts = self.waiting.iter().take(chains).map_while(move |chain| {
            let len = min(chain.writable_len(), left);
            left -= len;
            (len > 0).then(|| chain.writable_slices(memory, 0, len))
        });
        parts.flatten().take(SLICES_MAX).collect()
    }

    /// Gives the guest the chains that hold a frame of `len` bytes.
    fn deliver(&mut self, turn: &Turn<'_>, len: usize) -> Result<(), Fault> {
        let mut left = len;
        let mut parts: Vec<(Chain, u32)> = Vec::new();
        while left > 0 {
            let Some(chain) = self.waiting.pop_front() else { break };
            let written = min(left, chain.writable_len());
            left -= written;
            self.room = self.room.saturating_sub(chain.writable_len());
            parts.push((chain, u32::try_from(written).unwrap_or(u32::MAX)));
        }
        // The queue's size is a u16, and no more chains wait.
        let count = u16::try_from(parts.len()).unwrap_or(u16::MAX).to_le_bytes();
        let index = self.queue.index();
        let numbered = parts.first().map_or(Ok(()), |(first, _)| first.write(turn.memory, NUM_BUFFERS_AT, &count));
        numbered.map_err(|source| Fault::Chain { index, source })?;
        self.queue.complete_together(turn.memory, parts)?;
        let bytes = len.saturating_sub(HEADER_LEN) as u64;
        turn.counters.received_frames.add(1);
        turn.counters.received_bytes.add(bytes);
        Ok(())
    }
}
