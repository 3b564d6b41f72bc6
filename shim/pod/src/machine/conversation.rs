//! The one task that talks with the VMM and knows whether the machine is gone, and why.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
};
use vmm_control::{Ending, FromMachine, Report, ToMachine, frame};

use crate::{error::guest_text, process::Spawned};

/// How long a VMM that has closed its control socket may take to end by itself, and the socket of one that has ended to run dry.
const HANGUP_GRACE: Duration = Duration::from_secs(1);
/// Most of the VMM's own words that is passed on: what a guest has taken over could say anything.
pub(super) const WORDS_CHARS_MAX: usize = 1024;

/// What is known of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It may be running.
    Alive,
    /// It is gone; the sentence says how.
    Gone(Arc<str>),
}

/// Everything that can wake the machine's task.
#[derive(Debug)]
pub(super) enum Wake {
    /// The VMM says something.
    Message(FromMachine),
    /// The control socket has ended.
    Hangup(Option<frame::FrameError>),
    /// The process has ended.
    Exited,
    /// One of the two above had its time to be followed by the other.
    GraceOver,
    /// Ask for a report.
    Report(oneshot::Sender<Report>),
    /// Ask the VMM to stop.
    Stop,
    /// Somebody found the machine useless, for this reason.
    Condemn(String),
}

/// Begins the conversation: where to wake its task, and where it tells what it knows.
pub(super) fn begin(
    control: UnixStream,
    process: Option<Arc<Spawned>>,
) -> (mpsc::UnboundedSender<Wake>, watch::Receiver<Known>) {
    let (wakes, inbox) = mpsc::unbounded_channel();
    let (tell, known) = watch::channel(Known::Alive);
    let (read, write) = control.into_split();
    tokio::spawn(listen(read, wakes.clone()));
    if let Some(process) = process.clone() {
        tokio::spawn(watch_process(process, wakes.clone()));
    }
    let conversation = Conversation {
        write,
        tell,
        process,
        wakes: wakes.downgrade(),
        reports: VecDeque::new(),
        hangup: None,
        exited: false,
    };
    tokio::spawn(conversation.run(inbox));
    (wakes, known)
}

async fn listen(mut read: OwnedReadHalf, wakes: mpsc::UnboundedSender<Wake>) {
    let end = loop {
        match read_message(&mut read).await {
            Ok(message) => {
                if wakes.send(Wake::Message(message)).is_err() {
                    return;
                }
            }
            Err(frame::FrameError::Closed) => break None,
            Err(error) => break Some(error),
        }
    };
    let _ = wakes.send(Wake::Hangup(end));
}

async fn read_message(read: &mut OwnedReadHalf) -> Result<FromMachine, frame::FrameError> {
    let mut prefix = [0u8; 4];
    read.read_exact(&mut prefix).await.map_err(|_| frame::FrameError::Closed)?;
    let mut body = vec![0u8; frame::body_len(prefix)?];
    read.read_exact(&mut body).await.map_err(frame::FrameError::Io)?;
    frame::decode(&body)
}

async fn watch_process(process: Arc<Spawned>, wakes: mpsc::UnboundedSender<Wake>) {
    if let Err(error) = process.ended().await {
        log::error!("cannot watch the {}: {error}", process.what());
        process.kill();
    }
    let _ = wakes.send(Wake::Exited);
}

struct Conversation {
    write: OwnedWriteHalf,
    tell: watch::Sender<Known>,
    process: Option<Arc<Spawned>>,
    wakes: mpsc::WeakUnboundedSender<Wake>,
    reports: VecDeque<oneshot::Sender<Report>>,
    /// Why the control socket ended.
    hangup: Option<String>,
    /// The process has ended.
    exited: bool,
}

impl Conversation {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Wake>) {
        while let Some(wake) = inbox.recv().await {
            match wake {
                Wake::Message(message) => self.hear(message),
                Wake::Hangup(error) => self.hung_up(error),
                Wake::Exited => self.exited(),
                Wake::GraceOver => self.grace_over(),
                Wake::Report(reply) => {
                    self.reports.push_back(reply);
                    self.say(&ToMachine::Report).await;
                }
                Wake::Stop => self.say(&ToMachine::Stop).await,
                Wake::Condemn(reason) => {
                    self.gone(reason);
                    self.process.iter().for_each(|p| p.kill());
                }
            }
        }
    }

    fn hear(&mut self, message: FromMachine) {
        match message {
            FromMachine::Booting { kvm, kernel } => log::debug!("booting the {kernel:?} kernel on {kvm:?} KVM"),
            FromMachine::Report(report) => drop(self.reports.pop_front().map(|reply| reply.send(report))),
            FromMachine::Failed(failure) => self.gone(format!(
                "the machine cannot be built ({}): {}",
                vmm_words(&failure.step),
                vmm_words(&failure.message)
            )),
            FromMachine::Ended(ending) => self.gone(ending_sentence(&ending)),
        }
    }

    /// The socket and the process end at the same time and are heard in any order; what the VMM said last comes before both.
    fn hung_up(&mut self, error: Option<frame::FrameError>) {
        self.hangup = Some(error.map_or_else(|| "it closed its control socket".to_owned(), |e| e.to_string()));
        self.conclude_or_wait();
    }

    fn exited(&mut self) {
        self.exited = true;
        self.conclude_or_wait();
    }

    fn conclude_or_wait(&mut self) {
        if self.hangup.is_some() && (self.exited || self.process.is_none()) {
            return self.conclude();
        }
        let wakes = self.wakes.clone();
        tokio::spawn(async move {
            tokio::time::sleep(HANGUP_GRACE).await;
            wakes.upgrade().map(|wakes| wakes.send(Wake::GraceOver))
        });
    }

    fn grace_over(&mut self) {
        if self.exited {
            self.conclude();
        } else if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Without a last message: tells what can be seen from outside.
    fn conclude(&mut self) {
        let status = self.process.as_ref().and_then(|p| p.reap()).map(|status| status.to_string());
        let how = status.or_else(|| self.hangup.clone()).unwrap_or_default();
        self.gone(format!("the virtual machine monitor died ({how})"));
    }

    /// The first sentence counts; whoever waits for a report is let go.
    fn gone(&mut self, sentence: String) {
        self.reports.clear();
        self.tell.send_if_modified(|known| {
            let first = *known == Known::Alive;
            if first {
                *known = Known::Gone(sentence.into());
            }
            first
        });
    }

    /// A socket that cannot be written to is noticed by its reader.
    async fn say(&mut self, message: &ToMachine) {
        match frame::encode(message) {
            Ok(bytes) => drop(self.write.write_all(&bytes).await),
            Err(error) => log::error!("{error}"),
        }
    }
}

fn ending_sentence(ending: &Ending) -> String {
    match ending {
        Ending::Stopped => "the machine was stopped".to_owned(),
        Ending::GuestReset => "the guest switched the machine off or reset it (a kernel panic ends so, too)".to_owned(),
        Ending::TripleFault => "the guest kernel crashed (triple fault)".to_owned(),
        Ending::VcpuFault { vcpu, message } => format!("KVM could not go on with vCPU {vcpu}: {}", vmm_words(message)),
        Ending::DeviceFault { device, message } => {
            format!("the device {} failed: {}", vmm_words(device), vmm_words(message))
        }
    }
}

fn vmm_words(text: &str) -> String {
    guest_text(text.as_bytes(), WORDS_CHARS_MAX)
}
