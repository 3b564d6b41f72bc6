//! The stream of `kubectl port-forward`: a websocket with two channels for the port.
//!
//! Each begins with the port, as two bytes little endian. What the pod's server says comes by the first one; the second one is for the runtime's words when it
//! fails. Source: Kubernetes, `k8s.io/kubelet/pkg/cri/streaming/portforward/websocket.go`.

use anyhow::{Context, ensure};

use super::websocket::Websocket;

const DATA: u8 = 0;

/// One connection to a port of a pod.
pub struct PortForward {
    socket: Websocket,
    /// What has come by each channel, the port first.
    said: [Vec<u8>; 2],
    port: u16,
}

impl PortForward {
    /// Opens the URL of an answer.
    ///
    /// # Errors
    /// Nobody serves it, or not as a websocket.
    pub fn open(url: &str, port: u16) -> anyhow::Result<Self> {
        Ok(Self { socket: Websocket::open(url)?, said: [Vec::new(), Vec::new()], port })
    }

    /// Says something to the pod's server.
    ///
    /// # Errors
    /// The other side has closed.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.socket.write(DATA, bytes)
    }

    /// Reads to the end; what the pod's server said.
    ///
    /// # Errors
    /// The runtime says that it failed, in its words, or there is no end.
    pub fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        while let Some((channel, bytes)) = self.socket.read()? {
            self.said.get_mut(usize::from(channel)).context("an unknown channel")?.extend(bytes);
        }
        let after_port = |said: &[u8]| said.strip_prefix(&self.port.to_le_bytes()).map(<[u8]>::to_vec);
        let [data, error] = self.said.each_ref().map(|said| after_port(said));
        let error = error.context("a channel begins with its port")?;
        ensure!(error.is_empty(), "{}", String::from_utf8_lossy(&error));
        data.context("a channel begins with its port")
    }
}
