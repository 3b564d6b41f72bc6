//! The containers and execs of the pod, and everything containerd can do to them.
//!
//! The table is locked for look-ups only, never across a wait. A process's life is a [`Lifecycle`] behind a lock of its own, and events
//! are queued while that lock is held: so the order of a process's events is the order of its life.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use agent_protocol::messages::StatsResponse;
use containerd_shim_protos::api::Mount;
use oci_spec::runtime::{LinuxResources, Process as OciProcess, Spec};
use pod::{ContainerSpec, ErrorKind, ExecSpec, Exit, PodError, ProcessId, RootFs};
use tokio::sync::watch;

use crate::{
    events::Event,
    lifecycle::{Announcement, Lifecycle, Phase},
    machine::{Machine, PodFront},
    publisher::Publisher,
    refusal::Refusal,
    stdio::{Opened, Paths, Stdio},
};

/// Status of a process that was killed, or whose machine died: 128 + SIGKILL.
pub const KILLED_STATUS: u32 = 137;

/// A container to make, parsed.
pub struct NewContainer {
    /// Its name.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its configuration.
    pub oci: Spec,
    /// Its root.
    pub rootfs: RootFs,
    /// The root's mounts as containerd named them, for the event.
    pub mounts: Vec<Mount>,
    /// Its stdio.
    pub stdio: Paths,
}

/// An exec to register, parsed.
pub struct NewExec {
    /// Its container's name and its own.
    pub id: ProcessId,
    /// What it runs.
    pub process: OciProcess,
    /// Its stdio.
    pub stdio: Paths,
}

/// A process as `State` shows it.
pub struct Snapshot {
    /// Its container's bundle.
    pub bundle: PathBuf,
    /// Where its stdio goes.
    pub stdio: Paths,
    /// Where it is in its life.
    pub phase: Phase,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

struct Process {
    id: ProcessId,
    bundle: PathBuf,
    paths: Paths,
    life: Mutex<Lifecycle>,
    /// Set once, after the exit was announced.
    exit: watch::Sender<Option<Exit>>,
    stdio: Mutex<Option<Stdio>>,
    /// Set once, when a delete has seen the last of the output.
    drained: watch::Sender<bool>,
}

impl Process {
    fn new(id: ProcessId, bundle: PathBuf, paths: Paths, stdio: Stdio) -> Arc<Self> {
        Arc::new(Self {
            id,
            bundle,
            paths,
            life: Mutex::default(),
            exit: watch::Sender::new(None),
            stdio: Mutex::new(Some(stdio)),
            drained: watch::Sender::new(false),
        })
    }
}

enum Slot {
    /// Being made: the name is taken, nothing else can be done to it.
    Reserved,
    Made(Arc<Process>),
}

/// All containers of the pod.
pub struct Containers {
    machine: Machine,
    publisher: Publisher,
    table: Mutex<BTreeMap<ProcessId, Slot>>,
}

impl Containers {
    /// An empty pod on `machine`.
    pub fn new(machine: Machine, publisher: Publisher) -> Arc<Self> {
        Arc::new(Self { machine, publisher, table: Mutex::default() })
    }

    /// The pid that stands for every process of the pod on the host; a guest's pid would name a stranger here.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The machine, for the end.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether nothing is left that containerd knows of.
    pub fn is_empty(&self) -> bool {
        held(&self.table).is_empty()
    }

    /// Makes a container, waiting for the machine to be up.
    ///
    /// # Errors
    /// The name is taken, the stdio cannot be opened, or the pod refuses; nothing is left then.
    pub async fn create(self: &Arc<Self>, new: NewContainer) -> Result<u32, Refusal> {
        let reservation = self.reserve(first(&new.id))?;
        let opened = Opened::open(&new.stdio)?;
        let pod = self.machine.pod().await?;
        let wanted = new.stdio.wanted(console_size(new.oci.process().as_ref()));
        let spec = ContainerSpec { id: new.id.clone(), oci: new.oci, rootfs: new.rootfs, stdio: wanted };
        let (_guest_pid, streams) = pod.create_container(spec).await?;
        let stdio = match opened.connect(streams) {
            Ok(stdio) => stdio,
            Err(error) => {
                let _ = pod.delete(&first(&new.id)).await;
                return Err(Refusal::new(ErrorKind::Internal, format!("cannot copy the stdio of {}: {error}", new.id)));
            }
        };
        let process = Process::new(first(&new.id), new.bundle.clone(), new.stdio.clone(), stdio);
        self.publisher.publish(Event::Created {
            container_id: new.id,
            bundle: new.bundle.display().to_string(),
            rootfs: new.mounts,
            stdio: new.stdio,
            pid: self.pid(),
        });
        reservation.fill(Arc::clone(&process));
        self.watch(process, pod);
        Ok(self.pid())
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// The container does not run, the name is taken, the stdio cannot be opened, or the pod refuses.
    pub async fn add_exec(self: &Arc<Self>, new: NewExec) -> Result<(), Refusal> {
        let container = self.process(&first(&new.id.container_id))?;
        if held(&container.life).phase() != Phase::Running {
            let sentence = format!("cannot run a command in the container {}: it does not run", new.id.container_id);
            return Err(Refusal::new(ErrorKind::FailedPrecondition, sentence));
        }
        let reservation = self.reserve(new.id.clone())?;
        let opened = Opened::open(&new.stdio)?;
        let pod = self.machine.pod().await?;
        let exec = ExecSpec {
            container_id: new.id.container_id.clone(),
            exec_id: new.id.exec_id.clone(),
            stdio: new.stdio.wanted(console_size(Some(&new.process))),
            process: new.process,
        };
        let streams = pod.add_exec(exec).await?;
        let stdio = match opened.connect(streams) {
            Ok(stdio) => stdio,
            Err(error) => {
                let _ = pod.delete(&new.id).await;
                return Err(Refusal::new(ErrorKind::Internal, format!("cannot copy the stdio of an exec: {error}")));
            }
        };
        let process = Process::new(new.id.clone(), container.bundle.clone(), new.stdio, stdio);
        self.publisher.publish(Event::ExecAdded(new.id));
        reservation.fill(process);
        Ok(())
    }

    /// Starts a container or an exec.
    ///
    /// # Errors
    /// It was started before, or it cannot run: the guest's own sentence.
    pub async fn start(self: &Arc<Self>, id: &ProcessId) -> Result<u32, Refusal> {
        let process = self.process(id)?;
        held(&process.life).request_start()?;
        match self.start_in_guest(&process).await {
            Ok(pod) => {
                self.announce(&process, Lifecycle::started);
                if !id.exec_id.is_empty() {
                    self.watch(process, pod);
                }
                Ok(self.pid())
            }
            Err(refusal) => {
                self.announce(&process, Lifecycle::start_failed);
                Err(refusal)
            }
        }
    }

    async fn start_in_guest(&self, process: &Process) -> Result<Arc<dyn PodFront>, Refusal> {
        if let Some(stdio) = held(&process.stdio).as_mut() {
            stdio.open_stdin()?;
        }
        let pod = self.machine.pod().await?;
        pod.start(&process.id).await?;
        Ok(pod)
    }

    /// Sends a signal. Waits for nothing that is under way.
    ///
    /// # Errors
    /// There is no such process, or it has ended.
    pub async fn signal(&self, id: &ProcessId, signal: u32, all: bool) -> Result<(), Refusal> {
        let process = self.process(id)?;
        held(&process.life).check_signal()?;
        Ok(self.machine.pod().await?.signal(id, signal, all).await?)
    }

    /// Waits for a process to end.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn wait(&self, id: &ProcessId) -> Result<Exit, Refusal> {
        let process = self.process(id)?;
        let mut exit = process.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.ok_or_else(|| Refusal::not_found(name(id)))
    }

    /// Forgets a process that does not run, once its output is where it belongs.
    ///
    /// # Errors
    /// It runs, or the pod cannot let go of it; it can be tried again then.
    pub async fn delete(&self, id: &ProcessId) -> Result<Exit, Refusal> {
        let process = self.process(id)?;
        let ended = {
            let life = held(&process.life);
            life.check_delete()?;
            life.exit()
        };
        let stdio = held(&process.stdio).take();
        match stdio {
            Some(stdio) if ended.is_some() => stdio.drain().await,
            Some(_never_ran) => {}
            // Another delete has it; being second is no reason to be told too early.
            None => drop(process.drained.subscribe().wait_for(|drained| *drained).await),
        }
        process.drained.send_replace(true);
        let exit = match self.machine.pod().await?.delete(id).await {
            Ok(exit) => exit,
            Err(PodError { kind: ErrorKind::NotFound, .. }) => ended.unwrap_or_else(killed_now),
            Err(error) => return Err(error.into()),
        };
        self.announce(&process, |life| life.ended(exit));
        let exit = held(&process.life).exit().unwrap_or(exit);
        if self.forget(id) && id.exec_id.is_empty() {
            self.publisher.publish(Event::Deleted(id.container_id.clone(), self.pid(), exit));
        }
        Ok(exit)
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// There is no such process, or it has none.
    pub async fn resize(&self, id: &ProcessId, columns: u16, rows: u16) -> Result<(), Refusal> {
        self.process(id)?;
        Ok(self.machine.pod().await?.resize(id, columns, rows).await?)
    }

    /// Lets a process's input end.
    ///
    /// # Errors
    /// There is no such process.
    pub fn close_stdin(&self, id: &ProcessId) -> Result<(), Refusal> {
        if let Some(stdio) = held(&self.process(id)?.stdio).as_mut() {
            stdio.close_stdin();
        }
        Ok(())
    }

    /// What is known of a process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn snapshot(&self, id: &ProcessId) -> Result<Snapshot, Refusal> {
        let process = self.process(id)?;
        let life = held(&process.life);
        Ok(Snapshot {
            bundle: process.bundle.clone(),
            stdio: process.paths.clone(),
            phase: life.phase(),
            exit: life.exit(),
        })
    }

    /// Pids of a container's processes, as the guest counts. Never empty: containerd takes a container without processes for a
    /// leaked one when it restarts, and would end it.
    ///
    /// # Errors
    /// There is no such container, or the machine does not answer.
    pub async fn pids(&self, container_id: &str) -> Result<Vec<u32>, Refusal> {
        let process = self.process(&first(container_id))?;
        if held(&process.life).exit().is_some() {
            return Ok(vec![self.pid()]);
        }
        let pids = self.machine.pod().await?.pids(container_id).await?;
        Ok(if pids.is_empty() { vec![self.pid()] } else { pids })
    }

    /// A container's figures.
    ///
    /// # Errors
    /// There is no such container, or the machine does not answer.
    pub async fn stats(&self, container_id: &str) -> Result<StatsResponse, Refusal> {
        self.process(&first(container_id))?;
        Ok(self.machine.pod().await?.stats(container_id).await?)
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// There is no such container, or the guest refuses.
    pub async fn update(&self, container_id: &str, resources: LinuxResources) -> Result<(), Refusal> {
        self.process(&first(container_id))?;
        Ok(self.machine.pod().await?.update(container_id, resources).await?)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// There is no such container, or the guest refuses.
    pub async fn pause(&self, container_id: &str) -> Result<(), Refusal> {
        let process = self.process(&first(container_id))?;
        self.machine.pod().await?.pause(container_id).await?;
        let mut life = held(&process.life);
        life.paused();
        self.publisher.publish(Event::Paused(container_id.to_owned()));
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// There is no such container, or the guest refuses.
    pub async fn resume(&self, container_id: &str) -> Result<(), Refusal> {
        let process = self.process(&first(container_id))?;
        self.machine.pod().await?.resume(container_id).await?;
        let mut life = held(&process.life);
        life.resumed();
        self.publisher.publish(Event::Resumed(container_id.to_owned()));
        Ok(())
    }

    /// Ends what can end only with the machine: execs that were never started. The others end through their own watch.
    pub async fn watch_machine(self: Arc<Self>) {
        let Ok(pod) = self.machine.pod().await else { return };
        let how = pod.gone().await;
        log::info!("the pod's machine is gone: {how}");
        let waiting: Vec<_> = held(&self.table).values().filter_map(made).collect();
        for process in waiting {
            if !process.id.exec_id.is_empty() && held(&process.life).phase() == Phase::Created {
                self.announce(&process, |life| life.ended(killed_now()));
            }
        }
    }

    fn watch(self: &Arc<Self>, process: Arc<Process>, pod: Arc<dyn PodFront>) {
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            let exit = pod.wait(&process.id).await.unwrap_or_else(|error| {
                log::debug!("no exit status of {}: {error}", name(&process.id));
                killed_now()
            });
            containers.announce(&process, |life| life.ended(exit));
        });
    }

    fn announce(&self, process: &Process, step: impl FnOnce(&mut Lifecycle) -> Vec<Announcement>) {
        let mut life = held(&process.life);
        for news in step(&mut life) {
            match news {
                Announcement::Started => self.publisher.publish(Event::Started(process.id.clone(), self.pid())),
                Announcement::OutOfMemory => {
                    self.publisher.publish(Event::OutOfMemory(process.id.container_id.clone()));
                }
                Announcement::Exited(exit) => {
                    self.publisher.publish(Event::Exited(process.id.clone(), self.pid(), exit));
                    process.exit.send_replace(Some(exit));
                }
            }
        }
    }

    fn process(&self, id: &ProcessId) -> Result<Arc<Process>, Refusal> {
        match held(&self.table).get(id) {
            Some(Slot::Made(process)) => Ok(Arc::clone(process)),
            Some(Slot::Reserved) => {
                let sentence = format!("{} is still being made", name(id));
                Err(Refusal::new(ErrorKind::FailedPrecondition, sentence))
            }
            None => Err(Refusal::not_found(name(id))),
        }
    }

    fn reserve(self: &Arc<Self>, id: ProcessId) -> Result<Reservation, Refusal> {
        match held(&self.table).entry(id.clone()) {
            Entry::Occupied(_) => Err(Refusal::new(ErrorKind::AlreadyExists, format!("{} exists already", name(&id)))),
            Entry::Vacant(slot) => {
                slot.insert(Slot::Reserved);
                Ok(Reservation { containers: Arc::clone(self), id: Some(id) })
            }
        }
    }

    // Takes a process out of the table, and with a container its execs. False when someone else did.
    fn forget(&self, id: &ProcessId) -> bool {
        let gone: Vec<_> = {
            let mut table = held(&self.table);
            if table.remove(id).is_none() {
                return false;
            }
            if !id.exec_id.is_empty() {
                return true;
            }
            table.extract_if(.., |other, _| other.container_id == id.container_id).collect()
        };
        for exec in gone.iter().filter_map(|(_, slot)| made(slot)) {
            self.announce(&exec, |life| life.ended(killed_now()));
        }
        true
    }
}

/// A taken name; given back unless filled.
struct Reservation {
    containers: Arc<Containers>,
    id: Option<ProcessId>,
}

impl Reservation {
    fn fill(mut self, process: Arc<Process>) {
        if let Some(id) = self.id.take() {
            held(&self.containers.table).insert(id, Slot::Made(process));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            held(&self.containers.table).remove(&id);
        }
    }
}

/// Locks what is never held across a wait. A panic ends the process, so no lock is ever poisoned.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a container's first process.
pub fn first(container_id: &str) -> ProcessId {
    ProcessId { container_id: container_id.to_owned(), exec_id: String::new() }
}

fn made(slot: &Slot) -> Option<Arc<Process>> {
    match slot {
        Slot::Made(process) => Some(Arc::clone(process)),
        Slot::Reserved => None,
    }
}

fn name(id: &ProcessId) -> String {
    match id.exec_id.as_str() {
        "" => format!("the container {}", id.container_id),
        exec_id => format!("the process {exec_id} of the container {}", id.container_id),
    }
}

fn killed_now() -> Exit {
    Exit { status: KILLED_STATUS, at: SystemTime::now(), oom_killed: false }
}

fn console_size(process: Option<&OciProcess>) -> (u16, u16) {
    let size = process.and_then(OciProcess::console_size);
    let cells = |count: u64| u16::try_from(count).unwrap_or(0);
    size.map_or((0, 0), |size| (cells(size.width()), cells(size.height())))
}
