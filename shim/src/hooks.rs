//! OCI hooks: programs of the host that whoever makes a container wants run at moments of its life (OCI runtime-spec, config.md,
//! "POSIX-platform Hooks"). nerdctl makes a container's network by them.
//!
//! | hook | when | if one fails |
//! |---|---|---|
//! | `prestart`, then `createRuntime` | the guest has made the container, `Create` has not answered | the container is taken back, `Create` fails |
//! | `poststart` | its process runs, `Start` has not answered | the log has it, and it goes on |
//! | `poststop` | it is deleted, or cleaned up after its shim | the same |
//! | `createContainer`, `startContainer` | never: they belong inside the container's namespaces, which are the guest's, and are files of the host | the pod crate leaves them out, with a word |
//!
//! Each gets the container's state on its standard input. The pid in it is that of the machine, also for a container that joined a pod and has
//! another pid for containerd: the machine's network namespace is the pod's, its other namespaces tell nothing of the container.
//!
//! # Nothing is left behind
//! What a first hook gets (an address, say) a `poststop` hook gives back. So before the first one runs it is noted that hooks are owed: here, for the shim, which
//! may outlive the bundle, and by a file in the bundle ([`OWED`]) for who cleans up after a shim that was killed. It goes with the last one.
//!
//! # Nobody else waits
//! Each sequence of hooks has a thread of its own: one that hangs holds up its own container alone. A hook without a timeout may take as long as it
//! likes, as with runc, until its container is given up; then it is killed with all that it started.

mod program;
mod words;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::{Hook, Hooks as OciHooks, Spec};
use pod::ErrorKind;
use serde_json::{Value, json};

use self::program::Limits;
use crate::{bundle, doom::Doom, refusal::Refusal};

/// Stack of a thread that waits for hooks.
const STACK_LEN: usize = 128 * 1024;
/// In the bundle while `poststop` hooks are owed.
const OWED: &str = "kata-rs.hooks-owed";

/// The hooks of one container.
#[derive(Debug, Clone)]
pub struct Hooks {
    hooks: OciHooks,
    bundle: PathBuf,
    state: Value,
    /// Hooks have run whose effects the last ones take back.
    owed: Arc<AtomicBool>,
    /// Nobody wants the container any more.
    unwanted: Arc<Doom>,
}

/// Where a container is in its life, in OCI's words.
#[derive(Debug, Clone, Copy)]
enum Status {
    Creating,
    Running,
    Stopped,
}

impl Hooks {
    /// Those of a container; most have none.
    pub fn of(id: &str, bundle: &Path, spec: &Spec) -> Option<Self> {
        let hooks = spec.hooks().clone()?;
        let state = json!({
            "ociVersion": spec.version(),
            "id": id,
            "bundle": bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        Some(Self { hooks, bundle: bundle.to_owned(), state, owed: Arc::default(), unwanted: Arc::default() })
    }

    /// The same, for a container that may become unwanted while hooks run; those before its start end then.
    pub fn unless(self, unwanted: Arc<Doom>) -> Self {
        Self { unwanted, ..self }
    }

    /// Runs those that come before the container is there for anybody. Waits for them.
    ///
    /// # Errors
    /// One fails; what it said is in the message. [`Self::after_stop`] is owed then, too.
    #[allow(deprecated, reason = "prestart is what Docker still uses")]
    pub fn before_start(&self, pid: u32) -> Result<(), Refusal> {
        let unwritten = |error: io::Error| {
            Refusal::new(
                ErrorKind::Internal,
                format!("cannot note in {} that hooks run: {error}", self.bundle.display()),
            )
        };
        fs::write(self.bundle.join(OWED), "").map_err(unwritten)?;
        self.owed.store(true, Ordering::SeqCst);
        let state = self.state(Status::Creating, Some(pid));
        let limits = Limits { unwanted: Some(&self.unwanted), deadline: None };
        self.run("prestart", self.hooks.prestart().as_ref(), &state, limits)?;
        self.run("createRuntime", self.hooks.create_runtime().as_ref(), &state, limits)
    }

    /// Runs those that come after its process began. Waits for them.
    pub fn after_start(&self, pid: u32) {
        let state = self.state(Status::Running, Some(pid));
        warn_of(self.run("poststart", self.hooks.poststart().as_ref(), &state, Limits::default()));
    }

    /// Runs those that come when it is no more, each of them whatever becomes of the others. Waits for them. Once only.
    pub fn after_stop(&self) {
        self.after_stop_by(None);
    }

    fn after_stop_by(&self, deadline: Option<Instant>) {
        if !self.owed.swap(false, Ordering::SeqCst) {
            return;
        }
        let state = self.state(Status::Stopped, None);
        for hook in self.hooks.poststop().iter().flatten() {
            let one = vec![hook.clone()];
            warn_of(self.run("poststop", Some(&one), &state, Limits { unwanted: None, deadline }));
        }
        // The bundle may be gone, and the file with it.
        if let Err(error) = fs::remove_file(self.bundle.join(OWED))
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("hooks may run once more: cannot remove {OWED} from {}: {error}", self.bundle.display());
        }
    }

    fn state(&self, status: Status, pid: Option<u32>) -> Vec<u8> {
        let mut state = self.state.clone();
        state["status"] = match status {
            Status::Creating => "creating",
            Status::Running => "running",
            Status::Stopped => "stopped",
        }
        .into();
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state.to_string().into_bytes()
    }

    fn run(&self, kind: &str, hooks: Option<&Vec<Hook>>, state: &[u8], limits: Limits<'_>) -> Result<(), Refusal> {
        let folder = if self.bundle.is_dir() { &self.bundle } else { Path::new("/") };
        for (number, hook) in hooks.into_iter().flatten().enumerate() {
            program::run(hook, folder, state, limits).map_err(|failure| {
                let path = hook.path().display();
                Refusal::new(ErrorKind::Internal, format!("error running {kind} hook #{number} ({path}): {failure}"))
            })?;
        }
        Ok(())
    }
}

/// Runs the hooks that a container's shim still owed when it died, in so much time at most. Nothing, where it owed none.
pub fn settle(id: &str, bundle: &Path, within: Duration) {
    if !bundle.join(OWED).exists() {
        return;
    }
    match bundle::spec(bundle) {
        Ok(spec) => {
            if let Some(hooks) = Hooks::of(id, bundle, &spec) {
                hooks.owed.store(true, Ordering::SeqCst);
                hooks.after_stop_by(Some(Instant::now() + within));
            }
        }
        Err(refusal) => log::warn!("the hooks of {id} do not run: {refusal}"),
    }
}

/// Does something with hooks, if there are any, on a thread of their own. Who asked may go; it is done to its end.
///
/// # Errors
/// There is no thread to be had, or it is lost.
pub async fn in_turn<T: Send + 'static>(
    hooks: Option<Hooks>,
    act: impl FnOnce(&Hooks) -> T + Send + 'static,
) -> Result<Option<T>, Refusal> {
    let Some(hooks) = hooks else { return Ok(None) };
    let (answer, answered) = tokio::sync::oneshot::channel();
    let body = move || {
        // Who asked may have gone.
        let _ = answer.send(act(&hooks));
    };
    let failed = |why: String| Refusal::new(ErrorKind::Internal, format!("hooks of the host cannot run: {why}"));
    let thread = thread::Builder::new().name("hooks".to_owned()).stack_size(STACK_LEN);
    thread.spawn(body).map_err(|error| failed(error.to_string()))?;
    answered.await.map(Some).map_err(|_| failed("their thread is lost".to_owned()))
}

fn warn_of(run: Result<(), Refusal>) {
    if let Err(refusal) = run {
        log::warn!("{refusal}; it goes on");
    }
}

#[cfg(test)]
mod tests;
