//! Descriptors that go with a message, to a machine that runs already.
//!
//! They come behind the message's frame, with one byte of their own: a reader of frames takes exactly its frame, and so never takes, and thereby
//! loses, what comes with the next byte.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most descriptors with one message: the queues of one tap, with vhost-net.
pub const DESCRIPTORS_MAX: usize = 2 * crate::TAPS_MAX;
/// Room for their control message.
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// Sends copies of `descriptors`, 1 to [`DESCRIPTORS_MAX`], behind a message that says how many.
pub fn send(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The room is rounded up, and would take one more than the receiver's limit.
    if descriptors.len() > DESCRIPTORS_MAX || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let message = format!("{} descriptors with one message, at most {DESCRIPTORS_MAX} go", descriptors.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes exactly `count` descriptors, waiting for them; they are closed on exec.
pub fn receive(socket: impl AsFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let (mut space, mut byte) = ([MaybeUninit::uninit(); SPACE], [0]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut byte)];
    let received = rustix::io::retry_on_intr(|| recvmsg(&socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = rights.flatten().collect();
    match (received.bytes, descriptors.len()) {
        (1, came) if came == count => Ok(descriptors),
        (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        (_, came) => {
            let message = format!("{came} descriptors came with a message that names {count}");
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::{ToMachine, frame};

    #[test]
    fn descriptors_come_behind_their_message_and_before_the_next() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("sockets");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let said = ToMachine::DetachNetwork { place: 1 };
        frame::write(&mut ours, &said).expect("sent");
        send(&ours, &[writer.as_fd(), writer.as_fd()]).expect("sent");
        frame::write(&mut ours, &ToMachine::Report).expect("sent");
        drop(writer);
        let message = frame::read::<ToMachine>(&mut theirs).expect("first");
        assert_eq!(message, said);
        let came = receive(&theirs, 2).expect("two");
        for fd in came {
            std::fs::File::from(fd).write_all(b"x").expect("a pipe");
        }
        assert_eq!(frame::read::<ToMachine>(&mut theirs).expect("second"), ToMachine::Report);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("all writers are gone");
        assert_eq!(text, "xx");
    }

    #[test]
    fn another_number_than_the_message_says_is_an_error() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        send(&ours, &[theirs.as_fd()]).expect("sent");
        assert_eq!(receive(&theirs, 2).expect_err("one came").kind(), io::ErrorKind::InvalidData);
        assert!(send(&ours, &[theirs.as_fd(); DESCRIPTORS_MAX + 1]).is_err());
        drop(ours);
        assert_eq!(receive(&theirs, 1).expect_err("none came").kind(), io::ErrorKind::UnexpectedEof);
    }
}
