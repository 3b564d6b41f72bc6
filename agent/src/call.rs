//! The agent's one connection: dialled once, greeted with a hello, then served until it ends.
//!
//! There is no second attempt: the host listens before it starts the machine, so a refused call means that there is no host to serve.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::SeqCst},
    task::{Context, Poll},
};

use agent_protocol::{CALL_PORT, HOST_CID, Hello, STREAM_PORT, service::create_agent};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use ttrpc::asynchronous::{Server, transport::Listener};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::{service::Service, socket::Socket};

/// Why there is no call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Our own port for streams.
    #[error(
        "cannot listen on vsock port {STREAM_PORT} for stdio streams: does the machine have a virtio vsock device?"
    )]
    Listen(#[source] io::Error),
    /// The host's port.
    #[error("cannot call the host on vsock port {CALL_PORT}: the host must listen before it starts the machine")]
    Dial(#[source] io::Error),
    /// The connection.
    #[error("cannot serve the host on its connection")]
    Serve(#[source] io::Error),
    /// The server library.
    #[error("the ttrpc server did not start")]
    Server(#[source] ttrpc::Error),
}

/// Both sockets of an agent that has called.
#[derive(Debug)]
pub struct Call {
    /// The greeted connection.
    pub connection: OwnedFd,
    /// Where stdio streams arrive.
    pub streams: OwnedFd,
}

/// Calls the host and says hello. Streams can be connected from the moment the host has read it.
pub fn dial() -> Result<Call, CallError> {
    let streams = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, STREAM_PORT).map_err(CallError::Listen)?;
    let connection = VsockStream::connect_with_cid_port(HOST_CID, CALL_PORT).map_err(CallError::Dial)?;
    say_hello(&connection).map_err(CallError::Dial)?;
    Ok(Call { connection: connection.into(), streams: streams.into() })
}

/// Writes the hello of this build.
pub fn say_hello(mut connection: impl io::Write) -> io::Result<()> {
    connection.write_all(Hello::ours(env!("CARGO_PKG_VERSION")).to_line().as_bytes())
}

/// Serves ttrpc on one connection until the host hangs up or [`Farewell`] has been said.
pub async fn serve(service: Service, connection: OwnedFd) -> Result<(), CallError> {
    let ended = Arc::new(Notify::new());
    let farewell = service.farewell();
    let line = Line { socket: Socket::new(connection).map_err(CallError::Serve)?, ended: ended.clone(), farewell };
    // A listener that yields this one connection and then ends, and with it the server's accepting; the connection's task goes on.
    let once = futures::stream::once(async { Ok(line) });
    let mut server = Server::new().add_listener(Listener::new(once)).register_service(create_agent(Arc::new(service)));
    server.start().await.map_err(CallError::Server)?;
    ended.notified().await;
    Ok(())
}

/// Set when the machine is to end; the call ends after the answer in flight has been written.
#[derive(Debug, Clone, Default)]
pub struct Farewell(Arc<AtomicBool>);

impl Farewell {
    /// The next message on the call is the last one.
    pub fn say(&self) {
        self.0.store(true, SeqCst);
    }

    fn is_said(&self) -> bool {
        self.0.load(SeqCst)
    }
}

/// The connection as ttrpc sees it, telling when it has ended: ttrpc's server itself does not.
struct Line {
    socket: Socket,
    ended: Arc<Notify>,
    farewell: Farewell,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let wanted = buffer.remaining() > 0;
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        match &polled {
            Poll::Ready(Ok(())) if wanted && buffer.filled().len() == before => self.ended.notify_one(),
            Poll::Ready(Err(_)) => self.ended.notify_one(),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        polled
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if let Poll::Ready(Err(_)) = &polled {
            self.ended.notify_one();
        }
        polled
    }

    /// ttrpc flushes after each whole message.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.is_said() {
            self.ended.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}
