//! The conversation with a running VMM, and the one place that knows whether the machine is gone, and why.
//!
//! Three sources tell of the machine's end: its own last message, the control socket, and the process's pidfd. They wake one task, which takes one
//! closed enum ([`Wake`]); the first that settles the matter counts. Everybody else waits on [`Machine::gone`].

mod conversation;
mod words;

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};
use vmm_control::{InterfaceSpec, Report, ToMachine};

use self::conversation::{Known, NetworkChange, Wake};
use crate::{ErrorKind, PodError, process::Spawned};

/// How long a machine may live without its file server: both end at about the same time, in any order.
const SERVER_GRACE: Duration = Duration::from_secs(1);
/// How long an answer of the VMM may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

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
        let (wakes, known) = conversation::begin(control, process.clone());
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

    /// Puts a network device into an empty place.
    pub(crate) async fn attach_network(
        &self,
        place: usize,
        interface: InterfaceSpec,
        taps: Vec<OwnedFd>,
        vhosts: Vec<OwnedFd>,
    ) -> Result<(), PodError> {
        let message = ToMachine::AttachNetwork { place, taps: taps.len(), vhosts: vhosts.len(), interface };
        self.change_network(message, taps.into_iter().chain(vhosts).collect()).await
    }

    /// Takes a network device out of its place.
    pub(crate) async fn detach_network(&self, place: usize) -> Result<(), PodError> {
        self.change_network(ToMachine::DetachNetwork { place }, Vec::new()).await
    }

    async fn change_network(&self, message: ToMachine, descriptors: Vec<OwnedFd>) -> Result<(), PodError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.wakes.send(Wake::Network(NetworkChange { message, descriptors, reply }));
        match self.answer(answer).await? {
            None => Ok(()),
            Some(failure) => Err(PodError::new(ErrorKind::Internal, failure)),
        }
    }

    /// Boot marks and counters.
    pub(crate) async fn report(&self) -> Result<Report, PodError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.wakes.send(Wake::Report(reply));
        self.answer(answer).await
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, PodError> {
        tokio::select! {
            answer = tokio::time::timeout(ANSWER_DEADLINE, answer) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(Self::gone_error(&self.gone().await)),
                Err(_) => Err(PodError::new(ErrorKind::DeadlineExceeded, "the virtual machine monitor does not answer on its control socket")),
            },
            sentence = self.gone() => Err(Self::gone_error(&sentence)),
        }
    }
}

#[cfg(test)]
mod tests;
