//! A terminal with somebody at it: types, resizes, reads the screen.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::command;

/// A program at a terminal.
pub struct Session {
    master: File,
    child: Child,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    /// Starts the command as the terminal's session leader, as a login would.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        set_size(&master, columns, rows);
        let name = ptsname(&master, Vec::new()).expect("named").into_string().expect("ASCII");
        let slave = || Stdio::from(File::options().read(true).write(true).open(&name).expect("opens"));
        let mut at_terminal = Command::new("setsid");
        at_terminal.arg("-c").arg(command.get_program()).args(command.get_args());
        command.get_envs().for_each(|(key, value)| {
            if let Some(value) = value {
                at_terminal.env(key, value);
            }
        });
        let child = at_terminal.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("setsid is installed");
        let output = reader(&master);
        Self { master: File::from(master), child, output, seen: String::new() }
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    /// Changes the window's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("the terminal is open");
    }

    /// Waits until the text shows on the screen, after what was waited for before; returns what came before it.
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + command::DEADLINE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + text.len());
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} did not show; the screen has {:?}", self.seen),
            }
        }
    }

    /// Waits for the program's end.
    pub fn wait(mut self) -> ExitStatus {
        command::wait_for(&mut self.child, command::DEADLINE).expect("the program ends")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failed expectation the program still runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(master: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("a terminal has a size");
}

fn reader(master: &OwnedFd) -> mpsc::Receiver<Vec<u8>> {
    let mut master = File::from(master.try_clone().expect("a descriptor is free"));
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = master.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}
