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
//! Each gets the container's state on its standard input. The pid in it is that of the machine: its network namespace is the pod's, its other
//! namespaces tell nothing of the container.
//!
//! # Nothing is left behind
//! What a first hook gets (an address, say) a `poststop` hook gives back. So a file in the bundle says, before the first one runs, that hooks are owed
//! ([`OWED`]); it goes with the last one. Who cleans up after a shim that was killed finds it.

mod program;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, Hooks as OciHooks, Spec};
use pod::ErrorKind;
use serde_json::{Value, json};

use crate::{bundle, refusal::Refusal};

/// In the bundle while `poststop` hooks are owed.
const OWED: &str = "kata-rs.hooks-owed";

/// The hooks of one container.
#[derive(Debug, Clone)]
pub struct Hooks {
    hooks: OciHooks,
    bundle: PathBuf,
    state: Value,
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
        Some(Self { hooks, bundle: bundle.to_owned(), state })
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
        let state = self.state(Status::Creating, Some(pid));
        self.run("prestart", self.hooks.prestart().as_ref(), &state)?;
        self.run("createRuntime", self.hooks.create_runtime().as_ref(), &state)
    }

    /// Runs those that come after its process began. Waits for them.
    pub fn after_start(&self, pid: u32) {
        let state = self.state(Status::Running, Some(pid));
        warn_of(self.run("poststart", self.hooks.poststart().as_ref(), &state));
    }

    /// Runs those that come when it is no more, each of them whatever becomes of the others. Waits for them. Once only.
    pub fn after_stop(&self) {
        let owed = self.bundle.join(OWED);
        if !owed.exists() {
            return;
        }
        let state = self.state(Status::Stopped, None);
        for hook in self.hooks.poststop().iter().flatten() {
            warn_of(self.run("poststop", Some(&vec![hook.clone()]), &state));
        }
        if let Err(error) = fs::remove_file(&owed) {
            log::warn!("hooks may run once more: cannot remove {}: {error}", owed.display());
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

    fn run(&self, kind: &str, hooks: Option<&Vec<Hook>>, state: &[u8]) -> Result<(), Refusal> {
        for (number, hook) in hooks.into_iter().flatten().enumerate() {
            program::run(hook, &self.bundle, state).map_err(|failure| {
                let path = hook.path().display();
                Refusal::new(ErrorKind::Internal, format!("error running {kind} hook #{number} ({path}): {failure}"))
            })?;
        }
        Ok(())
    }
}

/// Runs the hooks that a container's shim still owed when it died. Nothing, where it owed none.
pub fn settle(id: &str, bundle: &Path) {
    if !bundle.join(OWED).exists() {
        return;
    }
    match bundle::spec(bundle) {
        Ok(spec) => Hooks::of(id, bundle, &spec).iter().for_each(Hooks::after_stop),
        Err(refusal) => log::warn!("the hooks of {id} do not run: {refusal}"),
    }
}

/// Does something with hooks, if there are any, on a thread that may wait for them. Who asked may go; it is done to its end.
pub async fn in_turn<T: Send + 'static>(
    hooks: Option<Hooks>,
    act: impl FnOnce(&Hooks) -> T + Send + 'static,
) -> Option<T> {
    let hooks = hooks?;
    tokio::task::spawn_blocking(move || act(&hooks)).await.ok()
}

fn warn_of(run: Result<(), Refusal>) {
    if let Err(refusal) = run {
        log::warn!("{refusal}; it goes on");
    }
}

#[cfg(test)]
mod tests;
