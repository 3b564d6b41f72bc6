//! A Kubernetes node in small: a private containerd with its CRI plugin, our runtime and runc as runtime handlers, and what the kubelet
//! adds to a container runtime: cgroups for pods, folders for logs, and questions asked again and again.
//!
//! Nothing is shared with another node but the host: root, state, socket, network configuration and the streaming server's port are the
//! node's own. Pods get a network namespace by the `ptp` plugin, which leaves no bridge behind. Handles of pods and containers
//! remove what they stand for when they are dropped, so a test that fails half way leaves the host as it was.

mod config;
mod container;
mod network;
mod pod;
mod port_forward;
mod stream;
mod websocket;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cri::{Cri, v1};

pub use self::{
    config::{Template, cri_config},
    container::{Container, LogLine, STARTS_WITHIN},
    network::{Network, handler_on},
    pod::Pod,
    port_forward::PortForward,
    stream::Stream,
};
use crate::{Containerd, NetworkNamespace};

/// How often the node asks for a state. The kubelet lists once a second (its PLEG); containerd 1.6 has no events for it.
pub const RELIST: Duration = Duration::from_millis(10);

/// Longest that containerd takes to look at what ran on without it.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);

/// containerd with CRI, and its client.
pub struct Node {
    /// The runtime's side; the node's files are in its folder.
    pub containerd: Containerd,
    /// The kubelet's connection.
    pub cri: Cri,
    network: Option<Arc<NetworkNamespace>>,
    next: AtomicU32,
}

impl Node {
    /// Starts one, with the images that pods of tests are made of.
    ///
    /// # Errors
    /// containerd serves no CRI, or does not find an image just imported.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// The same, with more environment for containerd and its shims.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::of(Containerd::start_for_pods_with(environment), None)
    }

    fn of(containerd: Containerd, network: Option<Arc<NetworkNamespace>>) -> anyhow::Result<Self> {
        let cri = Cri::of(&containerd.address()).map_err(|error| anyhow::anyhow!("{error}"))?;
        let node = Self { containerd, cri, network, next: AtomicU32::new(1) };
        for image in ["pause", "busybox", "python"] {
            let name = node.containerd.import(image);
            node.wait_for_image(&name)?;
        }
        Ok(node)
    }

    /// Ends containerd with a signal, does something, and starts it again. Returns once the CRI plugin knows its pods again.
    ///
    /// # Errors
    /// It does not come back.
    pub fn away<T>(&self, signal: rustix::process::Signal, meanwhile: impl FnOnce() -> T) -> anyhow::Result<T> {
        let done = self.containerd.away(signal, meanwhile);
        // Until it has looked at what runs, it refuses every call.
        let ready = poll_until(RECOVERS_WITHIN, || Ok(self.cri.status(v1::StatusRequest::default()).ok()))?;
        ready.map(|_| done).context("the CRI plugin does not serve again")
    }

    /// The plugin hears of an import by an event, a moment later.
    fn wait_for_image(&self, name: &str) -> anyhow::Result<()> {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let found = poll_until(Duration::from_secs(30), || {
            let request = v1::ImageStatusRequest { image: image.clone(), verbose: false };
            Ok(self.cri.image_status(request)?.image)
        })?;
        found.map(drop).with_context(|| format!("the CRI plugin does not know {name}"))
    }

    /// A pod as the kubelet asks for one without any wish: its own namespaces, default seccomp profile.
    pub fn pod_config(&self) -> v1::PodSandboxConfig {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod-{}-{number}", std::process::id());
        let logs = self.containerd.folder().join("logs").join(&name);
        // Not below one of all pods: with the last of them that would go, while another runtime makes the next.
        config::pod(&name, &logs, &format!("/kata-rs-node-{name}"))
    }

    /// A new empty folder, for what a test mounts.
    pub fn fresh_folder(&self) -> PathBuf {
        let path = self.containerd.folder().join(format!("folder-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&path).expect("writable");
        path
    }

    /// Starts a pod without containers, as the kubelet does before it starts them.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn run_pod(&self, runtime: &str, config: v1::PodSandboxConfig) -> cri::Answer<Pod<'_>> {
        Pod::run(self, handler(runtime), config)
    }

    /// The same by the name of a handler.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn run_pod_of_handler(&self, handler: &str, config: v1::PodSandboxConfig) -> cri::Answer<Pod<'_>> {
        Pod::run(self, handler, config)
    }

    /// The same with [`Self::pod_config`].
    ///
    /// # Errors
    /// What the runtime said.
    pub fn plain_pod(&self, runtime: &str) -> cri::Answer<Pod<'_>> {
        self.run_pod(runtime, self.pod_config())
    }

    /// The end of a shell line in a container of its own pod, and what the line printed.
    ///
    /// # Errors
    /// Anything failed, or the line's exit code is not 0.
    pub fn sh(&self, runtime: &str, line: &str) -> anyhow::Result<String> {
        let pod = self.plain_pod(runtime)?;
        let container = pod.start(Template::sh(line))?;
        let status = container.wait()?;
        let printed = container.output()?;
        ensure!(
            status.exit_code == 0,
            "exit {} ({}) in the pod {}: {printed}",
            status.exit_code,
            status.reason,
            pod.id
        );
        pod.remove()?;
        Ok(printed)
    }

    /// Every pod there is, stopped ones included.
    ///
    /// # Errors
    /// containerd does not answer.
    pub fn pods(&self) -> cri::Answer<Vec<v1::PodSandbox>> {
        Ok(self.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default())?.items)
    }
}

/// The runtime handler in the CRI plugin's configuration, by the runtime's name; a RuntimeClass names it so.
pub fn handler(runtime: &str) -> &str {
    runtime.rsplit('.').nth(1).unwrap_or(runtime)
}

/// Asks until there is an answer or the time is over.
///
/// # Errors
/// The question failed.
pub fn poll_until<T>(
    deadline: Duration,
    mut question: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let start = Instant::now();
    loop {
        if let Some(answer) = question()? {
            return Ok(Some(answer));
        }
        if start.elapsed() > deadline {
            return Ok(None);
        }
        thread::sleep(RELIST);
    }
}
