//! Developer mode of networking: `kata-rs run --net` on a machine without CNI and without a daemon.
//!
//! ```text
//!  the run's own network namespace                the command              the host's network
//!   eth0, a tap <──────────── frames ────────────> wire <──stream──> passt ──sockets──> the world
//!     ║ joined to the machine by the pod library                       └─ listens at published ports
//!  the guest's eth0
//! ```
//! The pod library gives the guest whatever interface is in a namespace; here is made a namespace with one. Behind it is passt, a program of Debian,
//! which does for each connection of the container what a browser does for its user: it opens a socket. So there is no bridge, no packet filter, no
//! forwarding to switch on, and nothing on the host that could be left: namespace and tap go with their descriptors, passt with its stream, however
//! the command ends. It is the one way, for root too.
//!
//! - [`publish`] reads `--publish`, [`reach`] which families the host has, [`resolver`] its name servers; [`plan`] says what passt is told.
//! - [`namespace`] makes the namespace, [`passt`] starts the program, [`wire`] joins the two.
//!
//! # What the container cannot reach
//! What listens on the host's loopback only: a program that nobody trusts has no business there.

mod namespace;
mod passt;
mod plan;
mod publish;
mod reach;
mod resolver;
mod wire;

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::PathBuf,
};

pub use publish::Publish;

use self::{
    namespace::Namespace,
    passt::Passt,
    plan::Plan,
    reach::Reach,
    resolver::{FILE_LEN_MAX, FILES, resolv_conf},
    wire::Wire,
};

/// `--net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Net {
    /// What this host can do: passt
    Auto,
    /// User-space network by the program passt
    Passt,
    /// Loopback only
    None,
    /// Not there: refused with what to do instead
    #[value(hide = true)]
    Bridge,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A way that was left out on purpose.
    #[error(
        "--net=bridge does not exist: a bridge would change the host's packet filter; use --net (passt), or CNI through containerd"
    )]
    Bridge,
    /// Nothing to publish from.
    #[error("--publish needs a network: leave --net=none out")]
    PublishWithoutNetwork,
    /// A port that cannot be published.
    #[error(transparent)]
    Publish(#[from] publish::PublishError),
    /// No passt.
    #[error("--net needs the program passt, which is not on PATH: apt-get install passt")]
    NotInstalled,
    /// The host is alone.
    #[error(
        "--net has nowhere to go: this host has no default route, neither of IPv4 nor of IPv6 (`ip route` lists what it has)"
    )]
    Nowhere,
    /// No taps.
    #[error(
        "cannot open /dev/net/tun, from which the container's interface comes: {0}; load the kernel's module (modprobe tun)"
    )]
    NoTaps(#[source] io::Error),
    /// The namespace.
    #[error("the network namespace of the run: cannot {doing}: {source}")]
    Namespace {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// passt does not start.
    #[error("cannot start {}: {source}", .program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// passt starts, says something, and ends.
    #[error("passt gives the container no network: {words}")]
    Refused {
        /// What it said.
        words: String,
    },
    /// passt neither answers nor ends.
    #[error("passt does not answer: does `passt --version` on this host?")]
    Silent,
}

/// What was asked for, checked as far as it can be without doing anything.
///
/// # Errors
/// It contradicts itself, or is not to be had.
pub fn wanted(net: Option<Net>, published: &[Publish]) -> Result<bool, NetworkError> {
    publish::check_together(published)?;
    match net {
        Some(Net::Bridge) => Err(NetworkError::Bridge),
        Some(Net::None) if !published.is_empty() => Err(NetworkError::PublishWithoutNetwork),
        Some(Net::None) => Ok(false),
        Some(Net::Auto | Net::Passt) => Ok(true),
        None => Ok(!published.is_empty()),
    }
}

/// Is `--net` possible here? The program that does it, or why not.
///
/// # Errors
/// What is missing.
pub fn possible() -> Result<PathBuf, NetworkError> {
    let program = passt::find().ok_or(NetworkError::NotInstalled)?;
    File::options().read(true).write(true).open("/dev/net/tun").map_err(NetworkError::NoTaps)?;
    if Reach::of_host().is_nowhere() {
        return Err(NetworkError::Nowhere);
    }
    Ok(program)
}

/// A container's network. It lasts as long as this.
#[derive(Debug)]
pub struct Uplink {
    // Dropped in this order: the wire says that the end is meant before passt goes.
    _wire: Wire,
    _passt: Passt,
    namespace: Namespace,
    plan: Plan,
}

impl Uplink {
    /// Makes it. Blocks until passt answers.
    ///
    /// # Errors
    /// Something is missing, or a published port is taken; nothing is left then.
    pub fn make(published: &[Publish]) -> Result<Self, NetworkError> {
        let reach = Reach::of_host();
        possible()?;
        published.iter().try_for_each(Publish::check_free)?;
        let plan = Plan { reach, published: published.to_vec() };
        let namespace = Namespace::make(&plan)?;
        let (passt, stream, frames) = Passt::start(&plan)?;
        let broken = || eprintln!("kata-rs: passt has ended: the container has no network any more\r");
        let wire = Wire::start(&namespace.tap, stream, frames, broken)
            .map_err(|source| NetworkError::Namespace { doing: "join its interface to passt", source })?;
        Ok(Self { _wire: wire, _passt: passt, namespace, plan })
    }

    /// Where the namespace is, while this lasts.
    pub fn namespace(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.file.as_raw_fd()).into()
    }

    /// The container's resolv.conf; none when it has nobody to ask.
    pub fn resolv_conf(&self) -> Option<String> {
        let texts = FILES.map(read);
        resolv_conf(texts.iter().map(String::as_str), self.plan.reach.v6)
    }

    /// In one line, for people.
    pub fn told(&self) -> String {
        let addresses = self.plan.families().iter().map(|family| family.address.to_string()).collect::<Vec<_>>();
        let published = self.plan.published.iter().map(|publish| format!(", published {publish}")).collect::<String>();
        format!("network by passt: {}{published}", addresses.join(", "))
    }
}

fn read(path: &str) -> String {
    let mut text = String::new();
    // What is not there, or no text, names nobody.
    let _ = File::open(path).and_then(|file| file.take(FILE_LEN_MAX).read_to_string(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_network_when_it_is_asked_for_or_a_port_is_published() {
        let port = [Publish::parse("8080:80").expect("valid")];
        assert!(!wanted(None, &[]).expect("fine") && !wanted(Some(Net::None), &[]).expect("fine"));
        assert!(wanted(Some(Net::Auto), &[]).expect("fine") && wanted(None, &port).expect("fine"));
        assert!(wanted(Some(Net::None), &port).expect_err("refused").to_string().contains("--net=none"));
    }

    #[test]
    fn a_bridge_is_refused_with_what_to_do_instead() {
        let sentence = wanted(Some(Net::Bridge), &[]).expect_err("refused").to_string();
        assert!(sentence.contains("passt") && sentence.contains("CNI"), "{sentence}");
    }
}
