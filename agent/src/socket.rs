//! One connected stream socket, of any address family: vsock in a machine, a Unix socketpair in tests.
//!
//! Only what a stream socket has in every family is used (read, write, shutdown), so the tests exercise the code that runs in the guest.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{io::Errno, net::Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::sys;

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Takes a connected socket; makes it non-blocking. Call inside the runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(sys::with_readiness(socket, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// The descriptor with its readiness.
    pub fn ready(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }

    /// Tells the peer that nothing more will come (shutdown(2), SHUT_WR). A peer that is gone already needs no telling.
    pub fn finish_writing(&self) {
        if let Err(error) = rustix::net::shutdown(&self.0, Shutdown::Write) {
            log::debug!("cannot half close a stream, its peer is gone: {error}");
        }
    }

    /// Waits until `buffer` is full; an early end is `UnexpectedEof`.
    pub async fn read_full(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer[filled..])?)) {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(count)) => filled += count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd, buffer.initialize_unfilled())?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_not_ready) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&self.0, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_and_the_half_close_arrive() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut ours = Socket::new(ours.into()).unwrap();
        let mut theirs = Socket::new(theirs.into()).unwrap();
        ours.write_all(b"hello").await.unwrap();
        ours.finish_writing();
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
    }

    #[tokio::test]
    async fn an_early_end_is_no_full_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Socket::new(ours.into()).unwrap();
        rustix::io::write(&theirs, b"abc").unwrap();
        drop(theirs);
        let error = ours.read_full(&mut [0; 8]).await.expect_err("three bytes are not eight");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
