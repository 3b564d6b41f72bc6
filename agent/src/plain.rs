//! Programs as ordinary processes of this machine: no root, no namespaces, no limits, no isolation whatever.
//!
//! Only for tests, of this crate and of the host's libraries, which talk to the real service with these in place of containers.
//! A process's program, arguments, environment, stdio, gate, signals and exit are real; its root file system is the machine's.

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use agent_protocol::messages::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::{
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, test_kill_process, waitid},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{
    birth::Birth,
    refusal::{EXEC, Refusal},
    runtime::{Container, ProcessStdio, Runtime, Shared, Size, Spawned},
};

/// The first process stops itself here until `start` lets it go on.
const GATE: &str = "kill -STOP $$; exec \"$0\" \"$@\"";
const STRAIGHT: &str = "exec \"$0\" \"$@\"";

/// Makes containers that are none.
#[derive(Debug, Default)]
pub struct PlainProcesses;

struct PlainContainer {
    program: String,
    first: u32,
    all: Mutex<Vec<u32>>,
}

impl Runtime for PlainProcesses {
    fn create(
        &self,
        _id: &str,
        spec: &Spec,
        _shared: &Shared,
        stdio: ProcessStdio,
    ) -> Result<(Spawned, Arc<dyn Container>), Refusal> {
        let process = spec.process().as_ref().ok_or_else(|| Refusal::invalid("config.json", "it has no process"))?;
        let spawned = spawn(GATE, process, stdio)?;
        wait_for_gate(spawned.pid)?;
        let program = process.args().iter().flatten().next().cloned().unwrap_or_default();
        let container = PlainContainer { program, first: spawned.pid, all: Mutex::new(vec![spawned.pid]) };
        Ok((spawned, Arc::new(container)))
    }

    fn warm_up(&self) {}
}

impl Container for PlainContainer {
    fn start(&self) -> Result<(), Refusal> {
        let there = runnable(&self.program);
        let signal = if there.is_ok() { Signal::CONT } else { Signal::KILL };
        send(self.first, signal)?;
        there
    }

    fn exec(&self, process: &Process, stdio: ProcessStdio, _: &Birth) -> Result<Spawned, Refusal> {
        runnable(process.args().iter().flatten().next().map_or("", String::as_str))?;
        let spawned = spawn(STRAIGHT, process, stdio)?;
        self.all.lock().expect("no code panics while it holds this lock").push(spawned.pid);
        Ok(spawned)
    }

    fn pid_namespace(&self) -> Result<OwnedFd, Refusal> {
        Err(Refusal::Unsupported { what: "a pid namespace".into(), source: "ordinary processes have none".into() })
    }

    fn signal_all(&self, signal: Signal) -> Result<(), Refusal> {
        self.living().into_iter().try_for_each(|pid| send(pid, signal))
    }

    fn memory_events(&self) -> Option<std::fs::File> {
        None
    }

    fn oom_kills(&self) -> u64 {
        0
    }

    fn ends_with_its_first(&self) -> bool {
        false
    }

    fn pids(&self) -> Result<Vec<u32>, Refusal> {
        Ok(self.living())
    }

    fn stats(&self) -> Result<StatsResponse, Refusal> {
        let pids_current = self.living().len() as u64;
        Ok(StatsResponse { pids_current, memory_max: u64::MAX, swap_max: u64::MAX, ..Default::default() })
    }

    fn update(&self, _: &LinuxResources) -> Result<(), Refusal> {
        Err(Refusal::Unsupported { what: "a limit".into(), source: "ordinary processes have no cgroup".into() })
    }

    fn freeze(&self, frozen: bool) -> Result<(), Refusal> {
        self.signal_all(if frozen { Signal::STOP } else { Signal::CONT })
    }

    fn destroy(&self) -> Result<(), Refusal> {
        self.signal_all(Signal::KILL)
    }
}

/// A test that ends leaves no process behind, one that was never started included.
impl Drop for PlainContainer {
    fn drop(&mut self) {
        let _ = self.signal_all(Signal::KILL);
    }
}

impl PlainContainer {
    fn living(&self) -> Vec<u32> {
        let mut all = self.all.lock().expect("no code panics while it holds this lock");
        all.retain(|pid| target(*pid).is_some_and(|target| test_kill_process(target).is_ok()));
        all.clone()
    }
}

fn spawn(script: &str, process: &Process, stdio: ProcessStdio) -> Result<Spawned, Refusal> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).args(process.args().iter().flatten()).env_clear();
    for variable in process.env().iter().flatten() {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(key, value);
    }
    if process.cwd().is_dir() {
        command.current_dir(process.cwd());
    }
    let master = connect(&mut command, stdio).map_err(|error| Refusal::failed("open a terminal", error))?;
    #[allow(clippy::zombie_processes, reason = "the one reaper reaps it")]
    let child = command.spawn().map_err(|error| Refusal::failed("run /bin/sh", error))?;
    Ok(Spawned { pid: child.id(), master })
}

fn connect(command: &mut Command, stdio: ProcessStdio) -> std::io::Result<Option<OwnedFd>> {
    let stdio_of = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
    match stdio {
        ProcessStdio::Descriptors { stdin, stdout, stderr } => {
            command.stdin(stdio_of(stdin)).stdout(stdio_of(stdout)).stderr(stdio_of(stderr));
            Ok(None)
        }
        ProcessStdio::Terminal(size) => {
            let (master, user) = terminal(size)?;
            command.stdin(user.try_clone()?).stdout(user.try_clone()?).stderr(user);
            Ok(Some(master))
        }
    }
}

fn terminal(size: Size) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let user = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, user))
}

fn wait_for_gate(pid: u32) -> Result<(), Refusal> {
    let Some(target) = target(pid) else { return Ok(()) };
    let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(target), stopped)
        .map(drop)
        .map_err(|errno| Refusal::failed("wait for the gate", std::io::Error::from(errno)))
}

fn runnable(program: &str) -> Result<(), Refusal> {
    if program.starts_with('/') && !Path::new(program).exists() {
        let source = format!("exec: {program:?}: stat {program}: no such file or directory");
        return Err(Refusal::NotRunnable { act: EXEC, status: 127, source: source.into() });
    }
    Ok(())
}

fn target(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn send(pid: u32, signal: Signal) -> Result<(), Refusal> {
    match target(pid).map(|target| kill_process(target, signal)) {
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(errno)) => Err(Refusal::failed("signal a process", std::io::Error::from(errno))),
    }
}
