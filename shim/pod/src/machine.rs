//! The conversation with a running VMM, and the one place that knows whether the machine is gone, and why.
//!
//! Three sources tell of the machine's end: its own last message, the control socket, and the process's pidfd. They wake one task, which takes one
//! closed enum ([`Wake`]); the first that settles the matter counts. Everybody else waits on [`Machine::gone`].

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

use crate::{ErrorKind, PodError, error::guest_text, process::Spawned};

/// How long a VMM that has closed its control socket may take to end by itself, and the socket of one that has ended to run dry.
const HANGUP_GRACE: Duration = Duration::from_secs(1);
/// How long a machine may live without its file server: both end at about the same time, in any order.
const SERVER_GRACE: Duration = Duration::from_secs(1);
/// Most of the VMM's own words that is passed on: what a guest has taken over could say anything.
const WORDS_CHARS_MAX: usize = 1024;
/// How long a report may take.
const REPORT_DEADLINE: Duration = Duration::from_secs(2);

/// What is known of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// It may be running.
    Alive,
    /// It is gone; the sentence says how.
    Gone(Arc<str>),
}

/// Everything that can wake the machine's task.
#[derive(Debug)]
enum Wake {
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

/// A handle to the machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    wakes: mpsc::UnboundedSender<Wake>,
    known: watch::Receiver<Known>,
    process: Option<Arc<Spawned>>,
}

impl Machine {
    /// Takes over the control socket of a machine that was started.
    pub(crate) fn converse(control: UnixStream, process: Option<Arc<Spawned>>) -> Self {
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
            process: process.clone(),
            wakes: wakes.downgrade(),
            reports: VecDeque::new(),
            hangup: None,
            exited: false,
        };
        tokio::spawn(conversation.run(inbox));
        Self { wakes, known, process }
    }

    /// Its process.
    pub(crate) fn process(&self) -> Option<&Arc<Spawned>> {
        self.process.as_ref()
    }

    /// Pid of the VMM, or of this process when the machine lives in it.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().map_or_else(std::process::id, |p| u32::try_from(p.pid()).unwrap_or_default())
    }

    /// Resolves when the machine is gone, with a sentence that says how.
    pub(crate) async fn gone(&self) -> Arc<str> {
        let mut known = self.known.clone();
        match known.wait_for(|k| matches!(k, Known::Gone(_))).await.as_deref() {
            Ok(Known::Gone(sentence)) => Arc::clone(sentence),
            _ => Arc::from("the machine is gone"),
        }
    }

    /// The sentence, if it is gone.
    pub(crate) fn gone_already(&self) -> Option<Arc<str>> {
        match &*self.known.borrow() {
            Known::Gone(sentence) => Some(Arc::clone(sentence)),
            Known::Alive => None,
        }
    }

    /// The error of everything that needs a machine.
    pub(crate) fn gone_error(sentence: &str) -> PodError {
        PodError::new(ErrorKind::Unavailable, sentence)
    }

    /// Asks the VMM to stop.
    pub(crate) fn stop(&self) {
        let _ = self.wakes.send(Wake::Stop);
    }

    /// Gives the machine up: it is killed and gone for this reason.
    pub(crate) fn condemn(&self, reason: String) {
        let _ = self.wakes.send(Wake::Condemn(reason));
    }

    /// Gives the machine up when its file server dies: every file of its containers would hang for ever.
    pub(crate) fn depend_on(&self, server: Arc<Spawned>) {
        let machine = self.clone();
        tokio::spawn(async move {
            let _ = server.ended().await;
            // At once: the pod may stay for long after its machine.
            let how = server.reap().map(|status| status.to_string()).unwrap_or_default();
            if tokio::time::timeout(SERVER_GRACE, machine.gone()).await.is_err() {
                machine.condemn(format!("the {} died ({how}), and with it the files of all containers", server.what()));
            }
        });
    }

    /// Boot marks and counters.
    pub(crate) async fn report(&self) -> Result<Report, PodError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.wakes.send(Wake::Report(reply));
        tokio::select! {
            answer = tokio::time::timeout(REPORT_DEADLINE, answer) => match answer {
                Ok(Ok(report)) => Ok(report),
                Ok(Err(_)) => Err(Self::gone_error(&self.gone().await)),
                Err(_) => Err(PodError::new(ErrorKind::DeadlineExceeded, "the virtual machine monitor does not answer on its control socket")),
            },
            sentence = self.gone() => Err(Self::gone_error(&sentence)),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use vmm_control::BootFailure;

    use super::*;

    async fn send(to: &mut UnixStream, message: &FromMachine) {
        to.write_all(&frame::encode(message).expect("small")).await.expect("sent");
    }

    #[tokio::test]
    async fn the_first_word_on_the_end_counts() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        assert_eq!(machine.gone_already(), None);
        send(&mut theirs, &FromMachine::Ended(Ending::TripleFault)).await;
        drop(theirs);
        assert_eq!(&*machine.gone().await, "the guest kernel crashed (triple fault)");
    }

    #[tokio::test]
    async fn a_machine_that_cannot_be_built_says_why() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        send(&mut theirs, &FromMachine::Failed(BootFailure { step: "kernel".into(), message: "not an ELF".into() }))
            .await;
        assert_eq!(&*machine.gone().await, "the machine cannot be built (kernel): not an ELF");
        assert_eq!(machine.report().await.expect_err("gone").kind, ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn the_words_of_a_vmm_that_was_taken_over_are_fit_to_be_shown() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        let message = format!("{}\x1b]0;owned\x07", "x".repeat(100_000));
        send(&mut theirs, &FromMachine::Ended(Ending::DeviceFault { device: "\x1b[2J".into(), message })).await;
        let sentence = machine.gone().await;
        assert!(!sentence.contains(char::is_control), "{sentence:?}");
        assert!(sentence.len() < 2 * WORDS_CHARS_MAX, "{} bytes", sentence.len());
    }

    #[tokio::test]
    async fn noise_on_the_control_socket_is_an_end() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        theirs.write_all(&u32::MAX.to_be_bytes()).await.expect("sent");
        assert!(machine.gone().await.contains("over the limit"));
    }

    #[tokio::test]
    async fn a_killed_vmm_is_told_by_its_signal_and_reaped() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
        let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
        let machine = Machine::converse(ours, Some(Arc::clone(&process)));
        process.kill();
        drop(theirs);
        assert!(machine.gone().await.contains("signal: 9"), "{}", machine.gone().await);
        assert!(!std::path::Path::new(&format!("/proc/{}", machine.pid())).exists());
    }

    #[tokio::test]
    async fn the_last_message_counts_even_when_the_end_of_the_process_is_heard_first() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let child = Command::new("true").spawn().expect("spawned");
        let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
        let machine = Machine::converse(ours, Some(Arc::clone(&process)));
        process.ended().await.expect("ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
        send(&mut theirs, &FromMachine::Ended(Ending::GuestReset)).await;
        drop(theirs);
        assert!(machine.gone().await.contains("switched the machine off"));
    }

    #[tokio::test]
    async fn a_machine_does_not_outlive_its_file_server() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        let child = Command::new("true").spawn().expect("spawned");
        machine.depend_on(Arc::new(Spawned::hold("file server", child).expect("held")));
        assert!(machine.gone().await.starts_with("the file server died (exit status: 0)"));
    }

    #[tokio::test]
    async fn a_file_server_that_ends_after_its_machine_leaves_no_zombie() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let machine = Machine::converse(ours, None);
        drop(theirs);
        machine.gone().await;
        let server =
            Arc::new(Spawned::hold("file server", Command::new("true").spawn().expect("spawned")).expect("held"));
        machine.depend_on(Arc::clone(&server));
        let begun = std::time::Instant::now();
        while std::path::Path::new(&format!("/proc/{}", server.pid())).exists() {
            assert!(begun.elapsed() < Duration::from_secs(5), "it is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_condemned_machine_is_killed_for_the_reason_given() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let child = Command::new("sleep").arg("1000").spawn().expect("spawned");
        let process = Arc::new(Spawned::hold("vmm", child).expect("held"));
        let machine = Machine::converse(ours, Some(Arc::clone(&process)));
        machine.condemn("the agent went silent".into());
        assert_eq!(&*machine.gone().await, "the agent went silent");
        assert!(process.ended_within(Duration::from_secs(5)).await);
    }
}
