//! The link: whether there is an interface behind the device, and how it comes and goes.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::NetBackend;

/// What is behind a device.
#[derive(Default)]
pub(super) struct Interface {
    /// The only source of what the guest sends, where that is checked.
    pub(super) mac: [u8; 6],
    /// The host's ends of all queue pairs, in order; empty while the link is down.
    pub(super) backends: Vec<Box<dyn NetBackend>>,
}

/// Gives a network device its interface, or takes it away, at any time: before the driver is there, while it runs, between two lives.
#[derive(Clone)]
pub struct NetLink(Arc<Link>);

impl NetLink {
    pub(super) fn new(pairs: usize, up: bool) -> io::Result<(Self, Arc<Link>)> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let link = Arc::new(Link { pairs, up: AtomicBool::new(up), change: Mutex::default(), wake });
        Ok((Self(link.clone()), link))
    }

    /// Joins the device to an interface, one backend a queue pair, in place of one that it may have; the link comes up.
    /// `mac` is the address by which the guest may send from now on. The configuration space keeps the one that the device began with.
    pub fn attach(&self, mac: [u8; 6], backends: Vec<Box<dyn NetBackend>>) -> io::Result<()> {
        if backends.len() != self.0.pairs {
            let message = format!("the device has {} queue pairs, not {}", self.0.pairs, backends.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.0.replace(Interface { mac, backends });
        Ok(())
    }

    /// Takes the interface away; the link goes down.
    pub fn detach(&self) {
        self.0.replace(Interface::default());
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }
}

/// What the handles, the configuration space and the device's thread share.
pub(super) struct Link {
    pairs: usize,
    up: AtomicBool,
    /// What the device has not taken yet. Locked for moments only, and by nobody that the guest can hold up.
    change: Mutex<Option<Interface>>,
    wake: EventFd,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    /// Readable when a running device should look for a change.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The latest change that was not taken yet.
    pub(super) fn take_change(&self) -> Option<Interface> {
        if let Err(error) = self.wake.read() {
            log::trace!("no wake-up to clear: {error}");
        }
        self.locked().take()
    }

    /// The interface is gone by itself. A new one that waits already keeps the link up.
    pub(super) fn lost(&self) {
        let change = self.locked();
        let up = change.as_ref().is_some_and(|interface| !interface.backends.is_empty());
        self.up.store(up, Ordering::SeqCst);
    }

    fn replace(&self, interface: Interface) {
        let mut change = self.locked();
        self.up.store(!interface.backends.is_empty(), Ordering::SeqCst);
        *change = Some(interface);
        if let Err(error) = self.wake.write(1) {
            log::debug!("the device was already woken: {error}");
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Interface>> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
