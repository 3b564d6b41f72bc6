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

use pod::{Configuration, Installation, Pod, PodError, PodSpec, host_cgroup::HostCgroup, sizing::MachineSize};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use ttrpc::r#async::Server;

use crate::{
    arguments::{ArgumentError, Arguments},
    bundle,
    containers::Containers,
    group::Group,
    listener,
    logfile::LogFile,
    machine::{Launched, Machine},
    pod_cgroup,
    pod_request::PodRequest,
    publisher::Publisher,
    sandbox_service::SandboxService,
    start::READY,
    sweep::sweep,
    task::TaskService,
};

/// Threads for work that blocks: few, as each costs memory.
const BLOCKING_THREADS_MAX: usize = 4;
const BLOCKING_STACK_LEN: usize = 256 << 10;
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
    /// Nobody would ever know of this daemon.
    #[error("the start that made this daemon was killed, so containerd is not told of it: it ends")]
    Starter(#[source] io::Error),
}

/// Is the daemon.
///
/// # Errors
/// It could not begin to serve; `start` is told the same.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError> {
    let (listener, starter) = take_over_stdio().map_err(DaemonError::Listener)?;
    let mut starter = Starter(Some(starter));
    serve(arguments, listener, &mut starter).inspect_err(|error| {
        // A `start` that is gone has nobody to tell.
        let _ = starter.say(error.to_string().as_bytes());
    })
}

/// The pipe to `start`, which takes one word.
struct Starter(Option<File>);

impl Starter {
    fn say(&mut self, word: &[u8]) -> io::Result<()> {
        self.0.take().map_or(Ok(()), |mut pipe| pipe.write_all(word))
    }
}

fn serve(arguments: &Arguments, listener: UnixListener, starter: &mut Starter) -> Result<(), DaemonError> {
    let bundle = arguments.bundle_dir().map_err(DaemonError::Bundle)?;
    let group = Group::of(arguments, &bundle)?;
    let bound = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let group = Group { socket: bound.unwrap_or_else(|| group.socket.clone()), ..group };
    LogFile::install(&bundle, &arguments.namespace, &arguments.id, arguments.debug);
    // Out of the session and process group of `start`, which end with it.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(BLOCKING_STACK_LEN)
        .build()
        .map_err(DaemonError::Runtime)?;
    let cgroup = pod_cgroup::inherited(&group, &bundle);
    let outcome = runtime.block_on(serve_pod(arguments, &bundle, (group, cgroup), listener, starter));
    runtime.shutdown_background();
    outcome
}

async fn serve_pod(
    arguments: &Arguments,
    bundle: &Path,
    (group, cgroup): (Group, Option<HostCgroup>),
    listener: UnixListener,
    starter: &mut Starter,
) -> Result<(), DaemonError> {
    let publisher = Publisher::start(ttrpc_address(), arguments.namespace.clone());
    let containers = Containers::new(machine(bundle, &group), publisher.clone());
    containers.counted_on_the_host(group.clone());
    let service = TaskService::new(Arc::clone(&containers), group.clone());
    let sandbox = SandboxService::new(Arc::clone(&containers), service.ending().clone());
    let mut services = service.handlers();
    services.extend(sandbox.handlers());
    let listener = listener::accept(listener, services.keys().cloned()).map_err(DaemonError::Listener)?;
    let mut server = Server::new().add_listener(listener).register_service(services);
    server.start().await.map_err(|error| DaemonError::Serve(error.to_string()))?;
    starter.say(READY).map_err(DaemonError::Starter)?;
    ignore_signals();
    let sockets = group.socket.parent().map(Path::to_owned);
    tokio::task::spawn_blocking(move || sockets.iter().for_each(|folder| sweep(folder)));
    tokio::spawn(Arc::clone(&containers).watch_memory());
    tokio::spawn(containers.watch_machine());
    service.ended().await;
    // Before anything that takes time: who kills this process then finds nothing of the pod any more.
    leave_cgroup(&group, cgroup);
    publisher.flush(FLUSH_PATIENCE).await;
    let _ = timeout(ANSWERS_PATIENCE, server.shutdown()).await;
    Ok(())
}

fn leave_cgroup(group: &Group, inherited: Option<HostCgroup>) {
    if let Some(cgroup) = inherited.or_else(|| pod_cgroup::current(group)) {
        let _lock = group.lock();
        pod_cgroup::leave(group, &cgroup);
    }
}

// Without a configuration the bundle is a sandbox's of the sandbox service, which says later what machine it needs.
fn machine(bundle: &Path, group: &Group) -> Machine {
    let state_dir = group.state_dir.clone();
    let group = group.clone();
    if !bundle::has_spec(bundle) {
        return Machine::awaited(
            Box::new(|request| {
                request.cgroup_parent.iter().for_each(|parent| pod_cgroup::enter_late(&group, parent));
                Box::pin(launch(request, group))
            }),
            state_dir,
        );
    }
    // A machine that its container would be refused in is not booted.
    let checked = bundle::spec(bundle).and_then(|oci| {
        pod::check_namespaces(&group.id, &oci)?;
        Ok(oci)
    });
    match checked {
        Ok(oci) => Machine::boot(launch(PodRequest::of_container(&oci), group), state_dir),
        Err(refusal) => Machine::boot(async { Err(refusal) }, state_dir),
    }
}

async fn launch(request: PodRequest, group: Group) -> Launched {
    let configuration = Configuration::load().map_err(PodError::from)?;
    // What containerd's own debug mode has raised stays.
    if log::max_level() < log::LevelFilter::Debug {
        log::set_max_level(configuration.log_level.value);
    }
    let size = MachineSize::of_pod(Some(&request.annotations), request.resources.as_ref(), &configuration)?;
    size.warnings.iter().for_each(|warning| log::warn!("pod {}: {warning}", group.id));
    log::info!("pod {}: the machine has {size}", group.id);
    let installation = Installation::find()?;
    let spec = PodSpec { interface_rules: configuration.interface_rules(), ..request.spec(group, &size) };
    Ok(Arc::new(Pod::launch(&installation, spec).await?))
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
