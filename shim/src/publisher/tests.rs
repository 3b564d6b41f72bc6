use std::{
    os::unix::net::UnixListener as StdListener,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use containerd_shim_protos::events::task::TaskStart;
use pod::ProcessId;
use protobuf::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader, Request, Response};

use super::*;

/// When a containerd dies: with its connection, and with what it has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// It does not.
    Never,
    /// A connection is there, and nothing was read.
    Connected,
    /// Half of the event was read.
    HalfRead,
    /// The event was read, and told to nobody.
    Read,
    /// The event was told, and not answered.
    Told,
}

/// A containerd as a shim sees it: reads events at a socket, and can die over its `last` one.
struct Containerd {
    heard: Arc<Mutex<Vec<u32>>>,
    news: Arc<Notify>,
    work: JoinHandle<()>,
}

impl Containerd {
    fn serve(path: &Path, death: Death, last: usize, delay: Duration) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("bound");
        let (heard, news) = (Arc::new(Mutex::default()), Arc::new(Notify::new()));
        let life = Life { heard: Arc::clone(&heard), news: Arc::clone(&news), death, last, delay };
        // What ends drops listener and connection, as the kernel does for a process that is killed; the socket's name stays.
        Self { heard, news, work: tokio::spawn(life.live(listener)) }
    }

    fn steady(path: &Path) -> Self {
        Self::serve(path, Death::Never, 0, Duration::ZERO)
    }

    fn has(&self) -> Vec<u32> {
        self.heard.lock().expect("lock").clone()
    }

    async fn has_heard(&self, count: usize) -> Vec<u32> {
        let enough = async {
            while self.has().len() < count {
                self.news.notified().await;
            }
        };
        within(enough).await;
        self.has()
    }

    async fn dead(self) -> Vec<u32> {
        within(self.work).await.expect("ended");
        self.heard.lock().expect("lock").clone()
    }
}

struct Life {
    heard: Arc<Mutex<Vec<u32>>>,
    news: Arc<Notify>,
    death: Death,
    last: usize,
    delay: Duration,
}

impl Life {
    async fn live(self, listener: UnixListener) {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        loop {
            let dies = self.heard.lock().expect("lock").len() == self.last && self.death != Death::Never;
            if dies && self.death == Death::Connected {
                return;
            }
            let mut header = [0; MESSAGE_HEADER_LENGTH];
            if stream.read_exact(&mut header).await.is_err() || (dies && self.death == Death::HalfRead) {
                return;
            }
            let header = MessageHeader::from(header);
            let mut payload = vec![0; header.length as usize];
            stream.read_exact(&mut payload).await.expect("whole");
            if dies && self.death == Death::Read {
                return;
            }
            self.hear(&payload);
            if dies && self.death == Death::Told {
                return;
            }
            tokio::time::sleep(self.delay).await;
            stream.write_all(&answer(header.stream_id)).await.expect("answered");
        }
    }

    fn hear(&self, payload: &[u8]) {
        let request = Request::parse_from_bytes(payload).expect("a request");
        assert_eq!(
            (request.service.as_str(), request.method.as_str()),
            ("containerd.services.events.ttrpc.v1.Events", "Forward")
        );
        let forward = ForwardRequest::parse_from_bytes(&request.payload).expect("an event");
        let start = TaskStart::parse_from_bytes(&forward.envelope.event.value).expect("a start");
        self.heard.lock().expect("lock").push(start.pid);
        self.news.notify_one();
    }
}

fn answer(stream_id: u32) -> Vec<u8> {
    let payload = Response::new().write_to_bytes().expect("bytes");
    let mut frame: Vec<u8> =
        MessageHeader::new_response(stream_id, u32::try_from(payload.len()).expect("short")).into();
    frame.extend(payload);
    frame
}

fn started(number: u32) -> Event {
    Event::Started(ProcessId { container_id: "c".into(), exec_id: String::new() }, number)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("c.sock");
    (dir, path)
}

#[tokio::test]
async fn whenever_containerd_dies_nothing_is_lost_and_none_hears_twice() {
    for death in [Death::Connected, Death::HalfRead, Death::Read, Death::Told] {
        for last in 0..4 {
            let (_dir, path) = socket();
            let first = Containerd::serve(&path, death, last, Duration::ZERO);
            let publisher = Publisher::start(Some(path.clone()), "ns".into());
            (0..6).for_each(|number| publisher.publish(started(number)));
            let before: Vec<u32> = first.dead().await;
            let told = u32::try_from(last).expect("few") + u32::from(death == Death::Told);
            assert_eq!(before, (0..told).collect::<Vec<_>>(), "{death:?} over {last}");

            let second = Containerd::steady(&path);
            let answered = u32::try_from(last).expect("few");
            let rest: Vec<u32> = (answered..6).collect();
            assert_eq!(second.has_heard(rest.len()).await, rest, "{death:?} over {last}");
            within(publisher.flush(Duration::from_secs(10))).await;
            assert_eq!(second.has(), rest, "each exactly once");
        }
    }
}

#[tokio::test]
async fn a_slow_containerd_is_not_told_twice() {
    let (_dir, path) = socket();
    // Longer than containerd's own publisher waits.
    let slow = Containerd::serve(&path, Death::Never, 0, Duration::from_millis(5500));
    let publisher = Publisher::start(Some(path), "ns".into());
    publisher.publish(started(1));
    within(publisher.flush(Duration::from_secs(15))).await;
    assert_eq!(slow.has(), [1]);
}

#[tokio::test]
async fn events_wait_for_a_containerd_that_comes_later() {
    let (_dir, path) = socket();
    let publisher = Publisher::start(Some(path.clone()), "ns".into());
    (0..100).for_each(|number| publisher.publish(started(number)));
    tokio::task::yield_now().await;
    let containerd = Containerd::steady(&path);
    assert_eq!(containerd.has_heard(100).await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_containerd_that_comes_back_is_noticed_and_not_looked_for() {
    let (_dir, path) = socket();
    // What a killed containerd leaves: a socket that refuses.
    drop(StdListener::bind(&path).expect("bound"));
    let publisher = Publisher::start(Some(path.clone()), "ns".into());
    publisher.publish(started(1));
    // Long enough for the attempts to have become rare.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let before = Instant::now();
    let containerd = Containerd::steady(&path);
    containerd.has_heard(1).await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_folder_that_is_made_later_is_found() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("run/c.sock");
    let publisher = Publisher::start(Some(path.clone()), "ns".into());
    publisher.publish(started(1));
    tokio::task::yield_now().await;
    std::fs::create_dir(dir.path().join("run")).expect("made");
    assert_eq!(Containerd::steady(&path).has_heard(1).await, [1]);
}

#[tokio::test]
async fn a_refused_event_does_not_hold_up_the_end() {
    use async_trait::async_trait;
    use containerd_shim_protos::{
        protobuf::well_known_types::empty::Empty,
        shim_async::{Events, create_events},
    };
    use ttrpc::r#async::{Server, TtrpcContext};

    #[derive(Default)]
    struct Refusing(AtomicUsize);

    #[async_trait]
    impl Events for Refusing {
        async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no")))
        }
    }

    let (_dir, path) = socket();
    let refusing = Arc::new(Refusing::default());
    let service: Arc<dyn Events + Send + Sync> = Arc::clone(&refusing) as _;
    let mut server = Server::new()
        .bind(&format!("unix://{}", path.display()))
        .expect("bound")
        .register_service(create_events(service));
    server.start().await.expect("started");
    let publisher = Publisher::start(Some(path), "ns".into());
    publisher.publish(started(1));
    within(publisher.flush(Duration::from_secs(20))).await;
    assert_eq!(refusing.0.load(Ordering::Relaxed), REFUSALS_MAX as usize);
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_containerd_that_is_gone() {
    let publisher = Publisher::start(Some("/nowhere/c.sock".into()), "ns".into());
    publisher.publish(started(1));
    within(publisher.flush(Duration::from_millis(50))).await;
}
