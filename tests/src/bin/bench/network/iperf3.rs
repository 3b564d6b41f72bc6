//! iperf3 of Debian: a server at the end of a network, and what a client in the node's network measures against it. Directions are the server's: it
//! sends, it receives.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Deserialize;
use tests::{command, node::Template};

/// The program, and so its process.
pub const PROGRAM: &str = "iperf3";
/// What it is with its libraries that no image of the tests has.
const FILES: [&str; 4] = [
    "/usr/bin/iperf3",
    "/usr/lib/x86_64-linux-gnu/libiperf.so.0",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/usr/lib/x86_64-linux-gnu/libsctp.so.1",
];
/// Where a container has them.
const INSIDE: &str = "/iperf3";
/// What TCP moves in one measurement: by bytes, as iperf3 knows whole seconds only.
const BYTES: &str = "1G";
/// Seconds for which datagrams are sent as fast as they go.
const SECONDS: &str = "1";
/// Bytes of a datagram's payload.
const DATAGRAM: u32 = 64;
/// Longest that the server may take to come, or to be done with the measurement before.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest that one measurement takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A container that serves; the folder is for the program.
pub fn server(folder: &Path) -> anyhow::Result<Template> {
    for file in FILES.map(Path::new) {
        let name = file.file_name().context("files have names")?;
        fs::copy(file, folder.join(name)).with_context(|| format!("{} (Debian's iperf3)", file.display()))?;
    }
    let program = format!("{INSIDE}/{PROGRAM}");
    Ok(Template::command(&[&program, "--server"]).env("LD_LIBRARY_PATH", INSIDE).mount(folder, INSIDE, true))
}

/// What a client prints with --json, as far as we look.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<String>,
    end: End,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct End {
    sum_received: Moved,
}

/// What arrived, and in what time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
pub struct Moved {
    pub bytes: f64,
    pub seconds: f64,
}

impl Moved {
    /// Of what a client printed.
    fn parse(json: &str) -> anyhow::Result<Self> {
        let Answer { error, end: End { sum_received } } = serde_json::from_str(json).context("no JSON of iperf3")?;
        match error {
            Some(error) => bail!("iperf3: {error}"),
            None if sum_received.bytes > 0.0 && sum_received.seconds > 0.0 => Ok(sum_received),
            None => bail!("iperf3: nothing arrived"),
        }
    }

    /// Datagrams a second.
    fn datagrams(self) -> f64 {
        self.bytes / f64::from(DATAGRAM) / self.seconds
    }
}

/// How so many streams move bytes.
pub type Stream = fn(Client, usize) -> anyhow::Result<Moved>;

/// A client of the server at an address; to be used by a thread in the node's network.
#[derive(Clone, Copy)]
pub struct Client {
    pub address: Ipv4Addr,
}

impl Client {
    /// TCP from the server.
    pub fn pod_sends(self, streams: usize) -> anyhow::Result<Moved> {
        self.run(&["--reverse", "--bytes", BYTES, "--parallel", &streams.to_string()])
    }

    /// TCP to the server.
    pub fn pod_receives(self, streams: usize) -> anyhow::Result<Moved> {
        self.run(&["--bytes", BYTES, "--parallel", &streams.to_string()])
    }

    /// Datagrams from the server that arrived, a second.
    pub fn pod_floods(self) -> anyhow::Result<f64> {
        self.flood(&["--reverse"])
    }

    /// Datagrams that arrived at the server, a second.
    pub fn pod_is_flooded(self) -> anyhow::Result<f64> {
        self.flood(&[])
    }

    fn flood(self, words: &[&str]) -> anyhow::Result<f64> {
        let length = DATAGRAM.to_string();
        let unpaced = ["--udp", "--length", &length, "--bitrate", "0", "--time", SECONDS];
        Ok(self.run(&[&unpaced, words].concat())?.datagrams())
    }

    /// Measures once the server has time for it: nothing tells when it listens, or is done with the client before, but that it takes the next.
    fn run(self, words: &[&str]) -> anyhow::Result<Moved> {
        let (address, clock) = (self.address.to_string(), Instant::now());
        loop {
            let mut command = Command::new(PROGRAM);
            command.args(["--json", "--client", &address]).args(words);
            let finished = command::run_for(&mut command, DEADLINE);
            match Moved::parse(&finished.stdout) {
                Err(error) if too_early(&error) && clock.elapsed() < PATIENCE => {}
                moved => return moved,
            }
        }
    }
}

/// Is there no server yet, or is it still with another client (iperf_error.c)?
fn too_early(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["unable to connect", "the server is busy"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests_of_answers {
    use super::*;

    #[test]
    fn what_counts_is_what_arrived() {
        let json = r#"{ "end": { "sum_sent": { "bytes": 12800, "seconds": 1 }, "sum": { "bytes": 12800, "seconds": 1 },
                        "sum_received": { "bytes": 6400, "seconds": 0.5, "packets": 200, "lost_packets": 100 } } }"#;
        assert_eq!(Moved::parse(json).expect("an answer").datagrams(), 200.0);
    }

    #[test]
    fn a_refusal_and_an_empty_answer_are_no_figures() {
        let busy =
            r#"{ "start": {}, "end": {}, "error": "error - the server is busy running a test. try again later" }"#;
        assert!(too_early(&Moved::parse(busy).expect_err("refused")));
        assert!(Moved::parse(r#"{ "end": { "sum_received": { "bytes": 0, "seconds": 1 } } }"#).is_err());
        assert!(!too_early(&Moved::parse("").expect_err("empty")));
    }
}
