//! The pod's network on the host: what a plugin put into the pod's network namespace, joined to the machine.
//!
//! ```text
//!  the pod's network namespace                              the VMM
//!   eth0 <── whatever comes in at one ──> katars0 ──queues──> virtio-net ══> eth0 in the guest
//!     └ veth pair ─> bridge, route ...                        same address, MTU, IP addresses, routes, rules
//! ```
//! A frame that arrives at the plugin's interface is sent out at the tap and so reaches the VMM; one that the VMM writes arrives at the tap and is sent out at
//! the interface ([`redirect`]). No bridge, no address translation, no routing: the guest stands where a container's process would.
//! The interface keeps its addresses, so that who looks there finds what it expects; nothing arrives at them any more.
//!
//! - [`namespace`] enters the namespace for a moment; [`picture`] reads all that it has; [`plan`] decides; [`tap`] and [`attach`] act.
//! - [`vhost`] hands the frames to the host's kernel, where the operator wishes that.
//! - [`wording`] says in the guest's words what the kernel says.
//! - [`undo`] takes away what outlives the taps.
//! - [`watch`] tells the guest of what changes later.
//! - [`loopback`] leads connections to the namespace's loopback to the guest's.
//!
//! # What is left when everybody dies
//! A tap goes with its last descriptor, which the VMM holds, and takes its own filter along. What stays is the filter at the plugin's interface. It is in the
//! record before it is made, and goes with the interface at the latest.
//!
//! # The VMM is inside
//! It is born in the pod's namespace, as a container's process would be: who goes there by the task's pid (`nsenter -t`, `ctr run --cni`, a hook) arrives where the
//! pod's network is, and the VMM has no way to the host's. A pod for which nobody made a namespace has one of its own, in which interfaces may appear.
//!
//! # Costs
//! A dozen questions to the kernel about one namespace; nothing looks at the host's own, so the number of pods does not matter.

mod loopback;
mod namespace;
mod picture;
mod plan;
#[cfg(test)]
mod pod_stories;
mod redirect;
mod rules;
#[cfg(test)]
pub(crate) mod stage;
mod tap;
#[cfg(test)]
mod tests;
mod undo;
mod vhost;
mod watch;
mod wording;

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use agent_protocol::messages as m;
use netlink::{
    NetlinkError, Socket,
    core::{NLM_F_CREATE, NLM_F_EXCL},
    packet::RouteNetlinkMessage,
};

pub(crate) use self::{
    loopback::Forwarding,
    namespace::Namespace,
    rules::interface,
    undo::{Joined, Late},
    watch::{Waiting, Watch, Watching},
};
use self::{
    picture::Picture,
    plan::{Joint, Plan},
    tap::{QUEUES_MAX, Tap},
};
use vmm_control::NETWORKS_MAX;

use crate::{
    ErrorKind, InterfaceRules, PodError, PodNetwork,
    record::{Entry, Record},
};

/// Places for interfaces that come while the pod runs: one is usual (`ctr run --cni`, a runtime's hook). An empty one costs a boot three register reads.
const PLACES_SPARE: usize = 2;

/// A network device of the machine.
#[derive(Debug)]
pub(crate) struct Device {
    /// Its address.
    pub mac: [u8; 6],
    /// Its largest packet.
    pub mtu: u16,
    /// Its queues on the host.
    pub taps: Vec<OwnedFd>,
    /// One vhost-net a queue, if the host's kernel is to move the frames.
    pub vhosts: Vec<OwnedFd>,
}

/// What each device of a pod is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Making {
    /// Queues of each device.
    pub queues: usize,
    /// Where vhost-net comes from, if it is wished for.
    pub vhost_net: Option<&'static Path>,
    /// Its frames may come from any hardware address.
    pub any_source: bool,
}

impl Making {
    /// By the operator's rules, for a machine of so many vCPUs.
    pub(crate) fn of(rules: InterfaceRules, vcpus: u8) -> Self {
        Self {
            queues: usize::from(vcpus).clamp(1, QUEUES_MAX),
            vhost_net: rules.vhost.then_some(Path::new(vhost::DEVICE)),
            any_source: rules.any_source,
        }
    }
}

/// A network that is joined to a machine yet to come.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    /// What the guest is told.
    pub network: m::Network,
    /// What the machine gets, in the same order.
    pub devices: Vec<Device>,
    /// How many more devices may come to the machine.
    pub places: u8,
    /// What is to be undone, if anything is.
    pub joined: Option<Joined>,
    /// Where the VMM belongs: who looks at the pod's network by its pid finds it.
    pub namespace: Option<Arc<Namespace>>,
    /// Hears of what changes there.
    pub watch: Option<Watch>,
}

/// Joins the pod's network to a machine of so many vCPUs. What will have to be undone is recorded before it is done; on failure it is undone.
///
/// # Errors
/// There is no such namespace, or an interface of it cannot be joined.
pub(crate) fn attach(
    network: &PodNetwork,
    vcpus: u8,
    rules: InterfaceRules,
    record: &Record,
) -> Result<Attached, PodError> {
    let making = Making::of(rules, vcpus);
    match network {
        PodNetwork::None => Ok(Attached::default()),
        PodNetwork::Own => join_all(Namespace::make()?, making, record),
        PodNetwork::Namespace(path) => join_all(Namespace::open(path)?, making, record),
    }
}

fn join_all(namespace: Namespace, making: Making, record: &Record) -> Result<Attached, PodError> {
    let namespace = Arc::new(namespace);
    namespace.within(|| {
        let listener = watch::listen().map_err(unread)?;
        let mut socket = Socket::open().map_err(unread)?;
        let picture = Picture::read(&mut socket).map_err(unread)?;
        picture.unsaid.iter().for_each(|what| log::warn!("left out of the pod's network: {what}"));
        let Plan { joints, network } = Plan::of(picture)?;
        let (joined, devices) = join_planned(&mut socket, &namespace, &joints, (making, record))?;
        let places = PLACES_SPARE.min(NETWORKS_MAX - joints.len());
        let in_places = joints.into_iter().map(Some).chain(std::iter::repeat_n(None, places)).collect();
        let watch = Watch::new((listener, socket), Arc::clone(&namespace), record.clone(), in_places, network.clone());
        Ok(Attached {
            network,
            devices,
            places: u8::try_from(places).expect("few"),
            joined,
            namespace: Some(Arc::clone(&namespace)),
            watch: Some(watch),
        })
    })
}

fn join_planned(
    socket: &mut Socket,
    namespace: &Namespace,
    joints: &[Joint],
    (making, record): (Making, &Record),
) -> Result<(Option<Joined>, Vec<Device>), PodError> {
    if joints.is_empty() {
        return Ok((None, Vec::new()));
    }
    let joined = Joined::of(namespace, joints.iter().map(|joint| joint.trace.clone()).collect());
    record.write(&Entry::Network(joined.clone())).map_err(|e| PodError::host("cannot record the pod's network", e))?;
    let made: Result<Vec<Device>, PodError> = joints.iter().map(|joint| join(socket, joint, making)).collect();
    match made {
        Ok(devices) => Ok((Some(joined), devices)),
        Err(error) => {
            let left = joined.undo_here(socket).err().map(|error| error.to_string());
            Err(error.with_tail("left behind", &left.unwrap_or_default()))
        }
    }
}

/// Makes a tap for an interface and sends the frames of each to the other. The tap first: nothing is taken from the interface before it can go somewhere.
fn join(socket: &mut Socket, joint: &Joint, making: Making) -> Result<Device, PodError> {
    let tap = Tap::make(socket, making.queues, joint.mtu.into())?;
    let vhosts = making.vhost_net.map_or(Ok(Vec::new()), |device| vhost::open(device, making.queues))?;
    // The VMM checks the source of what passes through it, and nothing of it passes through there with vhost-net.
    let source = (!vhosts.is_empty() && !making.any_source).then_some(joint.mac);
    connect(socket, joint, tap.index, source).map_err(|error| unjoined(&joint.trace.name, &error))?;
    Ok(Device { mac: joint.mac, mtu: joint.mtu, taps: tap.queues, vhosts })
}

fn connect(socket: &mut Socket, joint: &Joint, tap: u32, source: Option<[u8; 6]>) -> netlink::Result<()> {
    let interface = joint.trace.index;
    let make = NLM_F_CREATE | NLM_F_EXCL;
    socket.change(RouteNetlinkMessage::NewQueueDiscipline(redirect::ingress(tap)), make)?;
    if joint.trace.own_ingress {
        socket.change(RouteNetlinkMessage::NewQueueDiscipline(redirect::ingress(interface)), make)?;
    }
    let out = match source {
        Some(mac) => redirect::redirect_from(tap, interface, mac).to_vec(),
        None => vec![redirect::redirect(tap, interface)],
    };
    let filters = out.into_iter().chain([redirect::redirect(interface, tap)]);
    filters.map(RouteNetlinkMessage::NewTrafficFilter).try_for_each(|filter| socket.change(filter, make))
}

fn unread(error: NetlinkError) -> PodError {
    PodError::new(ErrorKind::Internal, format!("cannot read the pod's network namespace: {error}"))
}

fn unjoined(name: &str, error: &NetlinkError) -> PodError {
    let sentence = format!(
        "cannot join the interface {name} to the machine: {error}; the host's kernel needs sch_ingress, cls_u32, act_mirred and act_gact, and we CAP_NET_ADMIN"
    );
    PodError::new(ErrorKind::Internal, sentence)
}
