//! One container in a shim: the seventeen calls, by name, for it and its execs.

use std::sync::Arc;

use anyhow::Context;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
        ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
        StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    ttrpc::Code,
};
use serde_json::Value;

use super::{
    Bundle, Shim, Stdio, Subject,
    bundle::process,
    shim::{Answer, any, code_of},
};

/// The signal that nobody survives.
pub const SIGKILL: u32 = 9;
/// The signal that init ignores unless it says otherwise.
pub const SIGTERM: u32 = 15;

/// A container.
pub struct Task {
    /// Its shim.
    pub shim: Arc<Shim>,
    /// Its bundle.
    pub bundle: Bundle,
}

impl Task {
    /// A shim for this bundle; nothing is created in it.
    ///
    /// # Errors
    /// The shim does not start.
    pub fn new(subject: &Subject, bundle: Bundle) -> anyhow::Result<Self> {
        Ok(Self { shim: Arc::new(Shim::start(subject, &bundle)?), bundle })
    }

    /// A container that was created, and not started, without stdio.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn created(subject: &Subject, words: &[&str]) -> anyhow::Result<Self> {
        let task = Self::new(subject, Bundle::new(subject, words)?)?;
        task.create(&Stdio::none()).context("create")?;
        Ok(task)
    }

    /// A container that runs, without stdio.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn running(subject: &Subject, words: &[&str]) -> anyhow::Result<Self> {
        let task = Self::created(subject, words)?;
        task.start("").context("start")?;
        Ok(task)
    }

    /// A container that runs, and what it prints.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn speaking(subject: &Subject, words: &[&str]) -> anyhow::Result<(Self, Stdio)> {
        Self::of(subject, Bundle::new(subject, words)?)
    }

    /// The same, of a bundle.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn of(subject: &Subject, bundle: Bundle) -> anyhow::Result<(Self, Stdio)> {
        let task = Self::new(subject, bundle)?;
        let stdio = Stdio::output(&task.bundle.folder, "init")?;
        task.create(&stdio).context("create")?;
        task.start("").context("start")?;
        Ok((task, stdio))
    }

    /// A container beside this one in its pod, created and started.
    ///
    /// # Errors
    /// It gets another shim, or what the shim answers.
    pub fn beside(&self, subject: &Subject, words: &[&str]) -> anyhow::Result<Self> {
        let bundle = Bundle::beside(subject, &self.bundle.id, words)?;
        let address = self.shim.start_beside(&bundle)?;
        anyhow::ensure!(address == self.shim.address, "{address}, not the pod's shim at {}", self.shim.address);
        let task = Self { shim: Arc::clone(&self.shim), bundle };
        task.create(&Stdio::none()).context("create beside")?;
        task.start("").context("start beside")?;
        Ok(task)
    }

    /// Another name in the same shim, whether or not there is such a container.
    #[must_use]
    pub fn named(&self, id: &str) -> Self {
        Self { shim: Arc::clone(&self.shim), bundle: Bundle { id: id.to_owned(), ..self.bundle.clone() } }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.bundle.id
    }

    /// What containerd was told of it.
    pub fn told(&self) -> Vec<String> {
        self.shim.events.of(self.id())
    }

    /// Waits for an event of it.
    ///
    /// # Errors
    /// It does not come.
    pub fn hears(&self, wanted: &str) -> anyhow::Result<super::Told> {
        self.shim.events.wait_for(self.id(), wanted)
    }

    /// `Create` as the bundle says.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn create(&self, stdio: &Stdio) -> Answer<CreateTaskResponse> {
        self.shim.call("Create", &self.create_request(stdio))
    }

    /// The request of [`Self::create`], for a test that changes it.
    pub fn create_request(&self, stdio: &Stdio) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.bundle.id.clone(),
            bundle: self.bundle.folder.display().to_string(),
            rootfs: self.bundle.rootfs.clone(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            ..CreateTaskRequest::default()
        }
    }

    /// `Start` of the container, or of an exec.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn start(&self, exec: &str) -> Answer<StartResponse> {
        self.shim.call("Start", &StartRequest { id: self.name(), exec_id: exec.to_owned(), ..Default::default() })
    }

    /// `State`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn state(&self, exec: &str) -> Answer<StateResponse> {
        self.shim.call("State", &StateRequest { id: self.name(), exec_id: exec.to_owned(), ..Default::default() })
    }

    /// The status out of `State`.
    ///
    /// # Errors
    /// What the shim answers, or a number that is no status.
    pub fn status(&self, exec: &str) -> anyhow::Result<Status> {
        self.state(exec)?.status.enum_value().map_err(|number| anyhow::anyhow!("{number} is no status"))
    }

    /// `Exec` of these words, with no stdio.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn exec(&self, exec: &str, words: &[&str]) -> Answer<Empty> {
        self.exec_with(exec, &process(words), &Stdio::none())
    }

    /// `Exec` of an OCI process.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn exec_with(&self, exec: &str, process: &Value, stdio: &Stdio) -> Answer<Empty> {
        let mut process = process.clone();
        process["terminal"] = stdio.terminal.into();
        let request = ExecProcessRequest {
            id: self.name(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: any("Process", &process),
            ..Default::default()
        };
        self.shim.call("Exec", &request)
    }

    /// Runs words to their end inside, deletes the exec, and returns its status and its output.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn output_of(&self, exec: &str, words: &[&str]) -> anyhow::Result<(u32, String)> {
        let stdio = Stdio::output(&self.bundle.folder, exec)?;
        self.exec_with(exec, &process(words), &stdio).context("exec")?;
        self.start(exec).context("start of the exec")?;
        let status = self.wait(exec)?.exit_status;
        self.delete(exec).context("delete of the exec")?;
        Ok((status, stdio.whole()?))
    }

    /// `Wait`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn wait(&self, exec: &str) -> Answer<WaitResponse> {
        self.shim.call("Wait", &WaitRequest { id: self.name(), exec_id: exec.to_owned(), ..Default::default() })
    }

    /// `Kill`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn kill(&self, exec: &str, signal: u32) -> Answer<Empty> {
        let request = KillRequest { id: self.name(), exec_id: exec.to_owned(), signal, ..Default::default() };
        self.shim.call("Kill", &request)
    }

    /// `Kill` of all processes.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn kill_all(&self, signal: u32) -> Answer<Empty> {
        self.shim.call("Kill", &KillRequest { id: self.name(), signal, all: true, ..Default::default() })
    }

    /// `Delete`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn delete(&self, exec: &str) -> Answer<DeleteResponse> {
        self.shim.call("Delete", &DeleteRequest { id: self.name(), exec_id: exec.to_owned(), ..Default::default() })
    }

    /// `Pause`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn pause(&self) -> Answer<Empty> {
        self.shim.call("Pause", &PauseRequest { id: self.name(), ..Default::default() })
    }

    /// `Resume`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn resume(&self) -> Answer<Empty> {
        self.shim.call("Resume", &ResumeRequest { id: self.name(), ..Default::default() })
    }

    /// `Pids`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn pids(&self) -> Answer<PidsResponse> {
        self.shim.call("Pids", &PidsRequest { id: self.name(), ..Default::default() })
    }

    /// `Stats`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn stats(&self) -> Answer<StatsResponse> {
        self.shim.call("Stats", &StatsRequest { id: self.name(), ..Default::default() })
    }

    /// `Update` with OCI resources.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn update(&self, resources: &Value) -> Answer<Empty> {
        let resources = any("LinuxResources", resources);
        self.shim.call("Update", &UpdateTaskRequest { id: self.name(), resources, ..Default::default() })
    }

    /// `ResizePty`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn resize(&self, exec: &str, width: u32, height: u32) -> Answer<Empty> {
        let request =
            ResizePtyRequest { id: self.name(), exec_id: exec.to_owned(), width, height, ..Default::default() };
        self.shim.call("ResizePty", &request)
    }

    /// `CloseIO` of the input.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn close_stdin(&self, exec: &str) -> Answer<Empty> {
        let request = CloseIORequest { id: self.name(), exec_id: exec.to_owned(), stdin: true, ..Default::default() };
        self.shim.call("CloseIO", &request)
    }

    /// `Connect`.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn connect(&self) -> Answer<ConnectResponse> {
        self.shim.call("Connect", &ConnectRequest { id: self.name(), ..Default::default() })
    }

    /// `Checkpoint` into a folder.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn checkpoint(&self, path: &str) -> Answer<Empty> {
        let request = CheckpointTaskRequest { id: self.name(), path: path.to_owned(), ..Default::default() };
        self.shim.call("Checkpoint", &request)
    }

    /// `Shutdown`.
    ///
    /// # Errors
    /// What the shim answers; a shim that goes may go without an answer.
    pub fn shutdown(&self) -> Answer<Empty> {
        self.shim.call("Shutdown", &ShutdownRequest { id: self.name(), ..Default::default() })
    }

    /// Kills it if need be, deletes it, and returns its exit status.
    ///
    /// # Errors
    /// What the shim answers.
    pub fn remove(&self) -> anyhow::Result<u32> {
        match self.kill_all(SIGKILL) {
            Ok(_) => {}
            Err(error) => {
                let (code, sentence) = code_of(Answer::<Empty>::Err(error))?;
                anyhow::ensure!(code == Code::NOT_FOUND, "kill: {code:?}: {sentence}");
            }
        }
        self.wait("").context("wait")?;
        Ok(self.delete("").context("delete")?.exit_status)
    }

    /// Removes it and the shim with it, and checks that nothing is left.
    ///
    /// # Errors
    /// Something is left.
    pub fn end(&self) -> anyhow::Result<()> {
        self.remove()?;
        self.end_shim()
    }

    /// Ends a shim whose containers are deleted, and checks that nothing is left.
    ///
    /// # Errors
    /// Something is left.
    pub fn end_shim(&self) -> anyhow::Result<()> {
        // The answer may be lost with the shim.
        drop(self.shutdown());
        self.shim.wait_for_end()?;
        anyhow::ensure!(!self.bundle.has_mounts()?, "something is mounted in {}", self.bundle.folder.display());
        Ok(())
    }

    fn name(&self) -> String {
        self.bundle.id.clone()
    }
}
