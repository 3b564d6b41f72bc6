//! Events on their way to containerd. One task owns the queue and the connection.
//!
//! An event leaves the queue when containerd has answered, not before; so order is kept, and a containerd that restarts in the
//! middle gets the rest when it is back. Any failure but an answer means the connection is dead, whatever ttrpc calls it: it
//! reports a peer that went away as an error of its own channel, and never recovers.
//! The event that was on its way when a connection died is sent again: containerd may then see it twice, never not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{api::ForwardRequest, shim_async::EventsClient};
use tokio::{
    net::UnixStream,
    sync::{
        mpsc::{Receiver, Sender, channel, error::TrySendError},
        oneshot,
    },
    time::{sleep, timeout},
};
use ttrpc::r#async::{Client, transport::Socket};

use crate::events::Event;

/// Events that wait for a containerd that is away. One is some 300 bytes, so this is at most 5 MiB.
pub const QUEUED_MAX: usize = 16_384;
/// containerd has its answer ready in well under a millisecond.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// First and longest pause between two attempts to reach a containerd that is away.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// How often an event is offered to a containerd that answers, but refuses it.
const REFUSALS_MAX: u32 = 3;

/// The queue's near end; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    queue: Sender<Item>,
    namespace: Arc<str>,
}

enum Item {
    Event(Event, SystemTime),
    /// Everything queued before this is delivered.
    Reached(oneshot::Sender<()>),
}

impl Publisher {
    /// Starts the owner of the queue. Events go to the ttrpc socket at `address`; without one they go nowhere.
    pub fn start(address: Option<PathBuf>, namespace: String) -> Self {
        let (queue, items) = channel(QUEUED_MAX);
        let shared = Arc::from(namespace.as_str());
        tokio::spawn(Delivery { address, namespace, client: None }.run(items));
        Self { queue, namespace: shared }
    }

    /// containerd's namespace, which every event carries.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Queues an event; never waits. Order is that of the calls.
    pub fn publish(&self, event: Event) {
        if let Err(TrySendError::Full(Item::Event(event, _))) =
            self.queue.try_send(Item::Event(event, SystemTime::now()))
        {
            log::error!("containerd has been away for {QUEUED_MAX} events; this one is lost: {event:?}");
        }
    }

    /// Waits until everything queued so far is delivered, at most for `patience`.
    pub async fn flush(&self, patience: Duration) {
        let (reached, here) = oneshot::channel();
        let delivered = async { self.queue.send(Item::Reached(reached)).await.is_ok() && here.await.is_ok() };
        if !timeout(patience, delivered).await.unwrap_or(false) {
            log::warn!("containerd did not take the last events of this pod within {patience:?}");
        }
    }
}

struct Delivery {
    address: Option<PathBuf>,
    namespace: String,
    client: Option<EventsClient>,
}

impl Delivery {
    async fn run(mut self, mut items: Receiver<Item>) {
        while let Some(item) = items.recv().await {
            match (item, self.address.clone()) {
                (Item::Event(event, at), Some(address)) => {
                    self.deliver(&address, &event.to_request(&self.namespace, at)).await;
                }
                (Item::Event(event, _), None) => log::debug!("without TTRPC_ADDRESS nobody hears of {event:?}"),
                (Item::Reached(reached), _) => drop(reached.send(())),
            }
        }
    }

    async fn deliver(&mut self, address: &Path, request: &ForwardRequest) {
        let mut pause = PAUSE_FIRST;
        let mut refusals = 0;
        loop {
            match self.offer(address, request).await {
                Ok(()) => return,
                Err(ttrpc::Error::RpcStatus(status)) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        log::error!("containerd refuses the event {}: {}", request.envelope.topic, status.message());
                        return;
                    }
                }
                Err(error) => {
                    log::debug!("cannot reach containerd at {}: {error}", address.display());
                    self.client = None;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    async fn offer(&mut self, address: &Path, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let stream = UnixStream::connect(address).await.map_err(|e| ttrpc::Error::Socket(e.to_string()))?;
                none.insert(EventsClient::new(Client::new(Socket::from(stream))))
            }
        };
        client.forward(ttrpc::context::with_duration(ANSWER_DEADLINE), request).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use containerd_shim_protos::{
        protobuf::well_known_types::empty::Empty,
        shim_async::{Events, create_events},
    };
    use pod::ProcessId;
    use protobuf::Message;
    use tokio::sync::Notify;
    use ttrpc::r#async::{Server, TtrpcContext};

    #[derive(Clone, Default)]
    struct Containerd {
        heard: Arc<Mutex<Vec<u32>>>,
        news: Arc<Notify>,
        refuses: bool,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            if self.refuses {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no")));
            }
            let start =
                containerd_shim_protos::events::task::TaskStart::parse_from_bytes(&request.envelope.event.value);
            self.heard.lock().expect("lock").push(start.expect("a start").pid);
            self.news.notify_one();
            Ok(Empty::new())
        }
    }

    impl Containerd {
        async fn serve(&self, path: &Path) -> Server {
            let _ = std::fs::remove_file(path);
            let service: Arc<dyn Events + Send + Sync> = Arc::new(self.clone());
            let mut server = Server::new()
                .bind(&format!("unix://{}", path.display()))
                .expect("bound")
                .register_service(create_events(service));
            server.start().await.expect("started");
            server
        }

        async fn has_heard(&self, count: usize) -> Vec<u32> {
            loop {
                let heard = self.heard.lock().expect("lock").clone();
                if heard.len() >= count {
                    return heard;
                }
                self.news.notified().await;
            }
        }
    }

    fn started(number: u32) -> Event {
        Event::Started(ProcessId { container_id: "c".into(), exec_id: String::new() }, number)
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), future).await.expect("in time")
    }

    #[tokio::test]
    async fn no_event_is_lost_and_order_is_kept_while_containerd_restarts() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("c.sock");
        let containerd = Containerd::default();
        let mut server = containerd.serve(&path).await;
        let publisher = Publisher::start(Some(path.clone()), "ns".into());
        (0..5).for_each(|number| publisher.publish(started(number)));
        within(containerd.has_heard(5)).await;

        server.shutdown().await.expect("stopped");
        drop(server);
        (5..10).for_each(|number| publisher.publish(started(number)));
        let _server = containerd.serve(&path).await;
        assert_eq!(within(containerd.has_heard(10)).await, (0..10).collect::<Vec<_>>());

        within(publisher.flush(Duration::from_secs(10))).await;
        assert_eq!(containerd.has_heard(10).await.len(), 10, "each exactly once");
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_comes_later() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("c.sock");
        let publisher = Publisher::start(Some(path.clone()), "ns".into());
        (0..100).for_each(|number| publisher.publish(started(number)));
        tokio::task::yield_now().await;
        let containerd = Containerd::default();
        let _server = containerd.serve(&path).await;
        assert_eq!(within(containerd.has_heard(100)).await, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_refused_event_does_not_hold_up_the_end() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("c.sock");
        let containerd = Containerd { refuses: true, ..Containerd::default() };
        let _server = containerd.serve(&path).await;
        let publisher = Publisher::start(Some(path), "ns".into());
        publisher.publish(started(1));
        within(publisher.flush(Duration::from_secs(20))).await;
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_a_containerd_that_is_gone() {
        let publisher = Publisher::start(Some("/nowhere/c.sock".into()), "ns".into());
        publisher.publish(started(1));
        within(publisher.flush(Duration::from_millis(50))).await;
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let publisher = Publisher::start(Some("/nowhere/c.sock".into()), "ns".into());
        for _ in 0..QUEUED_MAX + 10 {
            publisher.publish(started(1));
        }
        assert_eq!(publisher.queue.capacity(), 0);
    }
}
