//! The caller's terminal while a container uses it.

use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode from now until dropped. When the process ends in another way, call [`RawTerminal::restore`] first.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches standard input to raw mode; `None` when it is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !isatty(stdin.as_fd()) {
            return None;
        }
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }

    /// The terminal as it was.
    pub fn restore(&self) {
        // The terminal may be gone with its window; there is nothing left to restore then.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Drain, &self.before);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Columns and rows of the caller's terminal; 0, 0 when there is none.
pub fn size() -> (u16, u16) {
    tcgetwinsize(std::io::stdin().as_fd()).map_or((0, 0), |size| (size.ws_col, size.ws_row))
}

/// Is standard input a terminal?
pub fn is_present() -> bool {
    isatty(std::io::stdin().as_fd())
}
