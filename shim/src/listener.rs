//! Connections of containerd, with two rules that ttrpc leaves to its user:
//!
//! - A frame that is longer than ttrpc allows ends its connection. ttrpc itself reads and forgets such a frame, whatever its length, and
//!   meanwhile answers nothing else on that connection.
//! - A request for a service that is not here is answered with UNIMPLEMENTED, as containerd's own server does and its clients expect when
//!   they try a newer service first. ttrpc says INVALID_ARGUMENT, so such a request goes on under a name that it has an answer for.
//!
//! An accept that fails for want of descriptors or memory is tried again after a pause: it would fail again at once.

use std::{
    collections::BTreeSet,
    io,
    os::unix::net::UnixListener as StdListener,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use protobuf::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use ttrpc::{
    r#async::transport::Listener,
    proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader, Request},
};

/// Between two accepts of which the first failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes read in one step.
const STEP_LEN_MAX: usize = 16 << 10;
/// Longest name that is shown to a client that asked for something unknown.
const NAME_LEN_MAX: usize = 200;

/// Accepts connections at `listener`, for a server of the services of these names.
///
/// # Errors
/// The runtime cannot watch the listener.
pub fn accept(listener: StdListener, services: impl IntoIterator<Item = String>) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(Listener::new(Accepting { listener, services: Arc::new(services.into_iter().collect()), pause: None }))
}

struct Accepting {
    listener: UnixListener,
    services: Arc<BTreeSet<String>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Accepting {
    type Item = io::Result<Frames<UnixStream>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(Frames::new(stream, Arc::clone(&self.services))))),
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}; trying again in {ACCEPT_PAUSE:?}");
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// A connection of which whole frames are read.
struct Frames<S> {
    stream: S,
    services: Arc<BTreeSet<String>>,
    /// The frame that is being read.
    coming: Vec<u8>,
    /// The one that was read, and how much of it is handed on.
    whole: Vec<u8>,
    handed: usize,
}

impl<S> Frames<S> {
    fn new(stream: S, services: Arc<BTreeSet<String>>) -> Self {
        Self { stream, services, coming: Vec::new(), whole: Vec::new(), handed: 0 }
    }

    // The rest of the frame that was read last.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = &self.whole[self.handed..];
        let step = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..step]);
        self.handed += step;
        if self.handed == self.whole.len() {
            // A long frame is rare; its memory is not kept.
            (self.whole, self.handed) = (Vec::new(), 0);
        }
        step > 0
    }

    // How many bytes are missing until the header, or the frame, is whole.
    fn missing(&self) -> io::Result<usize> {
        let Some(header) = self.coming.get(..MESSAGE_HEADER_LENGTH) else {
            return Ok(MESSAGE_HEADER_LENGTH - self.coming.len());
        };
        let length = usize::try_from(MessageHeader::from(header).length).unwrap_or(usize::MAX);
        if length > MESSAGE_LENGTH_MAX {
            let sentence = format!("a frame of {length} bytes; at most {MESSAGE_LENGTH_MAX} are taken");
            log::warn!("a connection is closed: {sentence}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, sentence));
        }
        Ok(MESSAGE_HEADER_LENGTH + length - self.coming.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.hand_on(buffer) || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let missing = self.missing()?;
            if missing == 0 {
                let frame = std::mem::take(&mut self.coming);
                self.whole = answerable(frame, &self.services);
                continue;
            }
            let mut step = [0; STEP_LEN_MAX];
            let mut step = ReadBuf::new(&mut step[..missing.min(STEP_LEN_MAX)]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut step))?;
            if step.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.coming.extend_from_slice(step.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// A request for a service that is not here becomes one for a method that no service has. ttrpc's answer is the method's name and a word.
fn answerable(frame: Vec<u8>, services: &BTreeSet<String>) -> Vec<u8> {
    let header = MessageHeader::from(&frame[..MESSAGE_HEADER_LENGTH]);
    if header.type_ != MESSAGE_TYPE_REQUEST {
        return frame;
    }
    let (Ok(request), Some(any)) = (Request::parse_from_bytes(&frame[MESSAGE_HEADER_LENGTH..]), services.first())
    else {
        return frame;
    };
    if services.contains(&request.service) {
        return frame;
    }
    let (service, method) = (shown(&request.service), shown(&request.method));
    let renamed = Request {
        service: any.clone(),
        method: format!("{service}/{method} is not served here: unknown service or"),
        timeout_nano: request.timeout_nano,
        ..Request::default()
    };
    let payload = renamed.write_to_bytes().unwrap_or_default();
    let length = u32::try_from(payload.len()).unwrap_or_default();
    let mut frame: Vec<u8> = MessageHeader { length, ..header }.into();
    frame.extend(payload);
    frame
}

fn shown(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(NAME_LEN_MAX).collect()
}

#[cfg(test)]
mod tests;
