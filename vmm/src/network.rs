//! The machine's network devices: from taps to devices, and their figures.

use std::{io, os::fd::OwnedFd, sync::Arc};

use vmm_control::{Bucket, InterfaceSpec, NetLimit, NetReport};
use vmm_virtio::{Net, NetBackend, NetConfig, NetCounters, RateLimit, VhostPair};

use crate::{tap::Tap, vhost::Vhost};

/// The host's ends of a device.
#[derive(Debug)]
pub struct HostEnds {
    /// One tap a queue pair.
    pub taps: Vec<OwnedFd>,
    /// One vhost-net a tap, or none.
    pub vhosts: Vec<OwnedFd>,
}

/// The device of an interface.
pub fn device(name: &str, interface: &InterfaceSpec, ends: HostEnds) -> io::Result<Net> {
    let taps = ends.taps.into_iter().map(Tap::new).collect::<io::Result<Vec<_>>>()?;
    let limits = interface.rate.unwrap_or_default();
    let config = NetConfig {
        name: name.to_owned(),
        mac: interface.mac,
        mtu: interface.mtu,
        any_source_mac: interface.any_source_mac,
        pairs: u16::try_from(taps.len()).expect("at most TAPS_MAX"),
        udp_segmentation: taps.iter().all(Tap::udp_segmentation),
        transmit_limit: limit(&limits.transmit),
        receive_limit: limit(&limits.receive),
    };
    if ends.vhosts.is_empty() {
        return Net::new(config, backends(taps));
    }
    let vhosts = ends.vhosts.into_iter().map(|fd| Ok(Box::new(Vhost::new(fd)?) as Box<dyn VhostPair>));
    Net::over_vhost(config, backends(taps), vhosts.collect::<io::Result<_>>()?)
}

fn backends(taps: Vec<Tap>) -> Vec<Box<dyn NetBackend>> {
    taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetBackend>).collect()
}

fn limit(spec: &NetLimit) -> RateLimit {
    let bucket = |Bucket { per_second, burst }| vmm_virtio::Bucket { per_second, burst };
    RateLimit { bytes: spec.bytes.map(bucket), frames: spec.frames.map(bucket) }
}

/// The figures of a device that the machine's bus owns.
pub struct Counters(Arc<NetCounters>);

impl Counters {
    /// Those of `device`.
    pub fn of(device: &Net) -> Self {
        Self(device.counters())
    }

    /// The figures of this moment.
    pub fn report(&self) -> NetReport {
        let counters = &self.0;
        NetReport {
            sent_frames: counters.sent_frames.value(),
            sent_bytes: counters.sent_bytes.value(),
            received_frames: counters.received_frames.value(),
            received_bytes: counters.received_bytes.value(),
            dropped_source: counters.dropped_source.value(),
            dropped_malformed: counters.dropped_malformed.value(),
            dropped_full: counters.dropped_full.value(),
            dropped_link: counters.dropped_link.value(),
            dropped_unfit: counters.dropped_unfit.value(),
            starved: counters.starved.value(),
            held_by_rate: counters.held_by_rate.value(),
            wakeups: counters.wakeups.value(),
            kicks: counters.kicks.value(),
            interrupts: counters.interrupts.value(),
        }
    }
}
