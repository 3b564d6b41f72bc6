//! How a container or an exec comes to be: its name is taken, its stdio opened, the guest makes it, and only then can anybody find it.

use std::{path::PathBuf, sync::Arc};

use containerd_shim_protos::api::Mount;
use oci_spec::runtime::{Process as OciProcess, Spec};
use pod::{ContainerSpec, ErrorKind, ExecSpec, ProcessId, RootFs};

use super::{
    Containers,
    process::{Process, first},
    table::Reservation,
};
use crate::{
    events::Event,
    hooks::{self, Hooks},
    lifecycle::Phase,
    lock::held,
    refusal::Refusal,
    stdio::{Opened, Paths, logger::Owner},
};

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

impl Containers {
    /// Makes a container, waiting for the machine to be up.
    ///
    /// # Errors
    /// The name is taken, the stdio cannot be opened, or the pod refuses; nothing is left then.
    pub async fn create(self: &Arc<Self>, mut new: NewContainer) -> Result<u32, Refusal> {
        if let Some(files) = self.files.get() {
            files.complete(&mut new.oci);
        }
        let reservation = self.table.reserve(first(&new.id))?;
        let opened = Opened::open(&new.stdio, self.owner(&new.id)).await?;
        let pod = self.machine.pod().await?;
        let wanted = new.stdio.wanted(console_size(new.oci.process().as_ref()));
        let hooks = Hooks::of(&new.id, &new.bundle, &new.oci).map(|hooks| hooks.unless(reservation.doomed()));
        let spec = ContainerSpec { id: new.id.clone(), oci: new.oci, rootfs: new.rootfs, stdio: wanted };
        let (_guest_pid, streams) = pod.create_container(spec).await?;
        let pid = pod.host_pid(&new.id);
        let completed = match opened.connect(streams) {
            Ok(stdio) => complete(&reservation, hooks.as_ref(), self.pid()).await.map(|()| stdio),
            Err(error) => {
                Err(Refusal::new(ErrorKind::Internal, format!("cannot copy the stdio of {}: {error}", new.id)))
            }
        };
        let stdio = match completed {
            Ok(stdio) => stdio,
            Err(refusal) => {
                let _ = pod.delete(&first(&new.id)).await;
                // What went wrong first is what is told.
                if let Err(unrun) = hooks::in_turn(hooks, Hooks::after_stop).await {
                    log::warn!("{unrun}");
                }
                return Err(refusal);
            }
        };
        let process = Process::new(first(&new.id), pid, new.bundle.clone(), (new.stdio.clone(), stdio));
        let process = Arc::new(Process { hooks, ..process });
        self.publisher.publish(Event::Created {
            container_id: new.id,
            bundle: new.bundle.display().to_string(),
            rootfs: new.mounts,
            stdio: new.stdio,
            pid,
        });
        reservation.fill(Arc::clone(&process));
        self.watch(process, pod);
        Ok(pid)
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// The container does not run, the name is taken, the stdio cannot be opened, or the pod refuses.
    pub async fn add_exec(self: &Arc<Self>, new: NewExec) -> Result<(), Refusal> {
        let container = self.table.find(&first(&new.id.container_id))?;
        if held(&container.life).phase() != Phase::Running {
            let sentence = format!("cannot run a command in the container {}: it does not run", new.id.container_id);
            return Err(Refusal::new(ErrorKind::FailedPrecondition, sentence));
        }
        let reservation = self.table.reserve(new.id.clone())?;
        let opened = Opened::open(&new.stdio, self.owner(&new.id.exec_id)).await?;
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
        let process = Process::new(new.id.clone(), container.pid, container.bundle.clone(), (new.stdio, stdio));
        self.publisher.publish(Event::ExecAdded(new.id));
        reservation.fill(Arc::new(process));
        Ok(())
    }

    fn owner<'a>(&'a self, id: &'a str) -> Owner<'a> {
        Owner { namespace: self.publisher.namespace(), id }
    }
}

/// What comes between a container in the guest and one that is there for everybody. The pid is the machine's.
async fn complete(reservation: &Reservation, hooks: Option<&Hooks>, pid: u32) -> Result<(), Refusal> {
    let run = hooks::in_turn(hooks.cloned(), move |hooks| hooks.before_start(pid)).await?;
    run.unwrap_or(Ok(()))?;
    reservation.check_wanted()
}

fn console_size(process: Option<&OciProcess>) -> (u16, u16) {
    let size = process.and_then(OciProcess::console_size);
    let cells = |count: u64| u16::try_from(count).unwrap_or(0);
    size.map_or((0, 0), |size| (cells(size.width()), cells(size.height())))
}
