//! The launcher's socket.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use vmm_control::{
    CONTROL_FD, FromMachine, ToMachine, descriptors,
    frame::{self, FrameError},
};

use crate::sys::{self, ClaimError};

/// Our end of the conversation. The launcher is trusted to finish the message that it began.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// The inherited socket at [`CONTROL_FD`].
    pub fn inherited() -> Result<Self, ClaimError> {
        sys::claim_one(CONTROL_FD, "control socket").map(|fd| Self(fd.into()))
    }

    /// The launcher's next message; waits for it.
    pub fn receive(&mut self) -> Result<ToMachine, FrameError> {
        frame::read(&mut self.0)
    }

    /// The descriptors that come with the message just received; waits for them.
    pub fn receive_descriptors(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        descriptors::receive(&self.0, count)
    }

    /// Tells the launcher.
    pub fn send(&mut self, message: &FromMachine) -> Result<(), FrameError> {
        frame::write(&mut self.0, message)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
