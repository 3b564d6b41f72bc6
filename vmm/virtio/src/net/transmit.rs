//! From the guest to the host.
//!
//! The head of each frame is copied once, checked, and sent as that copy; the rest goes in the same call from guest memory to the host's
//! kernel, without a copy of ours. So what was checked is what is sent, whatever the guest writes meanwhile.
//! A frame that cannot be sent is dropped and counted: nothing waits, and the chain goes back at once.

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;

use super::{
    backend::{NetBackend, Trouble, trouble_of_send},
    header::{HEAD_LEN, HEADER_LEN, HeadFault, HeadRules},
    rate::Limiter,
    turn::{FRAMES_PER_TURN, Pause, Turn, held},
};
use crate::{
    chain::{Chain, ChainFault},
    fault::Fault,
    finished::{Finished, News},
    log_limit::warn_limited,
    served_queue::ServedQueue,
};

/// A transmit queue.
pub(super) struct Transmitter {
    queue: ServedQueue,
    rules: HeadRules,
    finished: Finished,
}

/// What became of a frame.
enum Fate {
    Sent,
    WrongSource,
    Malformed,
    Full,
    NoLink,
    Gone,
}

impl Transmitter {
    pub(super) fn new(queue: ServedQueue, rules: HeadRules) -> Self {
        Self { queue, rules, finished: Finished::default() }
    }

    pub(super) fn queue(&mut self) -> &mut ServedQueue {
        &mut self.queue
    }

    /// What the driver is to hear of what is out.
    pub(super) fn news(&self, memory: &GuestMemoryMmap) -> Result<News, Fault> {
        self.finished.news(&self.queue, memory)
    }

    /// The driver is interrupted, and so hears of all that is out.
    pub(super) fn told(&mut self) {
        self.finished = Finished::default();
    }

    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Sends what is there, to nowhere without a backend.
    pub(super) fn turn(
        &mut self,
        turn: &Turn<'_>,
        limiter: &mut Limiter,
        mut backend: Option<&mut Box<dyn NetBackend>>,
    ) -> Result<Pause, Fault> {
        for _ in 0..FRAMES_PER_TURN {
            let Some(chain) = self.queue.pop(turn.memory)? else { return Ok(Pause::Drained) };
            let bytes = chain.readable_len().saturating_sub(HEADER_LEN) as u64;
            // What is too long to be a frame goes on, to be dropped.
            let frame = HeadRules::check_len(chain.readable_len()).is_ok();
            if let Some(wait) = held(limiter, turn, bytes).filter(|_| frame) {
                self.queue.put_back(chain);
                return Ok(Pause::Limit(wait));
            }
            let index = self.queue.index();
            let fate = self.send(&chain, turn, backend.as_deref_mut());
            let fate = fate.map_err(|source| Fault::Chain { index, source })?;
            count(&fate, turn, bytes);
            self.queue.complete(turn.memory, chain, 0)?;
            self.finished.add(bytes);
            if matches!(fate, Fate::Sent) {
                limiter.take(bytes);
            }
            if matches!(fate, Fate::Gone) {
                return Ok(Pause::Gone);
            }
        }
        Ok(Pause::Share)
    }

    fn send(
        &self,
        chain: &Chain,
        turn: &Turn<'_>,
        backend: Option<&mut Box<dyn NetBackend>>,
    ) -> Result<Fate, ChainFault> {
        let len = chain.readable_len();
        if let Err(fault) = HeadRules::check_len(len) {
            return Ok(refused(turn.name, &fault));
        }
        let mut head = [0; HEAD_LEN];
        chain.read(turn.memory, 0, &mut head)?;
        let head = match self.rules.check(head, len) {
            Ok(head) => head,
            Err(fault) => return Ok(refused(turn.name, &fault)),
        };
        let Some(backend) = backend else { return Ok(Fate::NoLink) };
        let rest = chain.readable_slices(turn.memory, HEAD_LEN, len.saturating_sub(HEAD_LEN));
        let rest = rest.collect::<Result<Vec<_>, _>>()?;
        Ok(backend.send(&head, &rest).map_or_else(|error| failed(turn.name, &error), |()| Fate::Sent))
    }
}

fn refused(name: &str, fault: &HeadFault) -> Fate {
    warn_limited!("device {name}: a frame of the guest is dropped: {fault}");
    if matches!(fault, HeadFault::Source(_)) { Fate::WrongSource } else { Fate::Malformed }
}

fn failed(name: &str, error: &std::io::Error) -> Fate {
    match trouble_of_send(error) {
        Trouble::Moment => Fate::Full,
        Trouble::Frame => {
            warn_limited!("device {name}: the host refused a frame of the guest: {error}");
            Fate::Malformed
        }
        Trouble::Gone => Fate::Gone,
    }
}

fn count(fate: &Fate, turn: &Turn<'_>, bytes: u64) {
    let counters = turn.counters;
    match fate {
        Fate::Sent => {
            counters.sent_frames.add(1);
            counters.sent_bytes.add(bytes);
        }
        Fate::WrongSource => counters.dropped_source.add(1),
        Fate::Malformed => counters.dropped_malformed.add(1),
        Fate::Full => counters.dropped_full.add(1),
        Fate::NoLink | Fate::Gone => counters.dropped_link.add(1),
    }
}
