//! What a plugin changes at a running pod's interfaces reaches the guest too: other addresses and routes, interfaces that come, and those that go.
//!
//! The kernel says that something changed, and is asked what there is now; the guest is told when that is not what it was told last. So any number of
//! changes at once is one message, and news that got lost are news like any other.
//!
//! ```text
//!  gone:  the guest lets go of the device ─> it leaves its place in the machine
//!  come:  recorded, joined to a tap ─> a device in an empty place ─> the guest looks there, and is told of it
//! ```
//! Who starts a container waits until all that was heard before is so ([`Waiting::settle`]): a plugin that has returned (`ctr run --cni`, a runtime's
//! hook) is heard already, and the container begins with its network, as a container of a shared kernel does.

use std::{io, sync::Arc};

use agent_protocol::messages as m;
use netlink::{Group, Listener, News, Socket};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    Device, Making, join,
    namespace::Namespace,
    picture::Picture,
    plan::{self, Joint, told},
    rules::interface,
    undo::{Joined, Late},
};
use crate::{
    InterfaceRules, PodError,
    agent::Agent,
    machine::Machine,
    record::{Entry, Record},
};

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

/// What looks again, and acts on the host: it speaks with the namespace, and knows what the machine has.
#[derive(Debug)]
struct Look {
    namespace: Arc<Namespace>,
    socket: Socket,
    record: Record,
    /// What is in each of the machine's places for network devices.
    places: Vec<Option<Joint>>,
    told: m::Network,
    /// What is joined since the pod began.
    late: Vec<Joined>,
    /// What stays on the host, and why; said once.
    unjoined: Vec<String>,
}

/// A watch that goes on until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    task: Option<JoinHandle<Late>>,
    end: watch::Sender<bool>,
    waiting: Waiting,
}

/// Waits for a watch.
#[derive(Debug, Clone)]
pub(crate) struct Waiting(mpsc::UnboundedSender<oneshot::Sender<()>>);

impl Waiting {
    /// Resolves when the guest has all that was changed before this call, or cannot have it.
    pub(crate) async fn settle(&self) {
        let (reply, settled) = oneshot::channel();
        if self.0.send(reply).is_ok() {
            let _ = settled.await;
        }
    }
}

impl Watching {
    /// For who waits.
    pub(crate) fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Ends it, with nothing half done; what it joined is still to be undone.
    pub(crate) async fn end(mut self) -> Option<Late> {
        self.end.send_replace(true);
        self.task.take()?.await.ok()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

/// Begins to listen, in the namespace of the calling thread.
pub(super) fn listen() -> netlink::Result<Listener> {
    Socket::listen(&GROUPS)
}

impl Watch {
    /// The machine has so many places; of the interfaces in the first ones the guest knows this.
    pub(super) fn new(
        (listener, socket): (Listener, Socket),
        namespace: Arc<Namespace>,
        record: Record,
        places: Vec<Option<Joint>>,
        told: m::Network,
    ) -> Self {
        let look = Look { namespace, socket, record, places, told, late: Vec::new(), unjoined: Vec::new() };
        Self { listener, look }
    }

    /// Tells machine and agent of what changes from now on, and of what has changed since the namespace was read.
    pub(crate) fn begin(self, machine: Machine, agent: Agent, rules: InterfaceRules) -> Watching {
        let Self { listener, look } = self;
        let (end, ended) = watch::channel(false);
        let (asks, asked) = mpsc::unbounded_channel();
        let guest = Guest { machine, agent, rules, ended };
        let task = tokio::spawn(follow(listener, look, guest, asked));
        Watching { task: Some(task), end, waiting: Waiting(asks) }
    }
}

/// Goes on to the end that it is told, or until it hears nothing any more.
async fn follow(
    listener: Listener,
    look: Look,
    mut guest: Guest,
    asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
) -> Late {
    let mut keeper = Some(look);
    if let Err(error) = turns(listener, &mut keeper, &mut guest, asked).await {
        log::warn!("changes of the pod's network do not reach the guest any more: {}", error.message);
    }
    keeper.map(Look::into_late).unwrap_or_default()
}

async fn turns(
    listener: Listener,
    keeper: &mut Option<Look>,
    guest: &mut Guest,
    mut asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
) -> Result<(), PodError> {
    let deaf = |error| PodError::host("cannot listen to the pod's network namespace", error);
    #[allow(
        deprecated,
        reason = "the safe call; its hole is for types that close their descriptor early, and a listener cannot"
    )]
    let mut listener = AsyncFd::try_with_interest(listener, Interest::READABLE).map_err(|e| deaf(e.into_parts().1))?;
    let mut ended = guest.ended.clone();
    loop {
        let asker = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return Ok(()),
            asker = asked.recv() => match asker {
                Some(asker) => Some(asker),
                None => return Ok(()),
            },
            news = listener.readable_mut() => {
                news.map_err(deaf)?.clear_ready();
                None
            }
        };
        if hear(listener.get_mut()).map_err(super::unread)? {
            turn(keeper, guest).await?;
        }
        // Who asked may have gone.
        let _ = asker.map(|asker| asker.send(()));
    }
}

/// Takes all news that there are; what they say is asked for again. Were there any?
fn hear(listener: &mut Listener) -> netlink::Result<bool> {
    let mut any = false;
    while let Some(News::Changes(_) | News::Lost) = listener.try_next()? {
        any = true;
    }
    Ok(any)
}

/// One look, and all that follows from it.
async fn turn(keeper: &mut Option<Look>, guest: &mut Guest) -> Result<(), PodError> {
    let (picture, change) = on_the_host(keeper, Look::again).await?.map_err(super::unread)?;
    if !change.gone.is_empty() {
        guest.tell(keeper, &picture).await;
        for place in change.gone {
            guest.detach(place).await;
        }
    }
    for (place, joint) in change.new {
        let name = joint.trace.name.clone();
        match arrive(keeper, guest, place, joint).await? {
            Ok(()) => log::info!("the interface {name} has come and is joined to the machine"),
            Err(error) => log::warn!("the interface {name} has come and stays on the host: {}", error.message),
        }
    }
    guest.tell(keeper, &picture).await;
    Ok(())
}

/// Joins an interface that has come, and puts its device into the machine.
async fn arrive(
    keeper: &mut Option<Look>,
    guest: &Guest,
    place: usize,
    joint: Joint,
) -> Result<Result<(), PodError>, PodError> {
    let making = guest.making().await;
    let to_join = joint.clone();
    let device = match on_the_host(keeper, move |look| look.join(&to_join, making)).await? {
        Ok(device) => device,
        Err(error) => return Ok(Err(error)),
    };
    let attached = guest.attach(place, device).await;
    let note = move |look: &mut Look| match attached {
        Ok(()) => {
            look.places[place] = Some(joint);
            Ok(())
        }
        Err(error) => Err(look.give_up(error)),
    };
    on_the_host(keeper, note).await
}

/// Asks the kernel, on a thread that may wait.
async fn on_the_host<T: Send + 'static>(
    keeper: &mut Option<Look>,
    act: impl FnOnce(&mut Look) -> T + Send + 'static,
) -> Result<T, PodError> {
    let interrupted = |error: io::Error| PodError::host("looking at the pod's network was interrupted", error);
    let mut look = keeper.take().ok_or_else(|| interrupted(io::ErrorKind::Interrupted.into()))?;
    let acted = tokio::task::spawn_blocking(move || {
        let done = act(&mut look);
        (look, done)
    });
    let (look, done) = acted.await.map_err(|error| interrupted(error.into()))?;
    *keeper = Some(look);
    Ok(done)
}

impl Look {
    /// What there is now, and what it changes.
    fn again(&mut self) -> netlink::Result<(Picture, plan::Change)> {
        let picture = Picture::read(&mut self.socket)?;
        let change = plan::change(&picture, &self.places);
        for place in &change.gone {
            self.places[*place] = None;
        }
        let gone = |trace: &plan::Trace| picture.link(trace.index).is_none();
        self.late.retain(|joined| !joined.traces.iter().all(gone));
        let said = std::mem::replace(&mut self.unjoined, change.unjoined.clone());
        let unsaid = self.unjoined.iter().filter(|sentence| !said.contains(sentence));
        unsaid.for_each(|sentence| log::warn!("{sentence}; it stays on the host"));
        Ok((picture, change))
    }

    /// Joins an interface that has come. It is in the record first.
    fn join(&mut self, joint: &Joint, making: Making) -> Result<Device, PodError> {
        let joined = Joined::of(&self.namespace, vec![joint.trace.clone()]);
        let unrecorded = |error| PodError::host("cannot record the pod's network", error);
        self.record.write(&Entry::Network(joined.clone())).map_err(unrecorded)?;
        self.late.push(joined);
        let device = self.namespace.within(|| join(&mut self.socket, joint, making));
        device.map_err(|error| self.give_up(error))
    }

    /// Undoes what was joined last.
    fn give_up(&mut self, error: PodError) -> PodError {
        let undone = self.late.pop().map(|joined| joined.undo_here(&mut self.socket));
        let left = undone.and_then(Result::err).map(|error| error.to_string());
        error.with_tail("left behind", &left.unwrap_or_default())
    }

    fn into_late(self) -> Late {
        Late { namespace: Some(self.namespace), joined: self.late }
    }
}

/// The other side: the machine and the agent in it.
struct Guest {
    machine: Machine,
    agent: Agent,
    rules: InterfaceRules,
    ended: watch::Receiver<bool>,
}

impl Guest {
    /// Tells the agent what there is now in the machine's places, if it does not know.
    async fn tell(&mut self, keeper: &mut Option<Look>, picture: &Picture) {
        let Some(look) = keeper else { return };
        let now = told(picture, look.places.iter().flatten());
        if now == look.told {
            return;
        }
        look.told = now.clone();
        log::info!("the pod's network has changed; the guest is told");
        let agent = self.agent.clone();
        self.until_the_end(async move {
            if let Err(error) = agent.update_network(now).await {
                log::warn!("the guest does not take the changed network: {}", error.message);
            }
        })
        .await;
    }

    /// As many queues as the machine has processors.
    async fn making(&self) -> Making {
        Making::of(self.rules, self.machine.report().await.map_or(1, |report| report.vcpus))
    }

    async fn attach(&self, place: usize, device: Device) -> Result<(), PodError> {
        let spec = interface(device.mac, device.mtu, self.rules);
        self.machine.attach_network(place, spec, device.taps, device.vhosts).await
    }

    async fn detach(&self, place: usize) {
        if let Err(error) = self.machine.detach_network(place).await {
            log::warn!("a network device stays in the machine: {}", error.message);
        }
    }

    /// Does something with the guest, unless the pod ends first: a guest may be silent.
    async fn until_the_end(&mut self, act: impl Future<Output = ()>) {
        tokio::select! {
            () = act => {}
            _ = self.ended.wait_for(|ended| *ended) => {}
        }
    }
}
