//! Events on their way to containerd. One task owns the connection, and takes events from a bounded queue in their order.
//!
//! An event is done with when containerd has answered, not before; so order is kept, and a containerd that restarts in the middle gets
//! the rest when it is back: [`comeback`].
//!
//! # How often an event arrives
//! Exactly once, as long as the connection holds: an answer is waited for without a deadline, because a slow containerd has the event.
//! When a connection breaks before the answer, nobody can know whether the event was taken, and one that nobody heard of would be worse
//! than one that is told again (a pod that never ends). So it is sent again, over the next connection. The containerd behind that one is a
//! new process that has not heard of it: containerd closes a connection only by its own end. Its subscribers are new too; what they keep on disk
//! they have to take as a status, not as a count, as with containerd's own shims (whose publisher, beyond that, sends again what was
//! only slow, and gives up after six times).
//!
//! Any failure but an answer means the connection is dead, whatever ttrpc calls it: it reports a peer that went away as an error of its own
//! channel, and never recovers.

mod comeback;
mod queue;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{api::ForwardRequest, shim_async::EventsClient};
use tokio::{
    net::UnixStream,
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use ttrpc::r#async::{Client, transport::Socket};

use self::{
    comeback::Comeback,
    queue::{Item, Queue},
};
use crate::{events::Event, lock::held};

pub use self::queue::QUEUED_MAX;

/// How often an event is offered to a containerd that answers, but refuses it, and how long it gets in between to think better of it.
const REFUSALS_MAX: u32 = 3;
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);

/// The queue's near end; cheap to clone. The owner of the connection ends with the last one.
#[derive(Clone)]
pub struct Publisher(Arc<NearEnd>);

struct NearEnd {
    shared: Arc<Shared>,
    namespace: String,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    news: Notify,
    closed: std::sync::atomic::AtomicBool,
}

impl Publisher {
    /// Starts the owner of the connection. Events go to the ttrpc socket at `address`; without one they go nowhere.
    pub fn start(address: Option<PathBuf>, namespace: String) -> Self {
        let shared = Arc::new(Shared::default());
        let delivery = Delivery { shared: Arc::clone(&shared), namespace: namespace.clone(), client: None };
        tokio::spawn(delivery.run(address));
        Self(Arc::new(NearEnd { shared, namespace }))
    }

    /// containerd's namespace, which every event carries.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Queues an event; never waits. Order is that of the calls.
    pub fn publish(&self, event: Event) {
        if let Some(lost) = held(&self.0.shared.queue).push(event, SystemTime::now()) {
            log::error!("containerd has been away for {QUEUED_MAX} events; this one is lost: {lost:?}");
        }
        self.0.shared.news.notify_one();
    }

    /// Waits until everything queued so far is delivered, at most for `patience`.
    pub async fn flush(&self, patience: Duration) {
        let (reached, here) = oneshot::channel();
        held(&self.0.shared.queue).push_mark(reached);
        self.0.shared.news.notify_one();
        if !matches!(timeout(patience, here).await, Ok(Ok(()))) {
            log::warn!("containerd did not take the last events of this pod within {patience:?}");
        }
    }
}

impl Drop for NearEnd {
    fn drop(&mut self) {
        self.shared.closed.store(true, std::sync::atomic::Ordering::Relaxed);
        self.shared.news.notify_one();
    }
}

impl Shared {
    // What is first; nothing, when nothing will come any more.
    async fn next(&self) -> Option<Item> {
        loop {
            if let Some(item) = held(&self.queue).pop() {
                return Some(item);
            }
            if self.closed.load(std::sync::atomic::Ordering::Relaxed) {
                return None;
            }
            self.news.notified().await;
        }
    }
}

struct Delivery {
    shared: Arc<Shared>,
    namespace: String,
    client: Option<EventsClient>,
}

impl Delivery {
    async fn run(mut self, address: Option<PathBuf>) {
        while let Some(item) = self.shared.next().await {
            match (item, &address) {
                (Item::Event(event, at), Some(address)) => {
                    self.deliver(address, &event.to_request(&self.namespace, at)).await;
                }
                (Item::Event(event, _), None) => log::debug!("without TTRPC_ADDRESS nobody hears of {event:?}"),
                (Item::Reached(reached), _) => drop(reached.send(())),
            }
        }
    }

    async fn deliver(&mut self, address: &Path, request: &ForwardRequest) {
        let mut refusals = 0;
        loop {
            let client = match &mut self.client {
                Some(client) => client,
                none => none.insert(connect(address).await),
            };
            match client.forward(ttrpc::context::Context::default(), request).await {
                Ok(_) => return,
                Err(ttrpc::Error::RpcStatus(status)) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        log::error!("containerd refuses the event {}: {}", request.envelope.topic, status.message());
                        return;
                    }
                    sleep(REFUSAL_PAUSE).await;
                }
                Err(error) => {
                    log::debug!("the connection to containerd at {} is over: {error}", address.display());
                    self.client = None;
                }
            }
        }
    }
}

// Waits for as long as it takes.
async fn connect(address: &Path) -> EventsClient {
    let mut comeback = None;
    loop {
        match UnixStream::connect(address).await {
            Ok(stream) => return EventsClient::new(Client::new(Socket::from(stream))),
            Err(error) => log::debug!("cannot reach containerd at {}: {error}", address.display()),
        }
        match &mut comeback {
            // Once more, now that nothing is missed.
            None => comeback = Some(Comeback::watch(address)),
            Some(comeback) => comeback.next().await,
        }
    }
}

#[cfg(test)]
mod tests;
