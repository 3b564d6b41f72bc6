use std::path::Path;

use async_trait::async_trait;
use containerd_shim_protos::{
    api::ForwardRequest,
    protobuf::well_known_types::empty::Empty,
    shim_async::{Events, create_events},
};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use ttrpc::{
    Code,
    r#async::{Client, Server, TtrpcContext},
};

use super::*;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// The smallest service there is.
struct Nothing;

#[async_trait]
impl Events for Nothing {
    async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}

struct Served {
    dir: tempfile::TempDir,
    _server: Server,
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let service: Arc<dyn Events + Send + Sync> = Arc::new(Nothing);
        let services = create_events(service);
        let listener = StdListener::bind(dir.path().join("s")).expect("bound");
        let listener = accept(listener, services.keys().cloned()).expect("watched");
        let mut server = Server::new().add_listener(listener).register_service(services);
        server.start().await.expect("started");
        Self { dir, _server: server }
    }

    fn path(&self) -> impl AsRef<Path> {
        self.dir.path().join("s")
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.expect("connected")
    }

    async fn ask(&self, service: &str, method: &str) -> ttrpc::Result<()> {
        let client = Client::new(self.raw().await.into());
        client.request(request(service, method)).await.map(drop)
    }
}

fn request(service: &str, method: &str) -> Request {
    Request { service: service.into(), method: method.into(), timeout_nano: 5_000_000_000, ..Request::default() }
}

fn frame(request: &Request) -> Vec<u8> {
    let payload = request.write_to_bytes().expect("bytes");
    let mut frame: Vec<u8> = MessageHeader::new_request(1, u32::try_from(payload.len()).expect("short")).into();
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented_and_named() {
    let served = Served::start().await;
    served.ask(SERVICE, "Forward").await.expect("served");
    for (service, method) in [("containerd.task.v9.Task", "Create"), (SERVICE, "Backward"), ("", "")] {
        let ttrpc::Error::RpcStatus(status) = served.ask(service, method).await.expect_err("refused") else {
            panic!("a status")
        };
        assert_eq!(status.code(), Code::UNIMPLEMENTED, "{}", status.message());
        assert!(status.message().contains(method), "{}", status.message());
    }
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_its_connection_and_no_other() {
    let served = Served::start().await;
    let mut rude = served.raw().await;
    let header: Vec<u8> = MessageHeader::new_request(1, u32::try_from(MESSAGE_LENGTH_MAX).expect("fits") + 1).into();
    rude.write_all(&header).await.expect("written");
    let ended =
        timeout(Duration::from_secs(5), rude.read(&mut [0; 1])).await.expect("nothing of the frame is waited for");
    assert_eq!(ended.unwrap_or(0), 0);
    served.ask(SERVICE, "Forward").await.expect("others are served");
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_served() {
    let served = Served::start().await;
    let mut slow = served.raw().await;
    for byte in frame(&request(SERVICE, "Forward")) {
        slow.write_all(&[byte]).await.expect("written");
        tokio::task::yield_now().await;
    }
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    timeout(Duration::from_secs(5), slow.read_exact(&mut header)).await.expect("in time").expect("an answer");
    assert_eq!(MessageHeader::from(header).stream_id, 1);
}

fn passed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let services = Arc::new([SERVICE.to_owned()].into());
    runtime.block_on(async {
        let mut out = Vec::new();
        Frames::new(bytes, services).read_to_end(&mut out).await.map(|_| out)
    })
}

proptest! {
    #[test]
    fn any_bytes_pass_as_whole_frames_or_end_the_connection(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = passed(&bytes);
    }

    #[test]
    fn what_is_served_passes_as_it_came(
        payload in prop::collection::vec(any::<u8>(), 0..40_000),
        method in "[ -~]{0,20}",
        kind in 0_u8..5,
    ) {
        let one = Request { payload, ..request(SERVICE, &method) };
        let mut bytes = frame(&one);
        bytes.extend(frame(&one));
        // Answers and data are passed too, whatever is in them.
        bytes[8] = kind;
        prop_assert_eq!(passed(&bytes).expect("passed"), bytes);
    }

    #[test]
    fn what_is_not_served_stays_one_whole_request(service in any::<String>(), method in any::<String>()) {
        prop_assume!(service != SERVICE);
        let bytes = passed(&frame(&request(&service, &method))).expect("passed");
        let header = MessageHeader::from(&bytes[..MESSAGE_HEADER_LENGTH]);
        prop_assert_eq!(header.length as usize, bytes.len() - MESSAGE_HEADER_LENGTH);
        let renamed = Request::parse_from_bytes(&bytes[MESSAGE_HEADER_LENGTH..]).expect("a request");
        prop_assert_eq!(renamed.service, SERVICE);
    }
}
