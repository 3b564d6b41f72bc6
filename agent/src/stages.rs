//! The real runtime: containers made by the crate `container`.
//!
//! A stage (a process of our own binary, waiting to be told what to become) is prepared while the host reads our hello, so that the
//! first create of a pod does not pay for it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use agent_protocol::messages::StatsResponse;
use container::cgroup::{DeviceProgram, RulesInForce};
use container::plan::{DeviceKind, DevicePlan};
use container::{
    Cgroup, CgroupError, ContainerHandle, ContainerPlan, Created, FailureKind, GuestFacts, PlanError, Stage,
    StageError, StdioFds, TerminalSize, beyond, check_update, plan, plan_devices, plan_exec, plan_limits,
};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, pidfd_send_signal, waitid};

use crate::{
    birth::Birth,
    refusal::{CREATE, EXEC, Refusal, Source, with_sources},
    runtime::{Container, ProcessStdio, Runtime, Shared, Size, Spawned},
};

/// Makes containers.
pub struct Stages {
    guest: Arc<GuestFacts>,
    spare: Arc<Spare>,
    /// The pod's pid namespace that is no container's, once somebody has joined it. It lasts as long as the machine.
    pod_pids: Mutex<Option<OwnedFd>>,
}

/// At most one stage that waits for its order.
struct Spare {
    program: PathBuf,
    stage: Mutex<Option<Stage>>,
}

struct Contained {
    plan: ContainerPlan,
    cgroup: Cgroup,
    /// Which devices may be made and opened.
    devices: Mutex<(DeviceProgram, RulesInForce)>,
    init_pid: u32,
    pidfd: OwnedFd,
    gate: Mutex<Option<container::Gate>>,
    guest: Arc<GuestFacts>,
    spare: Arc<Spare>,
}

impl Stages {
    /// Reads what the guest is. /proc and /sys/fs/cgroup must be mounted.
    pub fn new() -> io::Result<Self> {
        Ok(Self::with(GuestFacts::read()?, PathBuf::from("/proc/self/exe")))
    }

    /// For a guest with these facts, and a program that begins with [`container::stage_main_if_asked`].
    pub fn with(guest: GuestFacts, program: PathBuf) -> Self {
        let spare = Arc::new(Spare { program, stage: Mutex::new(None) });
        Self { guest: Arc::new(guest), spare, pod_pids: Mutex::new(None) }
    }
}

impl Spare {
    /// The prepared stage, or one made now.
    fn take(&self) -> Result<Stage, Refusal> {
        let prepared = self.place().take();
        prepared.map_or_else(|| self.prepare(), Ok).map_err(|error| Refusal::failed("prepare a process", error))
    }

    fn fill(&self) {
        let mut place = self.place();
        if place.is_none() {
            // Made when needed, then, with its error where it belongs.
            *place = self.prepare().ok();
        }
    }

    fn prepare(&self) -> io::Result<Stage> {
        Stage::prepare_from(&self.program)
    }

    fn place(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().expect("no code panics while it holds this lock")
    }
}

impl Runtime for Stages {
    fn create(
        &self,
        id: &str,
        spec: &Spec,
        shared: &Shared,
        stdio: ProcessStdio,
    ) -> Result<(Spawned, Arc<dyn Container>), Refusal> {
        let what = || format!("container {id:?}");
        let mut plan = plan(id, spec, &self.guest).map_err(|error| of_plan(&what(), error))?;
        plan.keep_devices_of_guest(exists_in_guest);
        // Held until the newborn is in it; the stage, another process, opens it by our name for it.
        let pids = match &shared.pids_of {
            Some(target) => Some(target.pid_namespace()?),
            None if shared.pids_of_pod => Some(self.pids_of_pod()?),
            None => None,
        };
        if let Some(pids) = &pids {
            plan.join_pid_namespace(format!("/proc/{}/fd/{}", std::process::id(), pids.as_raw_fd()).into());
        }
        for warning in &plan.warnings {
            log::info!("container {id:?} goes without {warning}");
        }
        let cgroup =
            Cgroup::create(&self.guest.cgroup_root, &plan.cgroup.path).map_err(|error| of_cgroup(&what(), error))?;
        let made = self.make(&plan, &cgroup, stdio).inspect_err(|_| give_back(&cgroup));
        let (created, rules) = made?;
        let (pid, pidfd, master, gate) = split(created);
        let container = Contained {
            devices: Mutex::new((plan.cgroup.devices.clone(), rules)),
            plan,
            cgroup,
            init_pid: pid,
            pidfd,
            gate: Mutex::new(Some(gate)),
            guest: self.guest.clone(),
            spare: self.spare.clone(),
        };
        Ok((Spawned { pid, master }, Arc::new(container)))
    }

    fn warm_up(&self) {
        self.spare.fill();
    }
}

impl Stages {
    fn pids_of_pod(&self) -> Result<OwnedFd, Refusal> {
        let failed = |error: Source| Refusal::failed("make a pid namespace for the pod", error);
        let mut held = self.pod_pids.lock().expect("no code panics while it holds this lock");
        if held.is_none() {
            let made = self.spare.take()?.hold_pids().map_err(|error| failed(error.into()))?;
            *held = Some(made);
        }
        held.as_ref().expect("just made").try_clone().map_err(|error| failed(error.into()))
    }

    fn make(
        &self,
        plan: &ContainerPlan,
        cgroup: &Cgroup,
        stdio: ProcessStdio,
    ) -> Result<(Created, RulesInForce), Refusal> {
        let what = || format!("container {:?}", plan.id);
        cgroup.apply(&plan.cgroup.limits).map_err(|error| of_cgroup(&what(), error))?;
        let rules = cgroup.attach_devices(&plan.cgroup.devices, None).map_err(|error| of_cgroup(&what(), error))?;
        let stdio = fds(stdio).map_err(|error| Refusal::failed("open /dev/null", error))?;
        let created = self.spare.take()?.create(plan, cgroup, stdio);
        Ok((created.map_err(|error| of_stage(CREATE, &what(), error))?, rules))
    }
}

impl Container for Contained {
    fn start(&self) -> Result<(), Refusal> {
        let gate = self.gate.lock().expect("no code panics while it holds this lock").take();
        let what = format!("container {:?}", self.plan.id);
        let gate = gate.ok_or_else(|| Refusal::failed(format!("start {what}"), "its gate was opened before"))?;
        match gate.start() {
            // Killed at its gate, at this very moment: it counts as started, and its exit tells the rest.
            Err(StageError::Died) => Ok(()),
            opened => opened.map_err(|error| ended_by(CREATE, error, self.pidfd.as_fd(), &what)),
        }
    }

    fn exec(&self, process: &Process, stdio: ProcessStdio, birth: &Birth) -> Result<Spawned, Refusal> {
        let what = || format!("an exec in container {:?}", self.plan.id);
        let plan = plan_exec(process, &self.plan, &self.guest).map_err(|error| of_plan(&what(), error))?;
        let stdio = fds(stdio).map_err(|error| Refusal::failed("open /dev/null", error))?;
        let target = ContainerHandle { init_pid: self.init_pid, pidfd: self.pidfd.as_fd(), cgroup: &self.cgroup };
        let stage = self.spare.take()?;
        let conversation = stage.conversation().map_err(|error| Refusal::failed(format!("make {}", what()), error))?;
        birth.converses_through(conversation);
        let refused = |error| if birth.is_given_up() { Refusal::KilledUnborn } else { of_stage(EXEC, &what(), error) };
        let (pid, pidfd, master, gate) = split(stage.exec(&target, &plan, stdio).map_err(refused)?);
        gate.start().map_err(|error| ended_by(EXEC, error, pidfd.as_fd(), &what()))?;
        if birth.is_given_up() {
            // Its conversation ended, by itself or because it was given up: either way it is not wanted any more.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        Ok(Spawned { pid, master })
    }

    fn pid_namespace(&self) -> Result<OwnedFd, Refusal> {
        let what = || format!("join the processes of container {:?}", self.plan.id);
        let path = format!("/proc/{}/ns/pid", self.init_pid);
        let opened = File::open(path).map_err(|error| Refusal::failed(what(), error))?;
        // Only a child that has not been reaped keeps its pid, so it was that one's.
        let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(self.pidfd.as_fd()), unreaped)
            .map_err(|errno| Refusal::failed(what(), io::Error::from(errno)))?;
        Ok(opened.into())
    }

    fn signal_all(&self, signal: Signal) -> Result<(), Refusal> {
        let what = || format!("container {:?}", self.plan.id);
        if signal == Signal::KILL {
            return self.cgroup.kill().map_err(|error| of_cgroup(&what(), error));
        }
        for pid in self.cgroup.procs().map_err(|error| of_cgroup(&what(), error))? {
            let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // A process that has ended meanwhile needs no signal.
            let _ = target.map(|target| kill_process(target, signal));
        }
        Ok(())
    }

    fn memory_events(&self) -> Option<File> {
        let opened = self.cgroup.memory_events();
        opened.inspect_err(|error| log::warn!("no news of OOM kills: {}", with_sources(error))).ok()
    }

    fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills().unwrap_or(0)
    }

    fn ends_with_its_first(&self) -> bool {
        self.plan.namespaces.new.contains(&container::plan::Namespace::Pid)
    }

    fn pids(&self) -> Result<Vec<u32>, Refusal> {
        self.cgroup.procs().map_err(|error| of_cgroup("the list of processes", error))
    }

    fn stats(&self) -> Result<StatsResponse, Refusal> {
        self.cgroup.stats().map(crate::counters::answer).map_err(|error| of_cgroup("the counters", error))
    }

    fn update(&self, resources: &LinuxResources) -> Result<(), Refusal> {
        check_update(resources, &self.guest).map_err(|error| of_plan("new limits", error))?;
        for warning in beyond(resources, &self.guest) {
            log::info!("container {:?} goes on with {warning}", self.plan.id);
        }
        let limits = plan_limits(resources, &self.guest).map_err(|error| of_plan("new limits", error))?;
        let rules = plan_devices(resources).map_err(|error| of_plan("new device rules", error))?;
        self.cgroup.apply(&limits).map_err(|error| of_cgroup("new limits", error))?;
        rules.map_or(Ok(()), |rules| self.allow_devices(rules))
    }

    fn freeze(&self, frozen: bool) -> Result<(), Refusal> {
        let done = if frozen { self.cgroup.freeze() } else { self.cgroup.thaw() };
        done.map_err(|error| of_cgroup(if frozen { "pause" } else { "resume" }, error))
    }

    fn destroy(&self) -> Result<(), Refusal> {
        let what = || format!("delete container {:?}", self.plan.id);
        if !self.cgroup.path().exists() {
            return Ok(());
        }
        self.cgroup.kill().and_then(|()| self.cgroup.remove()).map_err(|error| Refusal::failed(what(), error))
    }
}

/// Does the guest's kernel have a device of this number? (Documentation/ABI/testing/sysfs-dev of the kernel)
fn exists_in_guest(device: &DevicePlan) -> bool {
    let kind = if device.kind == DeviceKind::Block { "block" } else { "char" };
    PathBuf::from(format!("/sys/dev/{kind}/{}:{}", device.major, device.minor)).exists()
}

impl Contained {
    /// An orchestrator that changes a limit sends the rules of the beginning along, and those are in force.
    fn allow_devices(&self, rules: DeviceProgram) -> Result<(), Refusal> {
        let mut held = self.devices.lock().expect("no code panics while it holds this lock");
        if held.0 != rules {
            let replaced = self.cgroup.attach_devices(&rules, Some(&held.1));
            *held = (rules, replaced.map_err(|error| of_cgroup("new device rules", error))?);
        }
        Ok(())
    }
}

/// After a failed create: its processes are dead or dying, and the cgroup must not stand in the way of the next try.
fn give_back(cgroup: &Cgroup) {
    if let Err(error) = cgroup.kill().and_then(|()| cgroup.remove()) {
        log::warn!("a cgroup is left over: {}", with_sources(&error));
    }
}

fn split(created: Created) -> (u32, OwnedFd, Option<OwnedFd>, container::Gate) {
    (created.pid, created.pidfd, created.console, created.gate)
}

fn fds(stdio: ProcessStdio) -> io::Result<StdioFds> {
    let or_null = |fd: Option<OwnedFd>| {
        fd.map_or_else(|| File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from), Ok)
    };
    Ok(match stdio {
        ProcessStdio::Descriptors { stdin, stdout, stderr } => {
            StdioFds::Pipes { stdin: or_null(stdin)?, stdout: or_null(stdout)?, stderr: or_null(stderr)? }
        }
        ProcessStdio::Terminal(Size { columns: 0, .. } | Size { rows: 0, .. }) => StdioFds::Terminal { size: None },
        ProcessStdio::Terminal(Size { columns, rows }) => {
            StdioFds::Terminal { size: Some(TerminalSize { columns, rows }) }
        }
    })
}

fn of_plan(what: &str, error: PlanError) -> Refusal {
    match error {
        PlanError::Unsupported { .. } => Refusal::Unsupported { what: what.to_owned(), source: error.into() },
        error => Refusal::invalid(what, error),
    }
}

fn of_stage(act: &'static str, what: &str, error: StageError) -> Refusal {
    let status = match error.failure().map(|failure| failure.kind) {
        Some(FailureKind::CommandNotFound) => 127,
        Some(FailureKind::CommandNotExecutable | FailureKind::NoDirectory) => 126,
        Some(FailureKind::Other) | None => return Refusal::failed(format!("make {what}"), error),
    };
    Refusal::NotRunnable { act, status, source: error.into() }
}

/// Why a process was not started. One that only did not answer in time would become its program later, when nobody knows it any more.
fn ended_by(act: &'static str, error: StageError, process: BorrowedFd<'_>, what: &str) -> Refusal {
    if error.failure().is_none() {
        // It may have ended already, and then there is nothing left to do.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    of_stage(act, what, error)
}

fn of_cgroup(what: &str, error: CgroupError) -> Refusal {
    Refusal::failed(format!("control the cgroup for {what}"), error)
}
