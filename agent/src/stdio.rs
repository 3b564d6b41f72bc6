//! Moves bytes between a process's stdio and its stream connections.
//!
//! ```text
//!   stream --splice--> pipe -> stdin          end of stream: the pipe is closed
//!   stdout/stderr -> pipe --64 KiB reads--> stream  end of pipe (last writer gone): half close
//!   terminal master <--16 KiB reads--> two streams   EIO of the master is its end of file
//! ```
//! Each direction is one task with one source and one sink, so a slow reader holds up its own process only: the pipe fills and the
//! process waits. Nothing is lost at exit, as a pump ends at its source's end of file and not at the process's end; a child left in the
//! background keeps the stream open until it, too, is gone, at the latest when the container is deleted.
//!
//! # Cost
//! A system call in the guest may cost 30 us and more, and so does each vsock packet, so bulk moves in large pieces. Input is moved by
//! splice(2), up to [`PIPE_BYTES`] for each call, without memory of our own. Output is not: a pipe holds pages, and vsock makes a packet
//! of each page that is spliced to it. A buffer that is there while bytes move makes packets of 64 KiB instead.
//! Pipes begin at the kernel's 64 KiB and are enlarged at the first sign of bulk.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
    time::Timespec,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{socket::Socket, sys};

/// Size of a pipe that carries bulk; also the most that one splice moves.
pub const PIPE_BYTES: usize = 256 << 10;
/// One splice of this size means that the pipe was full: bulk.
const BULK_BYTES: usize = 32 << 10;
/// Buffer of a terminal's pump, alive only while bytes move. The line discipline hands out 4 KiB at a time.
const TERMINAL_BYTES: usize = 16 << 10;
/// Buffer of an output's pump, alive only while bytes move: the most that one vsock packet carries (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of
/// include/linux/virtio_vsock.h).
const OUTPUT_BYTES: usize = 64 << 10;
/// Moves in a row before other tasks get their turn.
const TURN_MOVES: u32 = 16;

/// How a flow ended without an error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The source has no more.
    Source,
    /// Nobody reads the sink any more.
    Sink,
    /// This pair of descriptors cannot be spliced.
    CannotSplice,
}

/// A pipe for one output of a process: its end, and the pump that will empty the other one into the stream.
pub fn output(stream: Socket) -> io::Result<(OwnedFd, impl Future<Output = ()> + Send + 'static)> {
    let (source, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let source = non_blocking(source, Interest::READABLE)?;
    let pump = async move {
        report("output", copy(&source, stream.ready(), OUTPUT_BYTES, Bulk::Enlarges).await);
        stream.finish_writing();
    };
    Ok((theirs, pump))
}

/// A pipe for the input of a process: its end, and the pump that will fill the other one from the stream.
pub fn input(stream: Socket) -> io::Result<(OwnedFd, impl Future<Output = ()> + Send + 'static)> {
    let (theirs, sink) = pipe_with(PipeFlags::CLOEXEC)?;
    let sink = non_blocking(sink, Interest::WRITABLE)?;
    let pump = async move { report("input", flow(stream.ready(), &sink, sink.get_ref()).await) };
    Ok((theirs, pump))
}

/// The master of a process's terminal; resized from elsewhere while its pumps run.
pub type Master = Arc<AsyncFd<OwnedFd>>;

/// Takes the master; call inside the runtime.
pub fn master(fd: OwnedFd) -> io::Result<Master> {
    Ok(Arc::new(non_blocking(fd, Interest::READABLE | Interest::WRITABLE)?))
}

/// Types what comes from the stream into the terminal. The stream's end types nothing: the process's terminal stays.
pub async fn terminal_input(stream: Socket, master: Master) {
    report("terminal input", copy(stream.ready(), &master, TERMINAL_BYTES, Bulk::IsNoMatter).await);
}

/// Shows what the terminal prints until its last user is gone.
pub async fn terminal_output(master: Master, stream: Option<Socket>) {
    if let Some(stream) = stream {
        report("terminal output", copy(&master, stream.ready(), TERMINAL_BYTES, Bulk::IsNoMatter).await);
        stream.finish_writing();
    } else {
        report("terminal output", discard(&master).await);
    }
}

fn non_blocking(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // Our end of a pipe is an open file description of its own: the process's end stays blocking.
    rustix::io::ioctl_fionbio(&fd, true)?;
    sys::with_readiness(fd, interest)
}

fn report(what: &str, outcome: io::Result<End>) {
    match outcome {
        Ok(end) => log::trace!("{what} ended: {end:?}"),
        Err(error) => log::debug!("{what} ended early: {error}"),
    }
}

/// Moves everything, by splice where the kernel can.
async fn flow(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>, pipe: &OwnedFd) -> io::Result<End> {
    match splice_all(source, sink, pipe).await? {
        End::CannotSplice => copy(source, sink, TERMINAL_BYTES, Bulk::IsNoMatter).await,
        end => Ok(end),
    }
}

async fn splice_all(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>, pipe: &OwnedFd) -> io::Result<End> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let mut enlarged = false;
    let mut moves = 0_u32;
    loop {
        let mut readable = tokio::select! {
            readable = source.readable() => readable?,
            _ = sink.ready(Interest::ERROR) => return Ok(End::Sink),
        };
        let mut writable = sink.writable().await?;
        match splice(source, None, sink, None, PIPE_BYTES, flags) {
            Ok(0) => return Ok(End::Source),
            Ok(count) => {
                if count >= BULK_BYTES && !enlarged {
                    enlarged = true;
                    // Refused only when the machine has little memory left, and then the small pipe does.
                    let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
                }
                moves = moves.wrapping_add(1);
                if moves.is_multiple_of(TURN_MOVES) {
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::AGAIN) => {
                // It does not say which side it waits for.
                let (source_ready, sink_ready) = ready_now(source, sink)?;
                if !source_ready {
                    readable.clear_ready();
                }
                if !sink_ready {
                    writable.clear_ready();
                }
                if source_ready && sink_ready {
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(End::Sink),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(End::CannotSplice),
            Err(error) => return Err(error.into()),
        }
    }
}

fn ready_now(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> io::Result<(bool, bool)> {
    let mut fds = [PollFd::new(source.get_ref(), PollFlags::IN), PollFd::new(sink.get_ref(), PollFlags::OUT)];
    loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(Errno::INTR) => {}
            done => break done.map(drop)?,
        };
    }
    Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
}

/// What a full read means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bulk {
    /// The source is a pipe, and gets larger once.
    Enlarges,
    /// The source is what it is.
    IsNoMatter,
}

/// Moves everything through a buffer that is there while bytes move.
async fn copy(
    source: &AsyncFd<OwnedFd>,
    sink: &AsyncFd<OwnedFd>,
    buffer_bytes: usize,
    mut bulk: Bulk,
) -> io::Result<End> {
    loop {
        let mut readable = tokio::select! {
            readable = source.readable() => readable?,
            _ = sink.ready(Interest::ERROR) => return Ok(End::Sink),
        };
        let mut buffer = vec![0; buffer_bytes];
        loop {
            match rustix::io::read(source, &mut buffer) {
                // A master says EIO when the last user of its terminal is gone.
                Ok(0) | Err(Errno::IO) => return Ok(End::Source),
                Ok(count) => {
                    if count >= BULK_BYTES && bulk == Bulk::Enlarges {
                        bulk = Bulk::IsNoMatter;
                        // Refused only when the machine has little memory left, and then the small pipe does.
                        let _ = fcntl_setpipe_size(source.get_ref(), PIPE_BYTES);
                    }
                    match write_all(sink, &buffer[..count]).await {
                        Ok(()) => {}
                        Err(error) if is_sink_gone(&error) => return Ok(End::Sink),
                        Err(error) => return Err(error),
                    }
                    tokio::task::yield_now().await;
                }
                Err(Errno::AGAIN) => break readable.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reads what nobody wants, so that the terminal's process does not wait for ever.
async fn discard(source: &AsyncFd<OwnedFd>) -> io::Result<End> {
    loop {
        let mut readable = source.readable().await?;
        let mut buffer = vec![0; TERMINAL_BYTES];
        loop {
            match rustix::io::read(source, &mut buffer) {
                Ok(0) | Err(Errno::IO) => return Ok(End::Source),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break readable.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut writable = sink.writable().await?;
        match rustix::io::write(sink.as_fd(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::AGAIN) => writable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_sink_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::CONNRESET | Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        process::{Command, Stdio},
    };

    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    fn pair() -> (UnixStream, Socket) {
        let (host, guest) = UnixStream::pair().unwrap();
        (host, Socket::new(guest.into()).unwrap())
    }

    /// Reads on a thread of its own, as the host does in another process.
    fn read_all(mut host: UnixStream) -> tokio::task::JoinHandle<Vec<u8>> {
        tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            host.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
    }

    #[tokio::test]
    async fn bulk_output_arrives_whole_and_ends() {
        let (host, stream) = pair();
        let (theirs, pump) = output(stream).unwrap();
        let sent = pattern(8 << 20);
        let writer = tokio::task::spawn_blocking({
            let sent = sent.clone();
            move || std::fs::File::from(theirs).write_all(&sent).unwrap()
        });
        let got = read_all(host);
        pump.await;
        writer.await.unwrap();
        assert!(got.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn bulk_input_arrives_whole_and_ends() {
        let (mut host, stream) = pair();
        let (theirs, pump) = input(stream).unwrap();
        let pump = tokio::spawn(pump);
        let sent = pattern(8 << 20);
        let writer = tokio::task::spawn_blocking({
            let sent = sent.clone();
            move || {
                host.write_all(&sent).unwrap();
                host.shutdown(std::net::Shutdown::Write).unwrap();
                host
            }
        });
        let got = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            std::fs::File::from(theirs).read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert!(got.await.unwrap() == sent);
        pump.await.unwrap();
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn output_of_a_child_left_in_the_background_still_arrives() {
        let (host, stream) = pair();
        let (theirs, pump) = output(stream).unwrap();
        let pump = tokio::spawn(pump);
        let mut shell = Command::new("/bin/sh")
            // A shell without job control gives its background /dev/null as stdin, hence descriptor 3.
            .args(["-c", "exec 3<&0; (read wait <&3; echo late) & echo early"])
            .stdin(Stdio::piped())
            .stdout(theirs)
            .spawn()
            .unwrap();
        let stdin = shell.stdin.take().unwrap();
        shell.wait().unwrap();
        let got = read_all(host);
        drop(stdin);
        assert_eq!(got.await.unwrap(), b"early\nlate\n");
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn input_ends_when_its_reader_is_gone_though_the_stream_is_open() {
        let (mut host, stream) = pair();
        let (theirs, pump) = input(stream).unwrap();
        let pump = tokio::spawn(pump);
        drop(theirs);
        pump.await.unwrap();
        assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host learns that nobody reads");
    }

    #[tokio::test]
    async fn a_reader_that_went_away_breaks_the_pipe() {
        let (host, stream) = pair();
        let (theirs, pump) = output(stream).unwrap();
        let pump = tokio::spawn(pump);
        drop(host);
        let status = tokio::task::spawn_blocking(|| {
            Command::new("/bin/sh").args(["-c", "exec yes 2>/dev/null"]).stdout(theirs).status().unwrap()
        });
        assert!(!status.await.unwrap().success());
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_holds_up_its_process_and_nothing_is_lost() {
        let (mut host, stream) = pair();
        let (theirs, pump) = output(stream).unwrap();
        let pump = tokio::spawn(pump);
        let sent = pattern(4 << 20);
        let writer = tokio::task::spawn_blocking({
            let sent = sent.clone();
            move || std::fs::File::from(theirs).write_all(&sent).unwrap()
        });
        let got = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            let mut piece = [0; 4097];
            loop {
                match host.read(&mut piece).unwrap() {
                    0 => return bytes,
                    count => bytes.extend_from_slice(&piece[..count]),
                }
                std::thread::yield_now();
            }
        });
        assert!(got.await.unwrap() == sent);
        writer.await.unwrap();
        pump.await.unwrap();
    }

    fn terminal() -> (Master, OwnedFd) {
        let fd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&fd).unwrap();
        unlockpt(&fd).unwrap();
        let user = ioctl_tiocgptpeer(&fd, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        (master(fd).unwrap(), user)
    }

    #[tokio::test]
    async fn a_terminal_carries_both_directions_and_ends_with_its_last_user() {
        let (master, user) = terminal();
        let (mut typist, keys) = pair();
        let (screen, display) = pair();
        let typing = tokio::spawn(terminal_input(keys, master.clone()));
        let showing = tokio::spawn(terminal_output(master, Some(display)));
        let got = read_all(screen);
        typist.write_all(b"echo it\nexit\n").unwrap();
        let mut shell = Command::new("/bin/sh")
            .env("PS1", "")
            .stdin(user.try_clone().unwrap())
            .stdout(user.try_clone().unwrap())
            .stderr(user)
            .spawn()
            .unwrap();
        tokio::task::spawn_blocking(move || shell.wait().unwrap()).await.unwrap();
        let shown = String::from_utf8(got.await.unwrap()).unwrap();
        assert!(shown.lines().any(|line| line == "it"), "{shown:?}");
        showing.await.unwrap();
        drop(typist);
        typing.await.unwrap();
    }

    #[tokio::test]
    async fn a_terminal_that_nobody_watches_does_not_block_its_process() {
        let (master, user) = terminal();
        let showing = tokio::spawn(terminal_output(master, None));
        tokio::task::spawn_blocking(move || {
            let mut user = std::fs::File::from(user);
            for _ in 0..64 {
                user.write_all(&[b'x'; 4096]).unwrap();
            }
        })
        .await
        .unwrap();
        showing.await.unwrap();
    }
}
