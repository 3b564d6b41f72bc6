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
//! - [`wording`] says in the guest's words what the kernel says.
//! - [`undo`] takes away what outlives the taps.
//! - [`watch`] tells the guest of what changes later.
//! - [`loopback`] leads connections to the namespace's loopback to the guest's.
//!
//! # What is left when everybody dies
//! A tap goes with its last descriptor, which the VMM holds, and takes its own filter along. What stays is the filter at the plugin's interface. It is in the
//! record before it is made, and goes with the interface at the latest.
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
#[cfg(test)]
pub(crate) mod stage;
mod tap;
#[cfg(test)]
mod tests;
mod undo;
mod watch;
mod wording;

use std::{os::fd::OwnedFd, path::Path};

use agent_protocol::messages as m;
use netlink::{
    NetlinkError, Socket,
    core::{NLM_F_CREATE, NLM_F_EXCL},
    packet::RouteNetlinkMessage,
};

pub(crate) use self::{
    loopback::Forwarding,
    undo::Joined,
    watch::{Watch, Watching},
};
use self::{
    namespace::Namespace,
    picture::Picture,
    plan::{Joint, Plan},
    tap::{QUEUES_MAX, Tap},
};
use crate::{
    ErrorKind, PodError,
    record::{Entry, Record},
};

/// A network device of the machine.
#[derive(Debug)]
pub(crate) struct Device {
    /// Its address.
    pub mac: [u8; 6],
    /// Its largest packet.
    pub mtu: u16,
    /// Its queues on the host.
    pub taps: Vec<OwnedFd>,
}

/// A network that is joined to a machine yet to come.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    /// What the guest is told.
    pub network: m::Network,
    /// What the machine gets, in the same order.
    pub devices: Vec<Device>,
    /// What is to be undone, if anything is.
    pub joined: Option<Joined>,
    /// Hears of what changes there.
    pub watch: Option<Watch>,
}

/// Joins the namespace at `path` to a machine of so many vCPUs. What will have to be undone is recorded before it is done; on failure it is undone.
///
/// # Errors
/// There is no such namespace, or an interface of it cannot be joined.
pub(crate) fn attach(path: &Path, vcpus: u8, record: &Record) -> Result<Attached, PodError> {
    let namespace = Namespace::open(path)?;
    namespace.within(|| {
        let listener = watch::listen().map_err(unread)?;
        let mut socket = Socket::open().map_err(unread)?;
        let picture = Picture::read(&mut socket).map_err(unread)?;
        picture.unsaid.iter().for_each(|what| log::warn!("left out of the pod's network: {what}"));
        let Plan { joints, network } = Plan::of(picture)?;
        if joints.is_empty() {
            return Ok(Attached { network, ..Attached::default() });
        }
        let traces = joints.iter().map(|joint| joint.trace.clone()).collect();
        let joined = Joined { namespace: namespace.path().to_owned(), identity: namespace.identity(), traces };
        record
            .write(&Entry::Network(joined.clone()))
            .map_err(|e| PodError::host("cannot record the pod's network", e))?;
        let queues = usize::from(vcpus).clamp(1, QUEUES_MAX);
        let made: Result<Vec<Device>, PodError> = joints.iter().map(|joint| join(&mut socket, joint, queues)).collect();
        match made {
            Ok(devices) => {
                let watch = Some(Watch::new(listener, socket, joints, network.clone()));
                Ok(Attached { network, devices, joined: Some(joined), watch })
            }
            Err(error) => {
                let left = joined.undo_here(&mut socket).err().map(|error| error.to_string());
                Err(error.with_tail("left behind", &left.unwrap_or_default()))
            }
        }
    })
}

/// Makes a tap for an interface and sends the frames of each to the other. The tap first: nothing is taken from the interface before it can go somewhere.
fn join(socket: &mut Socket, joint: &Joint, queues: usize) -> Result<Device, PodError> {
    let tap = Tap::make(socket, queues, joint.mtu.into())?;
    connect(socket, joint, tap.index).map_err(|error| unjoined(&joint.trace.name, &error))?;
    Ok(Device { mac: joint.mac, mtu: joint.mtu, taps: tap.queues })
}

fn connect(socket: &mut Socket, joint: &Joint, tap: u32) -> netlink::Result<()> {
    let interface = joint.trace.index;
    let make = NLM_F_CREATE | NLM_F_EXCL;
    socket.change(RouteNetlinkMessage::NewQueueDiscipline(redirect::ingress(tap)), make)?;
    if joint.trace.own_ingress {
        socket.change(RouteNetlinkMessage::NewQueueDiscipline(redirect::ingress(interface)), make)?;
    }
    socket.change(RouteNetlinkMessage::NewTrafficFilter(redirect::redirect(tap, interface)), make)?;
    socket.change(RouteNetlinkMessage::NewTrafficFilter(redirect::redirect(interface, tap)), make)
}

fn unread(error: NetlinkError) -> PodError {
    PodError::new(ErrorKind::Internal, format!("cannot read the pod's network namespace: {error}"))
}

fn unjoined(name: &str, error: &NetlinkError) -> PodError {
    let sentence = format!(
        "cannot join the interface {name} to the machine: {error}; the host's kernel needs sch_ingress, cls_u32 and act_mirred, and we CAP_NET_ADMIN"
    );
    PodError::new(ErrorKind::Internal, sentence)
}
