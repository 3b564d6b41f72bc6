//! The first line of a host program: `CONNECT <port>\n`.

use std::{io, os::unix::net::UnixStream};

use rustix::net::{RecvFlags, recv};

/// Longest first line: the word, a space, ten digits and the newline.
const LINE_MAX: usize = 19;

/// How far a greeting has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are to come.
    Partial,
    /// The program wants this guest port.
    Port(u32),
    /// It is no greeting, or the program is gone.
    Bad,
}

/// A host program that has connected and not yet said what it wants.
#[derive(Debug)]
pub(super) struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Greeting {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new() }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Takes what has arrived of the first line, and not a byte beyond: those belong to the guest.
    pub(super) fn advance(&mut self) -> Progress {
        let mut peeked = [0; LINE_MAX];
        let room = LINE_MAX.saturating_sub(self.line.len());
        let len = match receive(&self.stream, peeked.get_mut(..room).unwrap_or_default(), RecvFlags::PEEK) {
            Ok(0) => return Progress::Bad,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Partial,
            Err(_) => return Progress::Bad,
        };
        let newline = peeked.iter().take(len).position(|byte| *byte == b'\n');
        let taken = newline.map_or(len, |position| position + 1);
        let line = peeked.get_mut(..taken).unwrap_or_default();
        if receive(&self.stream, line, RecvFlags::empty()).ok() != Some(taken) {
            return Progress::Bad;
        }
        self.line.extend_from_slice(line);
        match newline {
            Some(_) => port_of(&self.line).map_or(Progress::Bad, Progress::Port),
            None if self.line.len() == LINE_MAX => Progress::Bad,
            None => self.advance(),
        }
    }
}

fn receive(stream: &UnixStream, into: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    let (len, _) = rustix::io::retry_on_intr(|| recv(stream, &mut *into, flags | RecvFlags::DONTWAIT))?;
    Ok(len)
}

/// The port of a whole line. Pure.
fn port_of(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    // `parse` alone would take a plus sign.
    let all_digits = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| all_digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (UnixStream, Greeting) {
        let (program, ours) = UnixStream::pair().expect("sockets");
        (program, Greeting::new(ours))
    }

    #[test]
    fn a_greeting_may_come_in_pieces_and_what_follows_is_left_alone() {
        let (mut program, mut greeting) = pair();
        assert_eq!(greeting.advance(), Progress::Partial);
        program.write_all(b"CONN").expect("write");
        assert_eq!(greeting.advance(), Progress::Partial);
        program.write_all(b"ECT 1025\nstream bytes").expect("write");
        assert_eq!(greeting.advance(), Progress::Port(1025));
        let mut rest = [0; 12];
        greeting.into_stream().read_exact(&mut rest).expect("read");
        assert_eq!(&rest, b"stream bytes");
    }

    #[test]
    fn the_longest_port_fits() {
        let (mut program, mut greeting) = pair();
        program.write_all(b"CONNECT 4294967295\n").expect("write");
        assert_eq!(greeting.advance(), Progress::Port(u32::MAX));
    }

    #[test]
    fn anything_else_is_bad() {
        let lines: [&[u8]; 9] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 \n",
            b"connect 1\n",
            b"CONNECT 1\r\n",
            b"CONNECT 00000000000000001\n",
        ];
        for line in lines {
            let (mut program, mut greeting) = pair();
            program.write_all(line).expect("write");
            assert_eq!(greeting.advance(), Progress::Bad, "{line:?}");
        }
    }

    #[test]
    fn a_program_that_leaves_is_bad() {
        let (program, mut greeting) = pair();
        drop(program);
        assert_eq!(greeting.advance(), Progress::Bad);
    }
}
