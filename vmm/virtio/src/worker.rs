//! The thread of an active device.
//!
//! A device is served by one thread and nobody else touches its queues meanwhile. [`Worker::spawn`] moves the serving state into the thread,
//! [`Worker::stop`] moves it out again, so there is nothing to lock. A thread that meets a [`Fault`] asks the driver for a reset and ends;
//! its state waits to be collected by `stop`. When the host is to blame for the fault, whoever owns the machine is told as well.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{
    device::{ActivateError, Interrupt},
    fault::{Fault, with_causes},
    log_limit::warn_limited,
};

/// Stack of a device's thread. Their buffers live on the heap, and 64 KiB is several times what the deepest path uses.
const STACK_BYTES: usize = 128 * 1024;

/// What a device's thread does.
pub(crate) trait Serve: Send + 'static {
    /// Serves until `stop` is readable. An error asks the driver for a reset.
    fn serve(&mut self, stop: &EventFd) -> Result<(), Fault>;
}

/// A running thread and the way to end it.
pub(crate) struct Worker<S> {
    thread: JoinHandle<S>,
    stop: EventFd,
}

impl<S: Serve> Worker<S> {
    /// Starts to serve. `name` is for logs and `/proc`, at most 15 bytes.
    pub(crate) fn spawn(name: &str, mut state: S, interrupt: Arc<dyn Interrupt>) -> Result<Self, ActivateError> {
        let thread_error = |source: io::Error| ActivateError::Thread { device: name.to_owned(), source };
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(thread_error)?;
        let stop_seen = stop.try_clone().map_err(thread_error)?;
        let device = name.to_owned();
        let body = move || {
            if let Err(fault) = state.serve(&stop_seen) {
                let cause = with_causes(&fault);
                warn_limited!("device {device}: {cause}");
                if fault.is_the_hosts() { interrupt.lost(&cause) } else { interrupt.needs_reset() }
            }
            state
        };
        let thread =
            thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body).map_err(thread_error)?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread and returns its state; `None` when it panicked.
    pub(crate) fn stop(self) -> Option<S> {
        if let Err(error) = self.stop.write(1) {
            // Only a full counter fails, and then the thread sees it readable just the same.
            log::debug!("the stop event was already set: {error}");
        }
        self.thread.join().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chain::ChainFault, driver::RecordedInterrupt};

    struct Waits {
        rounds: u32,
        breaks: Option<fn() -> Fault>,
    }

    fn host_fault() -> Fault {
        Fault::Io { operation: "a test", source: io::Error::other("planted") }
    }

    fn guest_fault() -> Fault {
        Fault::Chain { index: 0, source: ChainFault::TooShort { len: 0, wanted: 1 } }
    }

    impl Serve for Waits {
        fn serve(&mut self, stop: &EventFd) -> Result<(), Fault> {
            self.rounds += 1;
            if let Some(fault) = self.breaks {
                return Err(fault());
            }
            let events = crate::events::Events::new().map_err(Fault::io("epoll"))?;
            events.watch(stop, vmm_sys_util::epoll::EventSet::IN, 0).map_err(Fault::io("epoll"))?;
            while events.wait(None).map_err(Fault::io("epoll"))?.len() == 0 {}
            Ok(())
        }
    }

    #[test]
    fn stop_ends_the_thread_and_gives_its_state_back() {
        let interrupt = RecordedInterrupt::new();
        let worker = Worker::spawn("test", Waits { rounds: 0, breaks: None }, interrupt.clone()).expect("a thread");
        assert_eq!(worker.stop().map(|state| state.rounds), Some(1));
        assert!(!interrupt.reset_asked());
    }

    #[test]
    fn a_thread_that_fails_asks_for_a_reset_and_keeps_its_state() {
        let interrupt = RecordedInterrupt::new();
        let failing = Waits { rounds: 0, breaks: Some(guest_fault) };
        let worker = Worker::spawn("test", failing, interrupt.clone()).expect("a thread");
        assert!(interrupt.wait_for_reset());
        assert_eq!(worker.stop().map(|state| state.rounds), Some(1));
        assert!(interrupt.losses().is_empty(), "the guest's own fault is between it and the device");
    }

    #[test]
    fn a_fault_of_the_host_is_told_to_the_machine_with_its_causes() {
        let interrupt = RecordedInterrupt::new();
        let failing = Waits { rounds: 0, breaks: Some(host_fault) };
        let worker = Worker::spawn("test", failing, interrupt.clone()).expect("a thread");
        worker.stop();
        assert!(interrupt.reset_asked());
        assert_eq!(interrupt.losses(), ["a test failed on the host: planted"]);
    }
}
