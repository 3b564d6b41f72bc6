//! The one task that talks with the VMM and knows whether the machine is gone, and why.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
};
use vmm_control::{Ending, FromMachine, Report, ToMachine, descriptors, frame};

use super::words::Words;
use crate::{error::guest_text, process::Spawned};

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
    /// The control socket has ended, in this way.
    Hangup(String),
    /// The process has ended, and all that it said is told.
    Exited,
    /// Ask for a report.
    Report(oneshot::Sender<Report>),
    /// Ask for a change of a network device.
    Network(NetworkChange),
    /// Ask the VMM to stop.
    Stop,
    /// Somebody found the machine useless, for this reason.
    Condemn(String),
}

/// A change of a network device, with what goes with it.
#[derive(Debug)]
pub(super) struct NetworkChange {
    /// The order.
    pub message: ToMachine,
    /// The device's ends on the host.
    pub descriptors: Vec<OwnedFd>,
    /// Takes why it was not done, if it was not.
    pub reply: oneshot::Sender<Option<String>>,
}

/// Begins the conversation: where to wake its task, and where it tells what it knows.
pub(super) fn begin(
    control: UnixStream,
    process: Option<Arc<Spawned>>,
) -> (mpsc::UnboundedSender<Wake>, watch::Receiver<Known>) {
    let (wakes, inbox) = mpsc::unbounded_channel();
    let (tell, known) = watch::channel(Known::Alive);
    let (read, write) = control.into_split();
    tokio::spawn(listen(Words::new(read), process.clone(), wakes.clone()));
    let (reports, networks) = (VecDeque::new(), VecDeque::new());
    let conversation = Conversation { write, tell, process, reports, networks, hangup: None };
    tokio::spawn(conversation.run(inbox));
    (wakes, known)
}

/// Passes on all that comes of the VMM, the end of its process last. The kernel closes a process's descriptors before it tells of its end, so
/// neither event waits for the other: at a hang-up the process is ending, and after its end the socket holds its last words.
async fn listen(mut words: Words, process: Option<Arc<Spawned>>, wakes: mpsc::UnboundedSender<Wake>) {
    let hangup = tokio::select! {
        why = pass_on(&mut words, &wakes) => Some(why),
        () = ended(process.as_deref()) => None,
    };
    match hangup {
        Some(why) => {
            let _ = wakes.send(Wake::Hangup(why));
            ended(process.as_deref()).await;
        }
        None => {
            words.hear_the_rest();
            while let Ok(Some(message)) = words.next() {
                let _ = wakes.send(Wake::Message(message));
            }
        }
    }
    let _ = wakes.send(Wake::Exited);
}

/// Passes messages on until the socket ends; says how it did.
async fn pass_on(words: &mut Words, wakes: &mpsc::UnboundedSender<Wake>) -> String {
    loop {
        match words.next() {
            Ok(Some(message)) => drop(wakes.send(Wake::Message(message))),
            Ok(None) => {
                if !matches!(words.hear().await, Ok(true)) {
                    return "it closed its control socket".to_owned();
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}

/// The end of the process; pending where there is none.
async fn ended(process: Option<&Spawned>) {
    let Some(process) = process else { return std::future::pending().await };
    if let Err(error) = process.ended().await {
        log::error!("cannot watch the {}: {error}", process.what());
        process.kill();
    }
}

struct Conversation {
    write: OwnedWriteHalf,
    tell: watch::Sender<Known>,
    process: Option<Arc<Spawned>>,
    reports: VecDeque<oneshot::Sender<Report>>,
    /// Who waits for a network device; the VMM answers in order.
    networks: VecDeque<oneshot::Sender<Option<String>>>,
    /// Why the control socket ended.
    hangup: Option<String>,
}

impl Conversation {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Wake>) {
        while let Some(wake) = inbox.recv().await {
            match wake {
                Wake::Message(message) => self.hear(message),
                Wake::Hangup(why) => self.hung_up(why),
                Wake::Exited => self.conclude(),
                Wake::Report(reply) => {
                    self.reports.push_back(reply);
                    self.say(&ToMachine::Report).await;
                }
                Wake::Network(change) => self.change_network(change).await,
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
            FromMachine::Report(report) => {
                if let Some(reply) = self.reports.pop_front() {
                    // Who asked may have gone.
                    let _ = reply.send(report);
                }
            }
            FromMachine::Failed(failure) => self.gone(format!(
                "the machine cannot be built ({}): {}",
                vmm_words(&failure.step),
                vmm_words(&failure.message)
            )),
            FromMachine::NetworkChanged { failure, .. } => {
                if let Some(reply) = self.networks.pop_front() {
                    let _ = reply.send(failure.map(|failure| vmm_words(&failure)));
                }
            }
            FromMachine::Ended(ending) => self.gone(ending_sentence(&ending)),
        }
    }

    /// A VMM without its launcher is of no use. It holds its socket as long as it lives, so it is ending already, and SIGKILL changes nothing any
    /// more; one that was taken over, and lives on without a socket, is ended by it.
    fn hung_up(&mut self, why: String) {
        self.hangup = Some(why);
        match &self.process {
            Some(process) => process.kill(),
            None => self.conclude(),
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
        self.networks.clear();
        self.tell.send_if_modified(|known| {
            let first = *known == Known::Alive;
            if first {
                *known = Known::Gone(sentence.into());
            }
            first
        });
    }

    /// The descriptors go behind the message, before anything else is said.
    async fn change_network(&mut self, change: NetworkChange) {
        self.networks.push_back(change.reply);
        self.say(&change.message).await;
        if change.descriptors.is_empty() {
            return;
        }
        let all: Vec<_> = change.descriptors.iter().map(AsFd::as_fd).collect();
        let socket: &UnixStream = self.write.as_ref();
        let send = || descriptors::send(socket, &all);
        if let Err(error) = socket.async_io(Interest::WRITABLE, send).await {
            // The VMM waits for them and hears nothing else any more.
            self.gone(format!("a device's ends cannot be passed to the virtual machine monitor: {error}"));
            self.process.iter().for_each(|process| process.kill());
        }
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
