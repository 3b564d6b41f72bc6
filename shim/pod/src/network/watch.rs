//! What a plugin changes at a running pod's interfaces reaches the guest too.
//!
//! The kernel says that something changed, and is asked what there is now; the guest is told when that is not what it was told last. So any number of
//! changes at once is one message, and news that got lost are news like any other. Both sockets speak with the pod's namespace, in which they were opened,
//! and hold it until the pod ends, as the machine's taps do anyway.
//!
//! Interfaces that come later are not joined: a machine has the devices that it began with.

use agent_protocol::messages as m;
use netlink::{Group, Listener, News, Socket};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{
    picture::Picture,
    plan::{Joint, told_now},
};
use crate::{PodError, agent::Agent};

/// What the guest has something of.
const GROUPS: [Group; 8] = [
    Group::Links,
    Group::Neighbours,
    Group::Ipv4Addresses,
    Group::Ipv4Routes,
    Group::Ipv4Rules,
    Group::Ipv6Addresses,
    Group::Ipv6Routes,
    Group::Ipv6Rules,
];

/// Listens to the pod's namespace from before it was read.
#[derive(Debug)]
pub(crate) struct Watch {
    listener: Listener,
    look: Look,
}

/// What looks again: the conversation, and what the guest knows.
#[derive(Debug)]
struct Look {
    socket: Socket,
    joints: Vec<Joint>,
    told: m::Network,
}

/// A watch that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Watching(JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to listen, in the namespace of the calling thread.
pub(super) fn listen() -> netlink::Result<Listener> {
    Socket::listen(&GROUPS)
}

impl Watch {
    /// Of these interfaces the guest knows this.
    pub(super) fn new(listener: Listener, socket: Socket, joints: Vec<Joint>, told: m::Network) -> Self {
        Self { listener, look: Look { socket, joints, told } }
    }

    /// Tells the agent of what changes from now on, and of what has changed since the namespace was read.
    pub(crate) fn begin(self, agent: Agent) -> Watching {
        let Self { listener, look } = self;
        Watching(tokio::spawn(async move {
            if let Err(error) = follow(listener, look, agent).await {
                log::warn!("changes of the pod's network do not reach the guest any more: {}", error.message);
            }
        }))
    }
}

async fn follow(listener: Listener, mut look: Look, agent: Agent) -> Result<(), PodError> {
    let blind = |error| PodError::host("cannot listen to the pod's network namespace", error);
    #[allow(
        deprecated,
        reason = "the safe call; its hole is for types that close their descriptor early, and a listener cannot"
    )]
    let mut listener = AsyncFd::try_with_interest(listener, Interest::READABLE).map_err(|e| blind(e.into_parts().1))?;
    loop {
        let mut news = listener.readable_mut().await.map_err(blind)?;
        let heard = hear(news.get_inner_mut());
        news.clear_ready();
        heard.map_err(super::unread)?;
        let (looked, changed) = tokio::task::spawn_blocking(move || {
            let changed = look.again();
            (look, changed)
        })
        .await
        .map_err(|error| PodError::host("looking at the pod's network was interrupted", error))?;
        look = looked;
        let Some(network) = changed.map_err(super::unread)? else { continue };
        log::info!("the pod's network has changed; the guest is told");
        if let Err(error) = agent.update_network(network).await {
            log::warn!("the guest does not take the changed network: {}", error.message);
        }
    }
}

/// Takes all news that there are; what they say is asked for again.
fn hear(listener: &mut Listener) -> netlink::Result<()> {
    while let Some(News::Changes(_) | News::Lost) = listener.try_next()? {}
    Ok(())
}

impl Look {
    /// What there is now, if the guest does not know it.
    fn again(&mut self) -> netlink::Result<Option<m::Network>> {
        let now = told_now(Picture::read(&mut self.socket)?, &self.joints);
        if now == self.told {
            return Ok(None);
        }
        self.told = now.clone();
        Ok(Some(now))
    }
}
