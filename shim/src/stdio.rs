//! A process's stdio on the host: containerd's fifos on one side, the pod's streams on the other.
//!
//! # Who holds which end, and why
//! | fifo | we hold | so that |
//! |---|---|---|
//! | stdin | from the start on the read end, and a write end until `CloseIO` | a client that detaches does not end the process's input |
//! | stdout, stderr | the write end, and a read end until the drain | a client that detaches does not kill the process |
//!
//! A fifo that nobody reads yet is not written before somebody does ([`arrival`]): a process may be over before its reader has come.
//!
//! # The end
//! The news of an exit waits a moment for the reader ([`unread`]). A process's output is complete when its streams have ended and everything is in the fifos: [`Stdio::drain`], which `Delete` waits
//! for. Then we give up our read ends: with no reader left, what is still there is for nobody; a reader that is slow gets the time it
//! takes, as long as it moves. A logging program sees the end of its pipes and gets time to write down what it has.

mod arrival;
mod fifo;
pub mod logger;
pub mod target;
pub mod transfer;
pub mod unread;

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use pod::{ErrorKind, ProcessStreams, StdioWanted};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use self::{
    arrival::Arrival,
    fifo::{Input, Sink},
    logger::{Logger, Owner},
    target::Target,
    transfer::Progress,
    unread::{Fifo, Unread},
};
use crate::refusal::Refusal;

/// How long an output stream whose process has ended may stay silent without ending: a descendant still holds it.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long the reader of an ended process's output may take to come: containerd has named the fifo, so it is on its way. (Tests have less of it.)
const READER_COMES_WITHIN: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };
/// How long a reader that is there may leave its fifo full after the process has ended.
const READER_PATIENCE: Duration = Duration::from_secs(60);

/// Where containerd wants stdio; an empty path is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Fifo to read from.
    pub stdin: String,
    /// Fifo to write to, `file://` to append to, or `binary://` to start: see [`target`].
    pub stdout: String,
    /// The same for errors; unused with a terminal.
    pub stderr: String,
    /// A terminal: its two directions are stdin and stdout.
    pub terminal: bool,
}

impl Paths {
    /// What the pod must connect. `size` is the terminal's, in columns and rows, 0 where unknown.
    pub fn wanted(&self, size: (u16, u16)) -> StdioWanted {
        StdioWanted {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
            terminal: self.terminal.then_some(size),
        }
    }
}

/// The host's ends, open; not yet connected to a process.
pub struct Opened {
    stdin: Option<Input>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    terminal: bool,
    loggers: Vec<Logger>,
}

impl Opened {
    /// Opens what `paths` name. Waits for nobody but a logging program, until it is ready.
    ///
    /// # Errors
    /// A path that cannot be opened, or a program that cannot be started; the message names it and its field.
    pub async fn open(paths: &Paths, owner: Owner<'_>) -> Result<Self, Refusal> {
        let mut opened =
            Self { stdin: None, stdout: None, stderr: None, terminal: paths.terminal, loggers: Vec::new() };
        opened.stdin = input(&paths.stdin)?;
        let stderr = if paths.terminal { "" } else { &paths.stderr };
        opened.open_outputs(&paths.stdout, stderr, owner).await?;
        Ok(opened)
    }

    // One program reads both outputs if both name the same.
    async fn open_outputs(&mut self, stdout: &str, stderr: &str, owner: Owner<'_>) -> Result<(), Refusal> {
        if let Some((output, errors)) = self.open_output("stdout", stdout, owner).await? {
            self.stdout = Some(output);
            self.stderr = errors.filter(|_| stderr == stdout);
        }
        if self.stderr.is_none()
            && let Some((output, errors)) = self.open_output("stderr", stderr, owner).await?
        {
            self.stderr = errors.or(Some(output));
        }
        Ok(())
    }

    // What the field names, and of a program the second pipe too, which is for errors.
    async fn open_output(
        &mut self,
        field: &str,
        text: &str,
        owner: Owner<'_>,
    ) -> Result<Option<(Sink, Option<Sink>)>, Refusal> {
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(match Target::parse(field, text)? {
            Target::Fifo(path) => (Sink::fifo(field, &path)?, None),
            Target::File(path) => (Sink::file(field, &path)?, None),
            Target::Program(program) => {
                let (logger, pipes) = Logger::start(&program, owner).await.map_err(|refusal| refusal.about(field))?;
                self.loggers.push(logger);
                let sink = |write| Sink::Pipe { write, read_hold: None };
                (sink(pipes.output), Some(sink(pipes.errors)))
            }
        }))
    }

    /// Starts to copy between these ends and the process's.
    ///
    /// # Errors
    /// The runtime cannot watch a descriptor: out of memory or descriptors.
    pub fn connect(self, streams: ProcessStreams) -> io::Result<Stdio> {
        let mut stdio = Stdio {
            waiting: self.stdin.zip(streams.stdin),
            terminal: self.terminal,
            begun: false,
            stdin: None,
            stdin_hold: None,
            outputs: Vec::new(),
            loggers: self.loggers,
        };
        for (sink, stream) in [(self.stdout, streams.stdout), (self.stderr, streams.stderr)] {
            if let (Some(sink), Some(stream)) = (sink, stream) {
                stdio.outputs.push(Output::start(sink, stream)?);
            }
        }
        Ok(stdio)
    }
}

/// A process's stdio under way. Dropping it ends it at once.
pub struct Stdio {
    /// The input until the process starts.
    waiting: Option<(Input, UnixStream)>,
    terminal: bool,
    /// The process may have said something.
    begun: bool,
    stdin: Option<AbortHandle>,
    stdin_hold: Option<OwnedFd>,
    outputs: Vec<Output>,
    loggers: Vec<Logger>,
}

impl Stdio {
    /// Says that the process is about to start, and begins to read its input. Not earlier: opening the fifo lets a client write, and one
    /// that has nothing more to write says `CloseIO` only if it has been told of the process by then.
    ///
    /// # Errors
    /// The fifo is gone, or the runtime cannot watch it.
    pub fn begin(&mut self) -> Result<(), Refusal> {
        self.begun = true;
        let Some((input, stream)) = self.waiting.take() else { return Ok(()) };
        let (read, hold) = input.open()?;
        let task = copy_in(read, stream, self.terminal)
            .map_err(|error| Refusal::new(ErrorKind::Internal, format!("cannot copy the standard input: {error}")))?;
        self.stdin_hold = Some(hold);
        self.stdin = Some(task);
        Ok(())
    }

    /// Lets the process's input end once what is in the fifo has been read and every other writer has closed.
    pub fn close_stdin(&mut self) {
        // Never opened: closing the stream is the end of the input.
        self.waiting = None;
        self.stdin_hold = None;
    }

    /// The outputs that somebody reads from a fifo, to be waited for.
    pub fn unread(&self) -> Vec<Unread> {
        let unread = |output: &Output| {
            let fifo = output.fifo()?;
            Some(Unread { fifo, progress: Arc::clone(&output.progress) })
        };
        self.outputs.iter().filter_map(unread).collect()
    }

    /// Waits until all that the ended process wrote is where it belongs, or nobody will ever read it.
    pub async fn drain(mut self) {
        self.close_stdin();
        for output in std::mem::take(&mut self.outputs) {
            output.drain(self.begun).await;
        }
        for logger in std::mem::take(&mut self.loggers) {
            logger.end().await;
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.stdin.iter().for_each(AbortHandle::abort);
    }
}

struct Output {
    task: JoinHandle<()>,
    read_hold: Option<OwnedFd>,
    arrival: Option<Arc<Arrival>>,
    progress: Arc<Progress>,
}

impl Output {
    fn start(sink: Sink, stream: UnixStream) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let (task, read_hold, arrival) = match sink {
            Sink::Pipe { write, read_hold } => (copy_out(stream, write, Arc::clone(&progress))?, read_hold, None),
            Sink::Awaited(arrival) => (copy_out_later(stream, &arrival, Arc::clone(&progress))?, None, Some(arrival)),
            Sink::File(file) => (append(stream, file, Arc::clone(&progress))?, None, None),
        };
        Ok(Self { task, read_hold, arrival, progress })
    }

    /// Its fifo, if it goes to one.
    fn fifo(&self) -> Option<Fifo> {
        match &self.arrival {
            Some(arrival) => Some(Fifo::Awaited(Arc::clone(arrival))),
            None => self.read_hold.as_ref()?.try_clone().ok().map(Fifo::End),
        }
    }

    // Of a process that never began nobody expects a word.
    async fn drain(mut self, begun: bool) {
        self.read_hold = None;
        if let Some(arrival) = &self.arrival {
            if begun {
                arrival.within(READER_COMES_WITHIN).await;
            }
            arrival.give_up();
        }
        let mut still = Duration::ZERO;
        while timeout(SILENCE_MAX, &mut self.task).await.is_err() {
            if self.progress.take_moved() > 0 {
                still = Duration::ZERO;
                continue;
            }
            still += SILENCE_MAX;
            let patience = if self.progress.waits_for_reader() { READER_PATIENCE } else { SILENCE_MAX };
            if still >= patience {
                log::warn!("output of an ended process was given up after {still:?} without a byte moving");
                return;
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.task.abort();
        self.arrival.iter().for_each(|arrival| arrival.give_up());
    }
}

fn input(text: &str) -> Result<Option<Input>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    match Target::parse("stdin", text)? {
        Target::Fifo(path) => Input::check(path).map(Some),
        _ => Err(Refusal::new(ErrorKind::InvalidArgument, format!("cannot read stdin from {text:?}: give a fifo"))),
    }
}

fn copy_in(fifo: OwnedFd, stream: UnixStream, terminal: bool) -> io::Result<AbortHandle> {
    let source = watched(fifo, Interest::READABLE)?;
    let sink = watched_stream(stream, Interest::WRITABLE)?;
    let task = tokio::spawn(async move {
        // A process that closed its input is no error; dropping the fifo tells the writer.
        let outcome = transfer::splice_all(&source, &sink, &Progress::default()).await;
        drop(source);
        if outcome.is_ok() && terminal {
            // A terminal has no end of input of its own: hanging up would end the session.
            std::future::pending::<()>().await;
        }
    });
    Ok(task.abort_handle())
}

fn copy_out(stream: UnixStream, fifo: OwnedFd, progress: Arc<Progress>) -> io::Result<JoinHandle<()>> {
    let source = watched_stream(stream, Interest::READABLE)?;
    let sink = watched(fifo, Interest::WRITABLE)?;
    Ok(tokio::spawn(async move { copy(&source, &sink, &progress).await }))
}

// The process waits meanwhile, once what it wrote fills its stream.
fn copy_out_later(stream: UnixStream, fifo: &Arc<Arrival>, progress: Arc<Progress>) -> io::Result<JoinHandle<()>> {
    let source = watched_stream(stream, Interest::READABLE)?;
    let writer = fifo.writer()?;
    Ok(tokio::spawn(async move {
        let write = writer.await.map_err(io::Error::other).flatten();
        match write.and_then(|write| watched(write, Interest::WRITABLE)) {
            Ok(sink) => copy(&source, &sink, &progress).await,
            Err(error) => {
                log::warn!("an output is lost, as its fifo cannot be opened: {error}");
                progress.end();
            }
        }
    }))
}

async fn copy(source: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>, progress: &Progress) {
    if let Err(error) = transfer::splice_all(source, sink, progress).await {
        log::debug!("an output stream ended early: {error}");
    }
    progress.end();
}

fn append(stream: UnixStream, file: File, progress: Arc<Progress>) -> io::Result<JoinHandle<()>> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    Ok(tokio::spawn(async move {
        if let Err(error) = transfer::append_all(stream, file, &progress).await {
            log::warn!("cannot write a container's log: {error}");
        }
    }))
}

fn watched_stream(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    stream.set_nonblocking(true)?;
    watched(stream.into(), interest)
}

#[expect(
    deprecated,
    reason = "the unsafe successor is for types that may close their descriptor behind tokio's back; this one cannot"
)]
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

#[cfg(test)]
mod tests;
