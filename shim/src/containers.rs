//! The containers and execs of the pod, and everything containerd can do to them.
//!
//! The table is locked for look-ups only, never across a wait. A process's life is a [`Lifecycle`](crate::lifecycle::Lifecycle) behind a lock of
//! its own, and events are queued while that lock is held: so the order of a process's events is the order of its life.
//!
//! - `create`: a container or an exec comes to be
//! - `life`: start, signal, wait, delete, and the watch that ends it
//! - `all`: what a sandbox asks of all of them
//! - `cgroup`: what is asked of a container's cgroup in the guest

mod all;
mod cgroup;
mod create;
mod life;
mod memory;
mod process;
mod table;

use std::sync::{Arc, OnceLock};

use pod::ProcessId;

pub use self::{
    create::{NewContainer, NewExec},
    process::{KILLED_STATUS, Snapshot, first},
};
use self::{
    process::{Process, killed_now},
    table::Table,
};
use crate::{
    events::Event,
    group::Group,
    lifecycle::{Announcement, Lifecycle, Phase},
    lock::held,
    machine::Machine,
    pod_files::PodFiles,
    publisher::Publisher,
    refusal::Refusal,
};

/// All containers of the pod.
pub struct Containers {
    machine: Machine,
    publisher: Publisher,
    table: Table,
    /// What each container is shown, where no pause container has it.
    files: OnceLock<PodFiles>,
    /// By whose record the pod's cgroup on the host is found.
    host: OnceLock<Group>,
}

impl Containers {
    /// An empty pod on `machine`.
    pub fn new(machine: Machine, publisher: Publisher) -> Arc<Self> {
        Arc::new(Self { machine, publisher, table: Table::default(), files: OnceLock::new(), host: OnceLock::new() })
    }

    /// The pid that stands for the pod on the host; a guest's pid would name a stranger here.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// The machine, for the end.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// From now on each new container is shown these files.
    pub fn show(&self, files: PodFiles) {
        // The first sandbox is the only one.
        let _ = self.files.set(files);
    }

    /// From now on the pod's cgroup on the host is asked who killed the machine.
    pub fn counted_on_the_host(&self, group: Group) {
        // A daemon has one group.
        let _ = self.host.set(group);
    }

    /// Whether nothing is left that containerd knows of.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// What is known of a process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn snapshot(&self, id: &ProcessId) -> Result<Snapshot, Refusal> {
        let process = self.table.find(id)?;
        let life = held(&process.life);
        Ok(Snapshot {
            pid: process.pid,
            bundle: process.bundle.clone(),
            stdio: process.paths.clone(),
            phase: life.phase(),
            exit: life.exit(),
        })
    }

    /// Whether a process is known, be it still being made.
    ///
    /// # Errors
    /// It is not.
    pub fn check_known(&self, id: &ProcessId) -> Result<(), Refusal> {
        self.table.check_taken(id)
    }

    /// Sets the size of a process's terminal. A process without one has none to set, which is no error, as with runc.
    ///
    /// # Errors
    /// There is no such process, or it does not run.
    pub async fn resize(&self, id: &ProcessId, columns: u16, rows: u16) -> Result<(), Refusal> {
        if !self.table.find(id)?.paths.terminal {
            return Ok(());
        }
        Ok(self.machine.pod().await?.resize(id, columns, rows).await?)
    }

    /// Lets a process's input end.
    ///
    /// # Errors
    /// There is no such process.
    pub fn close_stdin(&self, id: &ProcessId) -> Result<(), Refusal> {
        if let Some(stdio) = held(&self.table.find(id)?.stdio).as_mut() {
            stdio.close_stdin();
        }
        Ok(())
    }

    /// Ends what can end only with the machine: execs that were never started. The others end through their own watch.
    pub async fn watch_machine(self: Arc<Self>) {
        let how = self.machine.up().await.gone().await;
        log::info!("the pod's machine is gone: {how}");
        for process in self.table.made() {
            if !process.id.exec_id.is_empty() && held(&process.life).phase() == Phase::Created {
                self.announce(&process, |life| life.ended(killed_now()));
            }
        }
    }

    fn announce(&self, process: &Process, step: impl FnOnce(&mut Lifecycle) -> Vec<Announcement>) {
        let mut life = held(&process.life);
        for news in step(&mut life) {
            match news {
                Announcement::Started => self.publisher.publish(Event::Started(process.id.clone(), process.pid)),
                // The count is the container's: its execs would tell of the same kill once more each.
                Announcement::OutOfMemory if process.id.is_exec() => {}
                Announcement::OutOfMemory => {
                    self.publisher.publish(Event::OutOfMemory(process.id.container_id.clone()));
                }
                Announcement::Exited(exit) => {
                    self.publisher.publish(Event::Exited(process.id.clone(), process.pid, exit));
                    process.exit.send_replace(Some(exit));
                }
                Announcement::NeverRan(exit) => drop(process.exit.send_replace(Some(exit))),
            }
        }
    }
}
