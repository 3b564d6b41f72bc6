//! A shim, driven as containerd 1.6 drives it: `start` in the bundle, the address on its standard output, ttrpc on the socket, and
//! `delete` when it is gone. One [`Shim`] is one daemon; the containers in it are [`Task`](super::Task)s.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio as Pipe},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use containerd_shim_protos::{
    api::DeleteResponse,
    protobuf::{Message, MessageField},
    ttrpc::{
        self, Client, Code,
        proto::{KeyValue, Request},
    },
};
use rustix::process::Signal;

use super::{Bundle, EventLog, Subject, fifo};
use crate::{Finished, command, pids_of};

/// Longest that a call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Longest that a process may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// The name of the service in containerd 1.6 and 1.7; 2.x calls it v3.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// The same messages under the name of containerd 2.x.
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// What a call brings.
pub type Answer<T> = ttrpc::Result<T>;

/// A daemon and a connection to it.
pub struct Shim {
    program: PathBuf,
    namespace: String,
    /// The socket's address, as `start` printed it.
    pub address: String,
    /// What it tells containerd.
    pub events: EventLog,
    client: Client,
    bundles: Mutex<Vec<Bundle>>,
}

impl Shim {
    /// Starts one for a bundle.
    ///
    /// # Errors
    /// `start` fails, or its address leads nowhere.
    pub fn start(subject: &Subject, bundle: &Bundle) -> anyhow::Result<Self> {
        let events = EventLog::listen(&subject.folder().join(format!("{}.events", bundle.id)))?;
        let (program, namespace) = (subject.shim()?, subject.namespace());
        let address = start(&program, &namespace, bundle, events.path())?;
        let client = Client::connect(&address).with_context(|| format!("nobody serves at {address}"))?;
        let bundles = Mutex::new(vec![bundle.clone()]);
        Ok(Self { program, namespace, address, events, client, bundles })
    }

    /// `start` for another bundle, which may belong into the same pod; returns the address.
    ///
    /// # Errors
    /// `start` fails.
    pub fn start_beside(&self, bundle: &Bundle) -> anyhow::Result<String> {
        self.bundles.lock().expect("nobody panics with it").push(bundle.clone());
        start(&self.program, &self.namespace, bundle, self.events.path())
    }

    /// Calls the Task service by the name that containerd 1.6 knows.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Answer<A> {
        self.call_as(TASK_V2, method, request)
    }

    /// Calls it by another name.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn call_as<Q: Message, A: Message>(&self, service: &str, method: &str, request: &Q) -> Answer<A> {
        let bytes = request.write_to_bytes().map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        self.call_with(service, method, bytes)
    }

    /// Calls with bytes that need not be a message.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn call_with<A: Message>(&self, service: &str, method: &str, payload: Vec<u8>) -> Answer<A> {
        let namespace = KeyValue {
            key: "containerd-namespace-ttrpc".to_owned(),
            value: self.namespace.clone(),
            ..KeyValue::default()
        };
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(CALL_DEADLINE.as_nanos()).unwrap_or(i64::MAX),
            metadata: vec![namespace],
            ..Request::default()
        };
        let answer = self.client.request(request)?;
        A::parse_from_bytes(&answer.payload).map_err(|error| ttrpc::Error::Others(error.to_string()))
    }

    /// A second connection, as another client's.
    ///
    /// # Errors
    /// Nobody serves at the address.
    pub fn another_client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.address)?)
    }

    /// Runs `delete` for a bundle, as containerd does when the shim is gone.
    ///
    /// # Errors
    /// It does not start.
    pub fn delete(&self, bundle: &Bundle) -> anyhow::Result<Deleted> {
        let mut command = command_of(&self.program, &self.namespace, bundle, self.events.path());
        command.args(["-bundle".as_ref(), bundle.folder.as_os_str()]).arg("delete");
        let output = command.stdin(Pipe::null()).stdout(Pipe::piped()).stderr(Pipe::piped()).output()?;
        ensure!(output.status.success(), "delete: {}", String::from_utf8_lossy(&output.stderr));
        let response = DeleteResponse::parse_from_bytes(&output.stdout);
        Ok(Deleted { response: response.context("delete prints a DeleteResponse")? })
    }

    /// The daemon's processes: one, or none when it is gone.
    pub fn pids(&self) -> Vec<u32> {
        let bundles = self.bundles.lock().expect("nobody panics with it");
        let mut pids: Vec<_> = bundles.iter().flat_map(|bundle| pids_of("containerd-shim", &bundle.id)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.address.trim_start_matches("unix://").into()
    }

    /// Waits until the daemon and its socket are gone.
    ///
    /// # Errors
    /// They stay.
    pub fn wait_for_end(&self) -> anyhow::Result<()> {
        let end = Instant::now() + END_DEADLINE;
        let socket = self.socket();
        while !self.pids().is_empty() || socket.exists() {
            ensure!(Instant::now() < end, "{:?} and {} are still there", self.pids(), socket.display());
            // The daemon is not our child, and the kernel tells nobody of a removed socket.
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills the daemon without warning, and sees it gone.
    pub fn murder(&self) {
        self.pids().into_iter().for_each(|pid| command::signal(pid, Signal::KILL));
        let end = Instant::now() + END_DEADLINE;
        while !self.pids().is_empty() && Instant::now() < end {
            // It is not our child.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What `delete` printed.
pub struct Deleted {
    /// The message.
    pub response: DeleteResponse,
}

impl Drop for Shim {
    // containerd calls `delete` for every container in the end, however its shim ended. After a case that failed half way there is more to do.
    fn drop(&mut self) {
        if !self.pids().is_empty() {
            self.murder();
        }
        let bundles = self.bundles.lock().map(|bundles| bundles.clone()).unwrap_or_default();
        for bundle in bundles {
            drop(self.delete(&bundle));
            let _ = rustix::mount::unmount(bundle.path("rootfs"), rustix::mount::UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_file(self.socket());
    }
}

fn start(program: &Path, namespace: &str, bundle: &Bundle, events: &Path) -> anyhow::Result<String> {
    bundle.write()?;
    // containerd reads the shim's log from a pipe that it makes before.
    let log = bundle.path("log");
    if !log.exists() {
        fifo::make(&log)?;
        keep_log(&log, bundle.path("log.txt"))?;
    }
    let mut command = command_of(program, namespace, bundle, events);
    let finished = command::run(command.arg("start").stdin(Pipe::null()));
    let Finished { status, stdout, stderr } = finished;
    ensure!(status.success(), "start: {status}: {stderr}");
    let address = stdout.trim().to_owned();
    ensure!(address.starts_with("unix://"), "start prints the address of a socket, not {address:?}");
    Ok(address)
}

fn command_of(program: &Path, namespace: &str, bundle: &Bundle, events: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&bundle.folder).env("TTRPC_ADDRESS", events).env("GOMAXPROCS", "2");
    // No containerd is at this address; it is part of the socket's name, and not called.
    let address = bundle.folder.parent().unwrap_or(&bundle.folder).join("containerd.sock");
    command.args(["-namespace", namespace, "-publish-binary", "/bin/false", "-id", &bundle.id]);
    command.arg("-address").arg(address);
    command
}

fn keep_log(log: &Path, copy: PathBuf) -> anyhow::Result<()> {
    // Open for both: it neither waits for a writer nor ends with one.
    let flags = rustix::fs::OFlags::CLOEXEC.bits().cast_signed();
    let mut source = OpenOptions::new().read(true).write(true).custom_flags(flags).open(log)?;
    let mut copy = File::create(copy)?;
    thread::spawn(move || {
        let mut block = [0; 4096];
        while let Ok(count) = source.read(&mut block) {
            if std::io::Write::write_all(&mut copy, &block[..count]).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The code of a refusal, and its sentence.
///
/// # Errors
/// The call succeeded, or failed in another way than by an answer.
pub fn code_of<T: std::fmt::Debug>(answer: Answer<T>) -> anyhow::Result<(Code, String)> {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => Ok((status.code(), status.message().to_owned())),
        Err(other) => bail!("no answer at all: {other}"),
        Ok(answer) => bail!("not refused, but answered: {answer:?}"),
    }
}

/// Checks that a call is refused with this code, and returns the sentence.
///
/// # Errors
/// It is not.
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, wanted: Code) -> anyhow::Result<String> {
    let (code, sentence) = code_of(answer)?;
    ensure!(code == wanted, "refused with {code:?} ({sentence}), not {wanted:?}");
    ensure!(!sentence.is_empty(), "refused with {code:?}, without a word");
    Ok(sentence)
}

/// Wraps an object as containerd wraps OCI's: JSON in an `Any` that names it.
pub fn any(
    type_name: &str,
    object: &serde_json::Value,
) -> MessageField<containerd_shim_protos::protobuf::well_known_types::any::Any> {
    let type_url = format!("types.containerd.io/opencontainers/runtime-spec/1/{type_name}");
    MessageField::some(containerd_shim_protos::protobuf::well_known_types::any::Any {
        type_url,
        value: object.to_string().into_bytes(),
        ..Default::default()
    })
}
