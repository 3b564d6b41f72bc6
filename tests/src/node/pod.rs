//! A pod as the kubelet holds it: started, filled with containers, stopped, removed, and its cgroup taken away.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use cri::{Answer, v1};

use super::{Container, Node, PortForward, Template};

/// A pod of a node; stopped and removed when dropped.
pub struct Pod<'n> {
    /// The node it is on.
    pub node: &'n Node,
    /// As the runtime calls it.
    pub id: String,
    /// As it was asked for.
    pub config: v1::PodSandboxConfig,
    next: AtomicU32,
    removed: AtomicBool,
}

impl<'n> Pod<'n> {
    pub(super) fn run(node: &'n Node, handler: &str, config: v1::PodSandboxConfig) -> Answer<Self> {
        fs::create_dir_all(&config.log_directory).expect("the node's folder is writable");
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        match node.cri.run_pod_sandbox(request) {
            Ok(answer) => Ok(Self {
                node,
                id: answer.pod_sandbox_id,
                config,
                next: AtomicU32::new(1),
                removed: AtomicBool::new(false),
            }),
            Err(error) => {
                forget(&config);
                Err(error)
            }
        }
    }

    /// Creates a container in it.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn create(&self, template: Template) -> Answer<Container<'_>> {
        let mut config = template.config;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let numbered = || v1::ContainerMetadata { name: format!("container-{number}"), attempt: 0 };
        let metadata = config.metadata.get_or_insert_with(numbered);
        if config.log_path.is_empty() {
            config.log_path = format!("{}-{number}.log", metadata.name);
        }
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.node.cri.create_container(request)?.container_id;
        Ok(Container::new(self, id, config))
    }

    /// Creates and starts one.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn start(&self, template: Template) -> Answer<Container<'_>> {
        let container = self.create(template)?;
        container.start()?;
        Ok(container)
    }

    /// Its status.
    ///
    /// # Errors
    /// There is no such pod any more.
    pub fn status(&self) -> Answer<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        Ok(self.node.cri.pod_sandbox_status(request)?.status.unwrap_or_default())
    }

    /// Connects to a port of its loopback as `kubectl port-forward` does, where the node's containerd serves streams.
    ///
    /// # Errors
    /// What the runtime said, or its streaming server does not answer.
    pub fn forward(&self, port: u16) -> anyhow::Result<PortForward> {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()] };
        let url = self.node.cri.port_forward(request)?.url;
        self.node.network().run(|| PortForward::open(&url, port))
    }

    /// Kills what runs in it and frees its network.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn stop(&self) -> Answer<()> {
        self.node.cri.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() }).map(drop)
    }

    /// Stops and removes it, with all containers.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn remove(&self) -> Answer<()> {
        self.stop()?;
        self.remove_stopped()
    }

    /// The call alone.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn remove_stopped(&self) -> Answer<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.cri.remove_pod_sandbox(request)?;
        self.removed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.removed.load(Ordering::Relaxed) {
            // A test that failed has said why; what cannot be removed shows as residue.
            let _ = self.stop().and_then(|()| self.remove_stopped());
        }
        forget(&self.config);
    }
}

/// What is the kubelet's to remove.
fn forget(config: &v1::PodSandboxConfig) {
    let _ = fs::remove_dir_all(&config.log_directory);
    if let Some(linux) = &config.linux {
        remove_cgroup(Path::new(&linux.cgroup_parent));
    }
}

/// Removes a cgroup from every hierarchy of the host. One that is in use stays, and shows as residue.
fn remove_cgroup(path: &Path) {
    let mounted = Path::new("/sys/fs/cgroup");
    let below = path.strip_prefix("/").unwrap_or(path);
    let _ = fs::remove_dir(mounted.join(below));
    for controller in fs::read_dir(mounted).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(controller.path().join(below));
    }
}
