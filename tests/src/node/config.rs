//! What containerd is told, and what the kubelet asks for when a pod's author has no wish.
//!
//! Source: kubelet's kuberuntime (the fields it always sets), containerd's docs/cri/config.md for 1.6.

use std::{fs, path::Path};

use cri::v1;

/// What Kubernetes hides from containers (`pkg/securitycontext`, the default ProcMount).
const MASKED_PATHS: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
/// What it makes read-only.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The kubelet's `oom_score_adj` for a container without requests or limits.
const BEST_EFFORT_OOM_SCORE: i64 = 1000;

/// The parts of containerd's configuration that make it a node. Writes the network's configuration into the folder.
pub fn cri_config(folder: &Path) -> String {
    let network = folder.join("cni");
    fs::create_dir_all(&network)
        .and_then(|()| fs::write(network.join("10-ptp.conflist"), cni(folder)))
        .expect("writable");
    let network = network.display();
    format!(
        r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/kata-rs-pause:latest"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  enable_selinux = false
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-rs]
      runtime_type = "io.containerd.kata-rs.v2"
      privileged_without_host_devices = true
      pod_annotations = ["io.kata-rs.*"]
"#
    )
}

/// A veth pair for each pod, with an address from a file of the node's own. The third byte keeps nodes of different programs apart.
fn cni(folder: &Path) -> String {
    let third = std::process::id() % 250;
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "kata-rs-{}", "plugins": [{{"type": "ptp",
"ipam": {{"type": "host-local", "dataDir": "{}/addresses", "ranges": [[{{"subnet": "10.99.{third}.0/24"}}]]}}}}]}}"#,
        std::process::id(),
        folder.display()
    )
}

/// A pod without any wish.
pub fn pod(name: &str, logs: &Path, cgroup: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        dns_config: Some(v1::DnsConfig { servers: vec!["10.96.0.10".to_owned()], ..Default::default() }),
        labels: [("io.kubernetes.pod.name".to_owned(), name.to_owned())].into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(seccomp_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Network and ipc of the pod, pids of the container.
pub fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Pod.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn seccomp_default() -> v1::SecurityProfile {
    v1::SecurityProfile { profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(), ..Default::default() }
}

/// A container to be, with the wishes of a test.
#[derive(Debug, Clone)]
pub struct Template {
    /// What will be asked of the runtime, but for the log's name.
    pub config: v1::ContainerConfig,
}

impl Template {
    /// busybox running a command.
    pub fn command(words: &[&str]) -> Self {
        Self::of("busybox", words)
    }

    /// busybox running a shell line.
    pub fn sh(line: &str) -> Self {
        Self::command(&["sh", "-c", line])
    }

    /// busybox waiting to be stopped, which it does at once.
    pub fn pause() -> Self {
        Self::sh("trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")
    }

    /// Python running a program.
    pub fn python(program: &str) -> Self {
        Self::of("python", &["python3", "-c", program])
    }

    fn of(image: &str, words: &[&str]) -> Self {
        let image = format!("docker.io/library/kata-rs-{image}:latest");
        let config = v1::ContainerConfig {
            image: Some(v1::ImageSpec { image, ..Default::default() }),
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources {
                    oom_score_adj: BEST_EFFORT_OOM_SCORE,
                    ..Default::default()
                }),
                security_context: Some(security()),
            }),
            ..Default::default()
        };
        Self { config }
    }

    /// The name in the pod; otherwise it gets a number.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.config.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        self
    }

    /// Changes the security context.
    #[must_use]
    pub fn security(mut self, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Self {
        let linux = self.config.linux.get_or_insert_default();
        change(linux.security_context.get_or_insert_default());
        self
    }

    /// Changes the limits.
    #[must_use]
    pub fn resources(mut self, change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Self {
        let linux = self.config.linux.get_or_insert_default();
        change(linux.resources.get_or_insert_default());
        self
    }

    /// Adds to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.config.envs.push(v1::KeyValue { key: name.to_owned(), value: value.into() });
        self
    }

    /// Adds a file or folder of the host.
    #[must_use]
    pub fn mount(mut self, host: &Path, inside: &str, readonly: bool) -> Self {
        self.config.mounts.push(v1::Mount {
            container_path: inside.to_owned(),
            host_path: host.display().to_string(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// Changes anything.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut v1::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }
}

fn security() -> v1::LinuxContainerSecurityContext {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    v1::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces()),
        masked_paths: owned(&MASKED_PATHS),
        readonly_paths: owned(&READONLY_PATHS),
        seccomp: Some(seccomp_default()),
        ..Default::default()
    }
}
