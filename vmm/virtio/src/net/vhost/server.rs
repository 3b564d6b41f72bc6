//! The thread beside the kernel's: it answers the control queue, and sees the interface go and a ring break.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::{
    epoll::EventSet,
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use super::{Kept, VhostPair, VhostQueues, VhostRing};
use crate::{
    device::{Activation, ActiveQueue, Interrupt},
    events::Events,
    fault::Fault,
    log_limit::warn_limited,
    net::{
        CHAIN_BYTES_MAX,
        backend::{NetBackend, Offloads, set_offloads, share_out},
        control::ControlQueue,
        features::{of_the_queues, offloads},
        server::Shared,
    },
    served_queue::ServedQueue,
    worker::Serve,
};

const STOP: u64 = 0;
const CONTROL_KICK: u64 = 1;
const BROKEN: u64 = 2;
const TAP: u64 = 3;

/// All that the thread owns.
pub(in crate::net) struct VhostServer {
    shared: Arc<Shared>,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    backends: Vec<Box<dyn NetBackend>>,
    vhosts: Vec<Box<dyn VhostPair>>,
    /// What the kernel serves: of each pair the receive queue, then the transmit queue.
    queues: Vec<ActiveQueue>,
    control: Option<ControlQueue>,
    broken: EventFd,
    events: Events,
    /// Queue pairs that the driver uses: the first ones.
    joined: u16,
}

impl VhostServer {
    /// Lets the kernel serve. On failure it serves nothing.
    pub(in crate::net) fn begin(kept: Kept, shared: Arc<Shared>, with: Activation) -> io::Result<Self> {
        let Kept { backends, vhosts } = kept;
        let mut queues = with.queues;
        let control = queues.split_off(queues.len().min(2 * vhosts.len())).into_iter().next();
        let index = u16::try_from(queues.len()).unwrap_or(u16::MAX);
        let pairs = u16::try_from(vhosts.len()).unwrap_or(u16::MAX);
        let control = control.map(|queue| ControlQueue::new(ServedQueue::new(index, queue, CHAIN_BYTES_MAX), pairs));
        let mut server = Self {
            shared,
            memory: with.memory,
            interrupt: with.interrupt,
            backends,
            vhosts,
            queues,
            control,
            broken: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            events: Events::new()?,
            joined: 1,
        };
        let started = server.start(with.features);
        if started.is_err() {
            server.stop_vhosts();
        }
        started.map(|()| server)
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        let call = self.interrupt.queue_eventfd()?;
        self.set_offloads(offloads(features));
        share_out(&self.shared.name, &mut self.backends, self.joined);
        let pairs = self.queues.chunks_exact(2).zip(&mut self.vhosts).zip(&self.backends);
        for ((queues, vhost), backend) in pairs {
            let [receive, transmit] = queues else { continue };
            vhost.start(&VhostQueues {
                memory: &self.memory,
                features: of_the_queues(features),
                rings: [VhostRing::of(receive), VhostRing::of(transmit)],
                call: &call,
                broken: &self.broken,
                tap: backend.as_raw_fd(),
            })?;
        }
        Ok(())
    }

    /// What is for the next life, and the queues' positions.
    pub(in crate::net) fn into_parts(mut self) -> (Kept, Vec<QueueState>) {
        let positions = self.stop_vhosts();
        self.set_offloads(Offloads::default());
        let control = self.control.iter().map(ControlQueue::state);
        let queues = self.queues.into_iter().zip(positions);
        let states = queues.map(|(queue, position)| queue.left_at(position, &self.memory)).chain(control).collect();
        (Kept { backends: self.backends, vhosts: self.vhosts }, states)
    }

    /// How far each queue was read, where it is known.
    fn stop_vhosts(&mut self) -> Vec<Option<u16>> {
        let stop = |vhost: &mut Box<dyn VhostPair>| match vhost.stop() {
            Ok(positions) => positions.map(Some),
            Err(error) => {
                warn_limited!("device {}: vhost-net does not stop: {error}", self.shared.name);
                [None; 2]
            }
        };
        self.vhosts.iter_mut().flat_map(stop).collect()
    }

    fn watch_all(&mut self, stop: &EventFd) -> io::Result<()> {
        self.events.watch(stop, EventSet::IN, STOP)?;
        self.events.watch(&self.broken, EventSet::IN, BROKEN)?;
        if let Some(control) = &mut self.control {
            self.events.watch(control.queue().kick(), EventSet::IN, CONTROL_KICK)?;
        }
        // Its end is reported unasked, and its frames are not for us. The first queue is always joined.
        self.backends.first().map_or(Ok(()), |tap| self.events.watch(&tap.as_raw_fd(), EventSet::empty(), TAP))
    }

    /// Answers at most one ring full of commands. True when there is more to do at once.
    fn control_turn(&mut self) -> Result<bool, Fault> {
        let Some(control) = &mut self.control else { return Ok(false) };
        let before = self.joined;
        control.queue().clear_kick();
        let more = control.turn(&self.memory, &mut self.joined)?;
        let queue = control.queue();
        if queue.signal_due(&self.memory)? {
            self.interrupt.signal_queue(queue.index());
        }
        if self.joined != before {
            share_out(&self.shared.name, &mut self.backends, self.joined);
        }
        Ok(more)
    }

    /// The guest sees its link go down. What it still sends stays with the kernel or is dropped, and what the kernel says of it is no fault of the driver's.
    fn lose_link(&mut self) {
        let Some(tap) = self.backends.first() else { return };
        self.events.forget(&tap.as_raw_fd());
        self.events.forget(&self.broken);
        self.shared.take_link_down(&*self.interrupt);
    }

    /// The kernel complains of a queue. It does so, too, of frames for a tap that is gone, maybe before that is seen here.
    fn complaint(&mut self) -> Result<(), Fault> {
        let mut now = self.events.wait(Some(Duration::ZERO)).map_err(Fault::io("epoll_wait"))?;
        if now.any(|event| event.data() == TAP) || !self.shared.link_is_up.load(Ordering::SeqCst) {
            self.lose_link();
            return Ok(());
        }
        Err(Fault::Vhost)
    }

    /// Of a tap that is gone it makes no difference.
    fn set_offloads(&mut self, offloads: Offloads) {
        if let Err(error) = set_offloads(&mut self.backends, offloads) {
            warn_limited!("device {}: its tap does not take the driver's offloads: {error}", self.shared.name);
        }
    }
}

impl Serve for VhostServer {
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
        self.watch_all(stop).map_err(Fault::io("epoll"))?;
        // Commands may have been made available before the device was active.
        let mut more = true;
        loop {
            for event in self.events.wait(more.then_some(Duration::ZERO)).map_err(Fault::io("epoll_wait"))? {
                match event.data() {
                    // Looked after below.
                    CONTROL_KICK => more = true,
                    BROKEN => self.complaint()?,
                    TAP => self.lose_link(),
                    _ => return Ok(()),
                }
            }
            if more {
                more = self.control_turn()?;
            }
        }
    }
}
