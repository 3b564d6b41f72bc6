//! What a network adds to a pod's start, on a host with this pod alone and on one with two hundred others' interfaces.

use std::{path::PathBuf, time::Instant};

use tests::NetworkNamespace;

use super::alone::{Networks, launch};
use crate::figure::Figure;

/// Launches of each kind.
const LAUNCHES: usize = 20;
/// Interfaces of others.
const OTHERS: usize = 200;

/// What one launch took, in milliseconds.
#[derive(Clone, Copy)]
struct Took {
    launch: f64,
    /// Joining taps and interfaces, on the host.
    host: f64,
    /// The call that tells the guest, with all else that it tells.
    guest: f64,
}

/// `net.setup*`.
pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let networks = Networks::new()?;
    let launch = |n, network| runtime.block_on(timed(n, network));
    let (mut with, mut without, mut crowded) = (Vec::new(), Vec::new(), Vec::new());
    // The first fills caches and does not count.
    launch(0, Some(networks.pods.path()))?;
    for n in 0..LAUNCHES {
        with.push(launch(n, Some(networks.pods.path()))?);
        without.push(launch(n, None)?);
    }
    let others = Others::join(&networks.outside)?;
    for n in 0..LAUNCHES {
        crowded.push(launch(n, Some(networks.pods.path()))?);
    }
    drop(others);
    let added = |of: fn(&Took) -> f64| with.iter().zip(&without).map(|(a, b)| of(a) - of(b)).collect::<Vec<_>>();
    let each = |all: &[Took], of: fn(&Took) -> f64| all.iter().map(of).collect::<Vec<_>>();
    let steps: fn(&Took) -> f64 = |took| took.host + took.guest;
    Ok(vec![
        Figure::beside("net.launch", "ms", &each(&with, |t| t.launch), "loopback", &each(&without, |t| t.launch)),
        Figure::alone("net.setup", "ms", &added(|t| t.launch)),
        Figure::alone("net.setup.host", "ms", &added(|t| t.host)),
        Figure::alone("net.setup.guest", "ms", &added(|t| t.guest)),
        Figure::beside("net.setup.200", "ms", &each(&crowded, steps), "one pod", &each(&with, steps)),
    ])
}

async fn timed(n: usize, network: Option<PathBuf>) -> anyhow::Result<Took> {
    let clock = Instant::now();
    let (pod, _scratch) = launch(format!("bench-setup-{n}"), network).await?;
    let launch = clock.elapsed().as_secs_f64() * 1e3;
    let at = |name: &str| pod.launch_marks().iter().find(|mark| mark.name == name).map_or(0, |m| m.monotonic_nanos);
    let between = |from: &str, to: &str| at(to).saturating_sub(at(from)) as f64 / 1e6;
    let took = Took {
        launch,
        host: between("state folder ready", "network joined"),
        guest: between("agent called", "pod configured"),
    };
    pod.stop().await?;
    Ok(took)
}

/// What the interfaces of other pods are on a node: one end there, one in a namespace of its own.
struct Others {
    _namespaces: Vec<NetworkNamespace>,
}

impl Others {
    fn join(node: &NetworkNamespace) -> anyhow::Result<Self> {
        let mut namespaces = Vec::new();
        for n in 0..OTHERS {
            let namespace = NetworkNamespace::new()?;
            node.ip(&format!("link add other{n} up type veth peer name eth0 netns {}", namespace.path().display()))?;
            namespaces.push(namespace);
        }
        Ok(Self { _namespaces: namespaces })
    }
}
