//! Devices that answer chain by chain: block, entropy, console.
//!
//! What such a device is lies in its [`Answer`]; the loop around it and its two lives are the same for all and are here.

use std::{io, sync::Arc, time::Duration};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use crate::{
    chain::Chain,
    device::{ActivateError, Activation, Interrupt},
    events::Events,
    fault::Fault,
    served_queue::ServedQueue,
    worker::{Serve, Worker},
};

/// A device that answers each chain by itself, and keeps none.
pub(crate) trait Answer: Send + 'static {
    /// Most bytes that the buffers of one chain may have together.
    const CHAIN_BYTES_MAX: u64;
    /// Queues that are not served; their chains stay where they are.
    const IDLE_QUEUES: &'static [u16] = &[];

    /// Features that both sides agreed on, before the first chain.
    fn agreed(&mut self, _features: u64) {}

    /// Answers one chain of queue `index`; returns how many bytes were written into it.
    fn answer(&mut self, index: u16, chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, Fault>;
}

/// The two lives of such a device, and the lack of any when its thread was lost.
pub(crate) enum Life<A: Answer> {
    Stopped(A),
    Serving(Worker<Answering<A>>),
    Lost,
}

impl<A: Answer> Life<A> {
    /// Moves the device and its queues into a thread.
    pub(crate) fn start(&mut self, name: &str, with: Activation) -> Result<(), ActivateError> {
        let Self::Stopped(mut device) = std::mem::replace(self, Self::Lost) else {
            let source = io::Error::other("the device serves already, or its thread was lost");
            return Err(ActivateError::Thread { device: name.to_owned(), source });
        };
        device.agreed(with.features);
        let queues = (0u16..).zip(with.queues);
        let serving = Answering {
            device,
            queues: queues.map(|(index, queue)| ServedQueue::new(index, queue, A::CHAIN_BYTES_MAX)).collect(),
            memory: with.memory,
            interrupt: with.interrupt.clone(),
        };
        *self = Self::Serving(Worker::spawn(name, serving, with.interrupt)?);
        Ok(())
    }

    /// Moves them out again.
    pub(crate) fn stop(&mut self) -> Vec<QueueState> {
        match std::mem::replace(self, Self::Lost) {
            Self::Serving(worker) => match worker.stop() {
                Some(serving) => {
                    let states = serving.queues.iter().map(ServedQueue::state).collect();
                    *self = Self::Stopped(serving.device);
                    states
                }
                None => Vec::new(),
            },
            other => {
                *self = other;
                Vec::new()
            }
        }
    }
}

/// What the thread of such a device owns.
pub(crate) struct Answering<A> {
    device: A,
    memory: GuestMemoryMmap,
    queues: Vec<ServedQueue>,
    interrupt: Arc<dyn Interrupt>,
}

/// Token of the stop eventfd; a queue's token is its index.
const STOP: u64 = u64::MAX;

enum Event {
    Stop,
    Kick(usize),
}

fn event_of(token: u64) -> Event {
    if token == STOP { Event::Stop } else { Event::Kick(usize::try_from(token).unwrap_or(usize::MAX)) }
}

impl<A: Answer> Serve for Answering<A> {
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
        let events = self.watch(stop).map_err(Fault::io("epoll"))?;
        // Chains may have been made available before the device was active, or by an earlier life of it.
        let mut more = true;
        loop {
            let timeout = more.then_some(Duration::ZERO);
            for event in events.wait(timeout).map_err(Fault::io("epoll_wait"))? {
                match event_of(event.data()) {
                    Event::Stop => return Ok(()),
                    Event::Kick(index) => self.queues.iter().skip(index).take(1).for_each(ServedQueue::clear_kick),
                }
            }
            more = self.answer_all()?;
        }
    }
}

impl<A: Answer> Answering<A> {
    fn watch(&self, stop: &EventFd) -> io::Result<Events> {
        let events = Events::new()?;
        events.watch(stop, EventSet::IN, STOP)?;
        for queue in self.queues.iter().filter(|queue| !A::IDLE_QUEUES.contains(&queue.index())) {
            events.watch(queue.kick(), EventSet::IN, u64::from(queue.index()))?;
        }
        Ok(events)
    }

    /// Answers at most one ring full per queue, so that a driver that never pauses cannot keep the thread from its stop event.
    /// True when there is more to do.
    fn answer_all(&mut self) -> Result<bool, Fault> {
        let mut more = false;
        for queue in self.queues.iter_mut().filter(|queue| !A::IDLE_QUEUES.contains(&queue.index())) {
            queue.refuse_kicks(&self.memory)?;
            for _ in 0..queue.size() {
                let Some(chain) = queue.pop(&self.memory)? else { break };
                let written = self.device.answer(queue.index(), &chain, &self.memory)?;
                queue.complete(&self.memory, chain, written)?;
            }
            if queue.signal_due(&self.memory)? {
                self.interrupt.signal_queue(queue.index());
            }
            more |= queue.want_kicks(&self.memory)?;
        }
        Ok(more)
    }
}
