//! The network device, section 5.1: Ethernet frames between the guest and taps of the host.
//!
//! ```text
//!              server (one thread, one epoll)
//!   guest ==tx queue==> transmit: head copied and checked ==> backend (tap)      one pair of queues, or several
//!         <==rx queue== receive:  buffers collected ahead <==
//!         <==ctrl queue=> control: how many pairs
//! ```
//! # What is trusted
//! Nothing that the guest sends. The header that tells the host's kernel how to finish a frame, and the source that a frame claims, are
//! copied once, checked, and sent as that copy ([`header`]). The host's kernel checks the rest as it does for any tap.
//!
//! # Who waits for whom
//! Nobody. A frame that the host does not take is dropped, as on a wire. A frame that the guest has no buffers for stays in the tap's queue,
//! whose length is the host's limit. A limit of the device's rate holds frames back where they are, without work meanwhile.
//!
//! # The link
//! A tap whose interface is removed takes the link down: a configuration interrupt, and no end of the machine. What is sent from then on is dropped.
//! An interface that comes is another device; the machine has places for those.
//!
//! # vhost-net
//! Where the operator wishes it, the host's kernel moves the frames instead of the server ([`vhost`]). Nothing of what passes is then seen here, and what is sent
//! after the link is down may stay in the queue instead.

mod backend;
mod control;
mod counters;
mod features;
mod header;
mod rate;
mod receive;
mod server;
mod token;
mod transmit;
mod turn;
mod vhost;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_S_LINK_UP};
use virtio_queue::QueueState;

pub use backend::{NetBackend, Offloads};
pub use counters::{Counter, NetCounters};
pub use rate::{Bucket, RateLimit};
pub use vhost::{VhostPair, VhostQueues, VhostRing};

use crate::{
    config::read_bytes,
    device::{ActivateError, Activation, ActiveQueue, DeviceTraits, VirtioDevice},
    events::Events,
    finished::HeldNews,
    served_queue::ServedQueue,
    timer::Timer,
    worker::Worker,
};
use control::ControlQueue;
use features::{has, largest_received, offered, offloads, served_by_vhost};
use header::HeadRules;
use rate::Limiter;
use receive::Receiver;
use server::{Kept, Pair, Server, Shared};
use transmit::Transmitter;
use turn::Limits;
use vhost::VhostServer;

/// Device type of the network device.
const DEVICE_TYPE: u32 = 1;
/// Size of receive and transmit queues. The guest keeps a receive queue full of buffers, so its size costs guest memory.
const QUEUE_SIZE: u16 = 256;
/// Size of the control queue: Linux sends one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 16;
/// Most bytes of one chain, far more than a frame: Linux without mergeable buffers offers 17 pages.
const CHAIN_BYTES_MAX: u64 = 1024 * 1024;
/// Address, status, number of pairs and MTU.
const CONFIG_LEN: usize = 12;

/// What a network device is made from.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// For threads and logs, at most 12 bytes.
    pub name: String,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, Ethernet header not counted.
    pub mtu: u16,
    /// Let the guest send from other addresses.
    pub any_source_mac: bool,
    /// Number of queue pairs, at least one.
    pub pairs: u16,
    /// Whether the host's taps know segmentation of UDP.
    pub udp_segmentation: bool,
    /// Limit on what the guest sends.
    pub transmit_limit: RateLimit,
    /// Limit on what the guest gets.
    pub receive_limit: RateLimit,
}

/// A network device.
pub struct Net {
    config: NetConfig,
    /// What of the ring the server knows.
    features: u64,
    shared: Arc<Shared>,
    life: Life,
}

enum Life {
    Stopped(Idle),
    Serving(Worker<Server>),
    ServedByVhost(Worker<VhostServer>),
    Lost,
}

/// What serves the queues in the device's next life.
enum Idle {
    Server(Box<Kept>),
    Vhost(vhost::Kept),
}

impl Net {
    /// A device over `backends`, one a queue pair.
    pub fn new(config: NetConfig, backends: Vec<Box<dyn NetBackend>>) -> io::Result<Self> {
        let timer = Timer::new()?;
        let now = timer.now_nanos();
        let limits = Limits {
            transmit: Limiter::new(config.transmit_limit, now),
            receive: Limiter::new(config.receive_limit, now),
            timer,
        };
        let features = offered(usize::from(config.pairs), config.udp_segmentation);
        let pairs = backends.len();
        Self::idle(config, features, &[pairs], Idle::Server(Box::new(Kept { backends, limits })))
    }

    /// A device whose queues the host's kernel serves: `vhosts` moves the frames of `backends`, in pairs. No limit and no check of the source holds in it.
    pub fn over_vhost(
        config: NetConfig,
        backends: Vec<Box<dyn NetBackend>>,
        vhosts: Vec<Box<dyn VhostPair>>,
    ) -> io::Result<Self> {
        let all = offered(usize::from(config.pairs), config.udp_segmentation);
        let features = vhosts.iter().fold(all, |features, vhost| served_by_vhost(features, vhost.features()));
        let pairs = [backends.len(), vhosts.len()];
        Self::idle(config, features, &pairs, Idle::Vhost(vhost::Kept { backends, vhosts }))
    }

    fn idle(config: NetConfig, features: u64, counts: &[usize], idle: Idle) -> io::Result<Self> {
        if let Some(other) = counts.iter().find(|count| **count != usize::from(config.pairs)) {
            let message = format!("the device has {} queue pairs, not {other}", config.pairs);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let link_is_up = AtomicBool::new(true);
        let shared = Arc::new(Shared { name: config.name.clone(), link_is_up, counters: Arc::default() });
        Ok(Self { config, features, shared, life: Life::Stopped(idle) })
    }

    /// What has passed, over all lives of the device.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.shared.counters.clone()
    }

    fn several_pairs(&self) -> bool {
        self.config.pairs > 1
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> ActivateError {
        let device = self.config.name.clone();
        move |source| ActivateError::Io { device, operation, source }
    }

    fn start(&self, idle: Idle, with: Activation) -> Result<Life, ActivateError> {
        let interrupt = with.interrupt.clone();
        let name = &self.config.name;
        match idle {
            Idle::Server(kept) => {
                let server = self.server(*kept, with)?;
                Ok(Life::Serving(Worker::spawn(name, server, interrupt)?))
            }
            Idle::Vhost(kept) => {
                let server = VhostServer::begin(kept, self.shared.clone(), with);
                let server = server.map_err(self.failed("vhost-net"))?;
                Ok(Life::ServedByVhost(Worker::spawn(name, server, interrupt)?))
            }
        }
    }

    fn server(&self, kept: Kept, with: Activation) -> Result<Server, ActivateError> {
        let mut queues = (0u16..).zip(with.queues).map(served);
        let mut pairs = Vec::new();
        for _ in 0..self.config.pairs {
            let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
                return Err(self.failed("activation")(io::Error::other("each pair has two queues")));
            };
            pairs.push(self.pair(with.features, receive, transmit));
        }
        Ok(Server {
            shared: self.shared.clone(),
            memory: with.memory,
            interrupt: with.interrupt,
            pairs,
            control: queues.next().map(|queue| ControlQueue::new(queue, self.config.pairs)),
            backends: kept.backends,
            offloads: offloads(with.features),
            events: Events::new().map_err(self.failed("epoll"))?,
            limits: kept.limits,
            held_news: HeldNews::new().map_err(self.failed("timerfd_create"))?,
            // The first alone until the driver says otherwise (section 5.1.6.5.6).
            joined: 1,
        })
    }

    fn pair(&self, features: u64, receive: ServedQueue, transmit: ServedQueue) -> Pair {
        let source = (!self.config.any_source_mac).then_some(self.config.mac);
        let largest = largest_received(features, self.config.mtu);
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        Pair::new(
            Transmitter::new(transmit, HeadRules { features, source }),
            Receiver::new(receive, mergeable, largest),
        )
    }
}

fn served((index, queue): (u16, ActiveQueue)) -> ServedQueue {
    ServedQueue::new(index, queue, CHAIN_BYTES_MAX)
}

impl VirtioDevice for Net {
    fn traits(&self) -> DeviceTraits {
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(self.config.pairs)];
        queue_sizes.extend(self.several_pairs().then_some(CONTROL_QUEUE_SIZE));
        DeviceTraits {
            device_type: DEVICE_TYPE,
            features: self.features,
            queue_sizes,
            config_len: CONFIG_LEN as u32,
            name: self.config.name.clone(),
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let status = if self.shared.link_is_up.load(Ordering::SeqCst) { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [0; CONFIG_LEN];
        let words = [status, self.config.pairs, self.config.mtu].map(u16::to_le_bytes);
        let fields = self.config.mac.iter().chain(words.iter().flatten());
        config.iter_mut().zip(fields).for_each(|(into, byte)| *into = *byte);
        read_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        let Life::Stopped(idle) = std::mem::replace(&mut self.life, Life::Lost) else {
            let source = io::Error::other("the device serves already, or its thread was lost");
            return Err(ActivateError::Thread { device: self.config.name.clone(), source });
        };
        self.life = self.start(idle, with)?;
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        let stopped = match std::mem::replace(&mut self.life, Life::Lost) {
            Life::Serving(worker) => worker.stop().map(|server| {
                let (kept, states) = server.into_parts();
                (Idle::Server(Box::new(kept)), states)
            }),
            Life::ServedByVhost(worker) => worker.stop().map(|server| {
                let (kept, states) = server.into_parts();
                (Idle::Vhost(kept), states)
            }),
            Life::Stopped(idle) => Some((idle, Vec::new())),
            Life::Lost => None,
        };
        let Some((idle, states)) = stopped else { return Vec::new() };
        self.life = Life::Stopped(idle);
        states
    }
}

#[cfg(test)]
mod tests;
