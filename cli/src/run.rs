//! `kata-rs run`: one container in one machine, in the foreground.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use pod::{
    Configuration, ContainerSpec, ErrorKind, HostMount, Installation, Pod, PodError, PodNetwork, PodSpec, ProcessId,
    RootFs, StdioWanted,
    setting::Source,
    sizing::{Limits, MachineSize},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    image::{Layout, Store},
    network::{self, Net, Publish, Uplink},
    scratch::{Scratch, Writes},
    size,
    spec::{self, Volume, Wishes},
    stdio::Copying,
    terminal::{self, RawTerminal},
    timing::Moments,
    user::User,
};

/// Flags of `kata-rs run`.
#[derive(Args, Debug, Clone)]
pub struct Flags {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable, KEY=VALUE or KEY to pass the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Working folder in the container
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User and group, names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// CPUs the container may use
    #[arg(long, value_name = "NUMBER", value_parser = size::cpu_millis)]
    cpus: Option<u64>,
    /// Memory the container may use, for instance 512m
    #[arg(short, long, value_name = "SIZE", value_parser = size::bytes)]
    memory: Option<u64>,
    /// Folder or file of the host in the container
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]", value_parser = |text: &str| Volume::parse(text))]
    volume: Vec<Volume>,
    /// Give the container a network: outgoing connections, and published ports. Without a value, the way that this host has
    #[arg(long, value_name = "WAY", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    net: Option<Net>,
    /// Port of the host that leads into the container; implies --net
    #[arg(short, long, value_name = "[HOSTIP:]HOSTPORT:PORT[/udp]", value_parser = |text: &str| Publish::parse(text))]
    publish: Vec<Publish>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "PATH")]
    entrypoint: Option<String>,
    /// Host name in the container
    #[arg(long, value_name = "NAME", default_value = "kata-rs")]
    hostname: String,
    /// The root filesystem cannot be written to
    #[arg(long)]
    read_only: bool,
    /// Show on standard error where the time went
    #[arg(long)]
    timing: bool,
    /// OCI archive, OCI layout folder, or root filesystem folder
    image: PathBuf,
    /// Command and arguments; without, the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Our own failure, as container tools number it.
const STATUS_OURS: i32 = 125;
/// The command is there but cannot be run.
const STATUS_NOT_EXECUTABLE: i32 = 126;
/// The command is not there.
const STATUS_NOT_FOUND: i32 = 127;
/// How long output may still take once the caller wants an end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// The command's only container.
const CONTAINER_ID: &str = "main";

/// Runs, and returns the exit status.
pub fn main(flags: &Flags) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(flags));
            // Not dropped: that would wait for output that nobody reads.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("kata-rs: {}", sentence(&error));
        status_of(&error)
    })
}

/// The whole story. A pod's error tells its causes in its own words already.
fn sentence(error: &anyhow::Error) -> String {
    match error.downcast_ref::<PodError>() {
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    }
}

fn status_of(error: &anyhow::Error) -> i32 {
    match error.chain().find_map(|cause| cause.downcast_ref::<PodError>()) {
        Some(PodError { kind: ErrorKind::NotFound, .. }) => STATUS_NOT_FOUND,
        Some(error) if error.message.contains("executable file not found") => STATUS_NOT_FOUND,
        Some(error) if error.message.contains("no such file or directory") => STATUS_NOT_FOUND,
        Some(error) if error.message.contains("permission denied") => STATUS_NOT_EXECUTABLE,
        _ => STATUS_OURS,
    }
}

async fn run(flags: &Flags) -> anyhow::Result<i32> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "`kata-rs run` makes mounts and so needs root: run it with sudo (`kata-rs check` tells what else is missing)"
        );
    }
    if flags.tty && !terminal::is_present() {
        bail!("-t needs a terminal on standard input: leave -t out");
    }
    let wants_network = network::wanted(flags.net, &flags.publish)?;
    let mut moments = Moments::default();
    moments.mark("command starts");
    let configuration = Configuration::load().map_err(PodError::from)?;
    let installation = Installation::find()?;
    let scratch = Scratch::make(&format!("{}", std::process::id())).context("cannot make the folders of the run")?;
    let uplink = match wants_network.then(|| uplink(flags, &scratch)).transpose() {
        Ok(uplink) => uplink,
        Err(error) => {
            scratch.remove().context("cannot remove the folders of the run")?;
            return Err(error);
        }
    };
    if uplink.is_some() {
        moments.mark("network is there");
    }
    // The machine boots while the image is made ready.
    let (owned, writes) = (flags.clone(), scratch.writes());
    let resolv_conf = Some(scratch.resolv_conf()).filter(|file| file.exists());
    let image = tokio::task::spawn_blocking(move || container_spec(&owned, &writes, resolv_conf));
    let mut spec = pod_spec(flags, &scratch, &configuration);
    spec.network = uplink.as_ref().map_or(PodNetwork::None, |uplink| PodNetwork::Namespace(uplink.namespace()));
    let (launched, container) = tokio::join!(Pod::launch(&installation, spec), image);
    let container = container.context("the image could not be made ready")?;
    let pod = match launched {
        Ok(pod) => pod,
        Err(error) => {
            scratch.remove().context("cannot remove the folders of the run")?;
            // A bad image is the likelier cause of both failures, and the one the caller can mend.
            return Err(container.err().unwrap_or_else(|| error.into()));
        }
    };
    moments.mark("pod is up");
    let outcome = match container {
        Ok(container) => run_in(&pod, container, flags, &mut moments).await,
        Err(error) => Err(error),
    };
    if flags.timing
        && let Ok(report) = pod.report().await
    {
        moments.add(&report);
    }
    let stopped = pod.stop().await;
    drop(uplink);
    scratch.remove().context("cannot remove the folders of the run")?;
    moments.mark("all is gone");
    if flags.timing {
        eprint!("{}", moments.waterfall());
    }
    let status = outcome?;
    stopped?;
    Ok(status)
}

async fn run_in(pod: &Pod, container: ContainerSpec, flags: &Flags, moments: &mut Moments) -> anyhow::Result<i32> {
    let process = ProcessId { container_id: CONTAINER_ID.to_owned(), exec_id: String::new() };
    let mut signals = Signals::listen()?;
    let (_, streams) = pod.create_container(container).await?;
    moments.mark("container created");
    let raw = if flags.tty { RawTerminal::enter() } else { None };
    let copying = Copying::start(streams).context("cannot copy standard streams")?;
    pod.start(&process).await?;
    moments.mark("container started");
    let exit = {
        let wait = pod.wait(&process);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                exit = &mut wait => break exit?,
                event = signals.next() => forward(pod, &process, event).await,
            }
        }
    };
    moments.mark("container ended");
    drained(copying, &mut signals).await?;
    drop(raw);
    Ok(i32::try_from(exit.status).unwrap_or(STATUS_OURS))
}

/// Waits until all output is written. With no process left to pass them to, signals are for us: output that a reader does not take, or that
/// a guest does not end, is waited for a little longer then, and given up.
async fn drained(copying: Copying, signals: &mut Signals) -> anyhow::Result<()> {
    let mut draining = tokio::task::spawn_blocking(move || copying.drain());
    let drained = tokio::select! {
        drained = &mut draining => drained,
        () = signals.told_to_end() => match tokio::time::timeout(DRAIN_PATIENCE, draining).await {
            Ok(drained) => drained,
            Err(_) => {
                eprintln!("kata-rs: the last output was given up\r");
                return Ok(());
            }
        },
    };
    drained.context("the last output could not be written")
}

/// What the caller's terminal or init system tells the command.
enum Event {
    Signal(u32),
    Resized,
}

async fn forward(pod: &Pod, process: &ProcessId, event: Event) {
    let sent = match event {
        Event::Signal(number) => pod.signal(process, number, false).await,
        Event::Resized => {
            let (columns, rows) = terminal::size();
            pod.resize(process, columns, rows).await
        }
    };
    match sent {
        // The process ended while the signal was on its way: its exit is what counts.
        Err(error) if error.kind != ErrorKind::NotFound => eprintln!("kata-rs: {error}\r"),
        _ => {}
    }
}

/// The signals that a container hears of.
struct Signals {
    streams: Vec<(Option<u32>, tokio::signal::unix::Signal)>,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        use nix::sys::signal::Signal as S;
        let passed = [S::SIGHUP, S::SIGINT, S::SIGQUIT, S::SIGUSR1, S::SIGUSR2, S::SIGTERM];
        let mut streams = vec![(None, signal(SignalKind::window_change())?)];
        for number in passed.map(|s| s as i32) {
            streams.push((u32::try_from(number).ok(), signal(SignalKind::from_raw(number))?));
        }
        Ok(Self { streams })
    }

    async fn told_to_end(&mut self) {
        while matches!(self.next().await, Event::Resized) {}
    }

    async fn next(&mut self) -> Event {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(number.map_or(Event::Resized, Event::Signal));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The container's network, and its resolv.conf in a file of the run.
fn uplink(flags: &Flags, scratch: &Scratch) -> anyhow::Result<Uplink> {
    let uplink = Uplink::make(&flags.publish)?;
    eprintln!("kata-rs: {}", uplink.told());
    if let Some(text) = uplink.resolv_conf() {
        fs::write(scratch.resolv_conf(), text).context("cannot write the container's resolv.conf")?;
    }
    Ok(uplink)
}

fn pod_spec(flags: &Flags, scratch: &Scratch, configuration: &Configuration) -> PodSpec {
    let size = machine_size(flags, configuration);
    size.warnings.iter().for_each(|warning| eprintln!("kata-rs: {warning}"));
    PodSpec {
        id: scratch.id().to_owned(),
        state_dir: scratch.pod_state(),
        vcpus: size.vcpus.value,
        memory_mib: size.memory_mib.value,
        hostname: flags.hostname.clone(),
        sysctls: Default::default(),
        resolv_conf: String::new(),
        network: PodNetwork::None,
        interface_rules: configuration.interface_rules(),
        extra_cmdline: size.command_line(),
    }
}

fn machine_size(flags: &Flags, configuration: &Configuration) -> MachineSize {
    let memory = flags.memory.map(|bytes| (i64::try_from(bytes).unwrap_or(i64::MAX), Source::Flag("--memory")));
    let quota = flags.cpus.map(|millis| {
        let quota = i64::try_from(millis * spec::CPU_PERIOD_USEC / 1000).unwrap_or(i64::MAX);
        (quota, Some(spec::CPU_PERIOD_USEC), Source::Flag("--cpus"))
    });
    MachineSize::plan(&Limits::stated(quota, memory), &Default::default(), configuration)
}

fn container_spec(flags: &Flags, writes: &Writes, resolv_conf: Option<PathBuf>) -> anyhow::Result<ContainerSpec> {
    let (lower, configuration) = image_of(&flags.image)?;
    let user = flags.user.clone().or_else(|| configuration.config().as_ref()?.user().clone()).unwrap_or_default();
    let user = User::find(&lower, &user)?;
    let wishes = Wishes {
        command: flags.command.clone(),
        entrypoint: flags.entrypoint.clone(),
        env: flags.env.clone(),
        workdir: flags.workdir.clone(),
        terminal: flags.tty,
        cpu_millis: flags.cpus,
        memory_bytes: flags.memory,
        volumes: resolver(resolv_conf).into_iter().chain(flags.volume.clone()).collect(),
        read_only: flags.read_only,
        hostname: flags.hostname.clone(),
    };
    let terminal = flags.tty.then(terminal::size);
    Ok(ContainerSpec {
        id: CONTAINER_ID.to_owned(),
        oci: spec::spec(&configuration, &user, &wishes)?,
        rootfs: RootFs::Mounts(vec![overlay(&lower, writes)]),
        stdio: StdioWanted { stdin: flags.interactive || flags.tty, stdout: true, stderr: !flags.tty, terminal },
    })
}

/// Name servers are mounted, as the image is not changed; a volume of the caller's at the same place comes later, and wins.
fn resolver(file: Option<PathBuf>) -> Option<Volume> {
    file.map(|source| Volume { source, destination: "/etc/resolv.conf".into(), read_only: true })
}

/// The lower folder and what it says about running it; a plain folder says nothing.
fn image_of(path: &Path) -> anyhow::Result<(PathBuf, oci_spec::image::ImageConfiguration)> {
    let path = path.canonicalize().with_context(|| format!("{}: no such image or folder", path.display()))?;
    if path.is_dir() && !Layout::is_layout_folder(&path) {
        return Ok((path, Default::default()));
    }
    let stored = Store::of_user().image(&Layout::open(&path)?)?;
    Ok((stored.root, stored.configuration))
}

/// The image below, the run's own writes above: an image is never changed by a run.
fn overlay(lower: &Path, writes: &Writes) -> HostMount {
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    HostMount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![option("lowerdir", lower), option("upperdir", &writes.upper), option("workdir", &writes.work)],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn output_that_never_ends_is_given_up_when_the_caller_wants_an_end() {
        let mut signals = Signals::listen().expect("listening");
        let (ours, unending) = UnixStream::pair().expect("a pair");
        let streams = pod::ProcessStreams { stdout: Some(ours), ..Default::default() };
        let copying = Copying::start(streams).expect("copying");
        raise(Signal::SIGWINCH).expect("raised");
        let waiting = drained(copying, &mut signals);
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
        assert!(early.is_err(), "a new size of the terminal ends nothing");
        raise(Signal::SIGTERM).expect("raised");
        tokio::time::timeout(DRAIN_PATIENCE * 3, waiting).await.expect("in time").expect("given up");
        // The runtime waits for the thread otherwise, which waits for this.
        drop(unending);
    }
}
