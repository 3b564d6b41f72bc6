//! The daemon: one per pod, from the first container's start to the last one's end.
//!
//! It inherits its listener as standard input and the pipe to `start` as standard output (see [`crate::start`]), and leaves both
//! before it does anything else. It survives containerd: nothing here waits for it, and signals meant for it are not for us.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oci_spec::runtime::Spec;
use pod::{Configuration, Installation, Pod, PodError, PodSpec, sizing::MachineSize};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use ttrpc::r#async::{Server, transport::Listener};

use crate::{
    arguments::{ArgumentError, Arguments},
    bundle,
    containers::Containers,
    group::Group,
    logfile::LogFile,
    machine::{Machine, PodFront},
    publisher::Publisher,
    refusal::Refusal,
    start::READY,
    task::TaskService,
};

/// Threads for work that blocks: few, as each costs memory.
const BLOCKING_THREADS_MAX: usize = 4;
const BLOCKING_STACK_LEN: usize = 256 << 10;
/// Longest host name that Linux takes.
const HOST_NAME_LEN_MAX: usize = 64;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long containerd gets to take the last events.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);
/// How long answers under way get at the end.
const ANSWERS_PATIENCE: Duration = Duration::from_millis(500);

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The bundle is gone.
    #[error("cannot find the bundle: the working directory is gone")]
    Bundle(#[source] io::Error),
    /// A bad name.
    #[error("cannot name the pod")]
    Name(#[from] ArgumentError),
    /// Standard input is no socket.
    #[error("standard input is not a listening socket: the daemon is started by `start`, not by hand")]
    Listener(#[source] io::Error),
    /// The asynchronous runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The service.
    #[error("cannot serve: {0}")]
    Serve(String),
}

/// Is the daemon.
///
/// # Errors
/// It could not begin to serve; `start` is told the same.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError> {
    let (listener, starter) = take_over_stdio().map_err(DaemonError::Listener)?;
    let mut starter = Starter(Some(starter));
    serve(arguments, listener, &mut starter).inspect_err(|error| starter.say(error.to_string().as_bytes()))
}

/// The pipe to `start`, which takes one word.
struct Starter(Option<File>);

impl Starter {
    fn say(&mut self, word: &[u8]) {
        if let Some(mut pipe) = self.0.take() {
            // A `start` that is gone has nobody to tell.
            let _ = pipe.write_all(word);
        }
    }
}

fn serve(arguments: &Arguments, listener: UnixListener, starter: &mut Starter) -> Result<(), DaemonError> {
    let bundle = arguments.bundle_dir().map_err(DaemonError::Bundle)?;
    let group = Group::of(arguments, &bundle)?;
    LogFile::install(&bundle, &arguments.namespace, &arguments.id, arguments.debug);
    // Out of the session and process group of `start`, which end with it.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(BLOCKING_STACK_LEN)
        .build()
        .map_err(DaemonError::Runtime)?;
    let outcome = runtime.block_on(serve_pod(arguments, &bundle, group, listener, starter));
    runtime.shutdown_background();
    outcome
}

async fn serve_pod(
    arguments: &Arguments,
    bundle: &Path,
    group: Group,
    listener: UnixListener,
    starter: &mut Starter,
) -> Result<(), DaemonError> {
    let publisher = Publisher::start(ttrpc_address(), arguments.namespace.clone());
    let bound = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let group = Group { socket: bound.unwrap_or_else(|| group.socket.clone()), ..group };
    let machine = Machine::boot(launch(bundle.to_owned(), group.clone()), group.state_dir.clone());
    let containers = Containers::new(machine, publisher.clone());
    let service = TaskService::new(Arc::clone(&containers), group);
    let listener = Listener::try_from(listener).map_err(DaemonError::Listener)?;
    let mut server = Server::new().add_listener(listener).register_service(service.handlers());
    server.start().await.map_err(|error| DaemonError::Serve(error.to_string()))?;
    starter.say(READY);
    ignore_signals();
    tokio::spawn(containers.watch_machine());
    service.ended().await;
    publisher.flush(FLUSH_PATIENCE).await;
    let _ = timeout(ANSWERS_PATIENCE, server.shutdown()).await;
    Ok(())
}

async fn launch(bundle: PathBuf, group: Group) -> Result<Arc<dyn PodFront>, Refusal> {
    let configuration = Configuration::load().map_err(PodError::from)?;
    // What containerd's own debug mode has raised stays.
    if log::max_level() < log::LevelFilter::Debug {
        log::set_max_level(configuration.log_level.value);
    }
    let oci = bundle::spec(&bundle)?;
    let resources = oci.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let size = MachineSize::of_pod(oci.annotations().as_ref(), resources, &configuration)?;
    size.warnings.iter().for_each(|warning| log::warn!("pod {}: {warning}", group.id));
    log::info!("pod {}: the machine has {size}", group.id);
    let spec = pod_spec(&oci, group, &size);
    let installation = Installation::find()?;
    Ok(Arc::new(Pod::launch(&installation, spec).await?))
}

/// The pod that the group's first container asks for. Pure.
fn pod_spec(oci: &Spec, group: Group, size: &MachineSize) -> PodSpec {
    // The machine is the pod's network namespace: what is set per network namespace is set for the whole of it.
    let sysctls = oci.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
    PodSpec {
        id: group.id.clone(),
        state_dir: group.state_dir,
        vcpus: size.vcpus.value,
        memory_mib: size.memory_mib.value,
        hostname: oci.hostname().clone().unwrap_or_else(|| host_name(&group.id)),
        sysctls: sysctls.into_iter().filter(|(name, _)| name.starts_with("net.")).collect(),
        resolv_conf: String::new(),
        extra_cmdline: size.command_line(),
    }
}

// A pod that is not told its host name has its own, as long as Linux takes one (uname(2)).
fn host_name(id: &str) -> String {
    id.chars().take(HOST_NAME_LEN_MAX).collect()
}

fn take_over_stdio() -> io::Result<(UnixListener, File)> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let starter = io::stdout().as_fd().try_clone_to_owned()?;
    // Listening again makes this process, not `start`, the one that a peer sees behind the socket (unix(7), SO_PEERCRED).
    rustix::net::listen(&listener, BACKLOG)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok((listener.into(), starter.into()))
}

// Stopping containerd must not stop its containers, nor does the end of a terminal session.
fn ignore_signals() {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        if let Ok(mut signals) = signal(kind) {
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    log::info!(
                        "a signal to end ({}) is not followed: the pod ends with its last container",
                        kind.as_raw_value()
                    );
                }
            });
        }
    }
}

// containerd gives the path bare, or as an address.
fn ttrpc_address() -> Option<PathBuf> {
    let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty())?;
    Some(address.strip_prefix("unix://").unwrap_or(&address).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oci(json: &str) -> Spec {
        serde_json::from_str(json).expect("spec")
    }

    #[test]
    use pod::setting::{Setting, Source};

    fn the_pod_takes_the_network_sysctls_and_leaves_the_others_to_the_container() {
        let group = Group::named(Path::new("/r"), "", "ns", "pod1");
        let spec = oci(
            r#"{"ociVersion":"1.0.2","hostname":"h","linux":{"sysctl":{"net.ipv4.ip_forward":"1","kernel.shm_rmid_forced":"1"}}}"#,
        );
        let size = MachineSize {
            vcpus: Setting::new(2, Source::Default),
            memory_mib: Setting::new(256, Source::Default),
            console_level: Some(7),
            agent_log_level: None,
            warnings: vec![],
        };
        let pod = pod_spec(&spec, group, &size);
        assert_eq!((pod.vcpus, pod.memory_mib, pod.extra_cmdline.as_str()), (2, 256, "loglevel=7"));
        assert_eq!((pod.id.as_str(), pod.hostname.as_str()), ("pod1", "h"));
        assert_eq!(pod.sysctls.into_iter().collect::<Vec<_>>(), [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
    }
}
