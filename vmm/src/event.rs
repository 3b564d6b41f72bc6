//! Everything that can wake the main loop.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, mpsc},
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{sys, vcpu::VcpuEnd};

/// One thing that happened in the machine. The launcher's messages come by the control socket, which the loop waits for as well.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A vCPU runs no more.
    VcpuEnded {
        /// Its index.
        vcpu: u8,
        /// Why.
        end: VcpuEnd,
    },
    /// A device or its server is lost for good.
    DeviceLost {
        /// Name of the device.
        device: String,
        /// What happened.
        message: String,
    },
}

/// The sending end, one for each thread.
#[derive(Debug, Clone)]
pub struct EventSender {
    queue: mpsc::Sender<Event>,
    wake: Arc<EventFd>,
}

/// The receiving end, with a descriptor to wait on.
#[derive(Debug)]
pub struct EventReceiver {
    queue: mpsc::Receiver<Event>,
    wake: Arc<EventFd>,
}

/// A queue of events.
pub fn queue() -> io::Result<(EventSender, EventReceiver)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let (sender, receiver) = mpsc::channel();
    Ok((EventSender { queue: sender, wake: wake.clone() }, EventReceiver { queue: receiver, wake }))
}

impl EventSender {
    /// Hands over an event. When nobody listens any more the machine is at its end anyhow.
    pub fn send(&self, event: Event) {
        if self.queue.send(event).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

impl EventReceiver {
    /// The next event, if there is one.
    pub fn take(&self) -> Option<Event> {
        self.queue.try_recv().ok().or_else(|| {
            // Empty: clear the descriptor, then look again for what came in between.
            let _ = self.wake.read();
            self.queue.try_recv().ok()
        })
    }

    /// The next event, or `None` at the deadline.
    pub fn take_until(&self, deadline: std::time::Instant) -> Option<Event> {
        self.queue.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())).ok()
    }
}

/// Readable when there may be an event.
impl AsFd for EventReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow_eventfd(&self.wake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_taken_once_and_the_descriptor_tells() {
        let (sender, receiver) = queue().expect("two descriptors");
        let event = || Event::VcpuEnded { vcpu: 0, end: VcpuEnd::Reset };
        assert_eq!(receiver.take(), None);
        sender.send(event());
        sender.send(event());
        assert_eq!(receiver.take(), Some(event()));
        assert_eq!(receiver.take(), Some(event()));
        assert_eq!(receiver.take(), None);
        assert!(receiver.wake.read().is_err(), "not readable when all is taken");
    }
}
