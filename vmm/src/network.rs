//! The machine's network devices: from taps to devices, and what is kept of them while the machine runs.

use std::{io, os::fd::OwnedFd, sync::Arc};

use vmm_control::{Bucket, NetLimit, NetReport, NetSpec};
use vmm_virtio::{Net, NetBackend, NetConfig, NetCounters, NetLink, RateLimit};

use crate::tap::Tap;

/// The device of `spec` over its taps.
pub fn device(name: &str, spec: &NetSpec, taps: Vec<OwnedFd>) -> io::Result<Net> {
    let taps = taps.into_iter().map(Tap::new).collect::<io::Result<Vec<_>>>()?;
    let limits = spec.rate.unwrap_or_default();
    let config = NetConfig {
        name: name.to_owned(),
        mac: spec.mac,
        mtu: spec.mtu,
        any_source_mac: spec.any_source_mac,
        pairs: u16::try_from(taps.len()).expect("at most TAPS_MAX").max(1),
        // A device that waits cannot know what its tap will be able to do.
        udp_segmentation: !taps.is_empty() && taps.iter().all(Tap::udp_segmentation),
        transmit_limit: limit(&limits.transmit),
        receive_limit: limit(&limits.receive),
    };
    Net::new(config, backends(taps))
}

fn backends(taps: Vec<Tap>) -> Vec<Box<dyn NetBackend>> {
    taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetBackend>).collect()
}

fn limit(spec: &NetLimit) -> RateLimit {
    let bucket = |Bucket { per_second, burst }| vmm_virtio::Bucket { per_second, burst };
    RateLimit { bytes: spec.bytes.map(bucket), frames: spec.frames.map(bucket) }
}

/// The handles of a device that the machine's bus owns.
pub struct Network {
    link: NetLink,
    counters: Arc<NetCounters>,
}

impl Network {
    /// Those of `device`.
    pub fn of(device: &Net) -> Self {
        Self { link: device.link(), counters: device.counters() }
    }

    /// Joins it to an interface that came late.
    pub fn attach(&self, mac: [u8; 6], taps: Vec<OwnedFd>) -> io::Result<()> {
        let taps = taps.into_iter().map(Tap::new).collect::<io::Result<Vec<_>>>()?;
        self.link.attach(mac, backends(taps))
    }

    /// Takes its interface away.
    pub fn detach(&self) {
        self.link.detach();
    }

    /// The figures of this moment.
    pub fn report(&self) -> NetReport {
        let counters = &self.counters;
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
            kicks: counters.kicks.value(),
            interrupts: counters.interrupts.value(),
        }
    }
}
