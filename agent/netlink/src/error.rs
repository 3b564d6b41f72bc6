//! What can go wrong in a conversation.

use rustix::io::Errno;

/// Why a conversation failed. Whoever had it says about what it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refuses, with a sentence of its own where it has one.
    #[error("{errno}{}", told(.sentence))]
    Refused {
        /// Its error number.
        errno: Errno,
        /// Its sentence, often empty.
        sentence: String,
    },
    /// The socket fails.
    #[error("the netlink socket cannot {doing}: {errno}")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The error number.
        errno: Errno,
    },
    /// The kernel says what we do not understand.
    #[error("the kernel's answer cannot be read: {0}")]
    Unreadable(String),
    /// A list kept changing while it was read.
    #[error("the list changed at each of {0} readings: what changes the namespace all the time?")]
    Unsteady(usize),
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Does it mean that the thing is there already?
    pub fn is_there_already(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Does it mean that there is no such thing (interface, address, route, filter)?
    pub fn is_nothing_there(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL))
    }
}

fn told(sentence: &str) -> String {
    if sentence.is_empty() { String::new() } else { format!(" ({sentence})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sentence_is_shown_when_it_has_one() {
        let refused =
            |sentence: &str| NetlinkError::Refused { errno: Errno::EXIST, sentence: sentence.to_owned() }.to_string();
        assert_eq!(refused(""), Errno::EXIST.to_string());
        assert!(refused("Exclusivity flag on").ends_with("(Exclusivity flag on)"), "{}", refused("x"));
    }

    #[test]
    fn there_already_and_not_there_are_told_apart() {
        let of = |errno| NetlinkError::Refused { errno, sentence: String::new() };
        assert!(of(Errno::EXIST).is_there_already() && !of(Errno::EXIST).is_nothing_there());
        assert!(of(Errno::NODEV).is_nothing_there() && !of(Errno::NODEV).is_there_already());
        let broken = NetlinkError::Socket { doing: "send", errno: Errno::EXIST };
        assert!(!broken.is_there_already(), "it is not the kernel that says so");
    }
}
