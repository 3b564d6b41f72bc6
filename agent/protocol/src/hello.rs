//! The line with which an agent opens its call.

use crate::PROTOCOL_VERSION;

/// Longest hello line that the host reads, newline included; the guest is not trusted to end it.
pub const HELLO_LEN_MAX: usize = 128;

const WORD: &str = "kata-rs-agent";

/// What the agent says first: `kata-rs-agent <protocol> <version>\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of the conversation.
    pub protocol: u32,
    /// The agent's own version, for people.
    pub agent_version: String,
}

/// Why a hello line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HelloError {
    /// Not a hello line at all.
    #[error(
        "the guest's first line is not a hello of kata-rs-agent: is the guest image the one that belongs to this version?"
    )]
    NotHello,
    /// The agent speaks another version.
    #[error(
        "the agent in the guest image speaks protocol {theirs}, the host {ours}: install guest image and host binaries of one version"
    )]
    OtherProtocol {
        /// Protocol of the agent.
        theirs: u32,
        /// Protocol of this build.
        ours: u32,
    },
}

impl Hello {
    /// The hello of this build.
    pub fn ours(agent_version: &str) -> Self {
        Self { protocol: PROTOCOL_VERSION, agent_version: agent_version.to_owned() }
    }

    /// The line to send, newline included.
    pub fn to_line(&self) -> String {
        format!("{WORD} {} {}\n", self.protocol, self.agent_version)
    }

    /// Reads a line (with or without its newline) and checks the protocol.
    pub fn parse(line: &str) -> Result<Self, HelloError> {
        let mut words = line.trim_end_matches('\n').split(' ');
        if words.next() != Some(WORD) {
            return Err(HelloError::NotHello);
        }
        let protocol = words.next().and_then(|w| w.parse().ok()).ok_or(HelloError::NotHello)?;
        if protocol != PROTOCOL_VERSION {
            return Err(HelloError::OtherProtocol { theirs: protocol, ours: PROTOCOL_VERSION });
        }
        let agent_version = words.next().ok_or(HelloError::NotHello)?.to_owned();
        Ok(Self { protocol, agent_version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_its_line() {
        let hello = Hello::ours("0.1.0");
        assert_eq!(Hello::parse(&hello.to_line()), Ok(hello));
    }

    #[test]
    fn another_protocol_is_refused_by_name() {
        let error = Hello::parse("kata-rs-agent 999 0.1.0\n").expect_err("refused");
        assert_eq!(error, HelloError::OtherProtocol { theirs: 999, ours: PROTOCOL_VERSION });
    }

    #[test]
    fn noise_is_no_hello() {
        for noise in ["", "\n", "SSH-2.0", "kata-rs-agent", "kata-rs-agent x 1", "kata-rs-agent 1"] {
            assert_eq!(Hello::parse(noise), Err(HelloError::NotHello), "{noise:?}");
        }
    }
}
