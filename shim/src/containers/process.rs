//! One process of the pod as the shim holds it: where it belongs, its life, its exit and its stdio.

use std::{path::PathBuf, sync::Mutex, time::SystemTime};

use pod::{Exit, ProcessId};
use tokio::sync::watch;

use crate::{
    hooks::Hooks,
    lifecycle::{Lifecycle, Phase},
    stdio::{Paths, Stdio},
};

/// Status of a process that was killed, or whose machine died: 128 + SIGKILL.
pub const KILLED_STATUS: u32 = 137;

/// Status of an exec that could not be started, as a shell tells a command that is not found.
const NOT_STARTED_STATUS: u32 = 127;

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
    /// The pid that stands for its container on the host.
    pub pid: u32,
}

/// A process that was made.
pub(super) struct Process {
    pub(super) id: ProcessId,
    /// The pid that stands for its container on the host.
    pub(super) pid: u32,
    pub(super) bundle: PathBuf,
    pub(super) paths: Paths,
    /// Of a container that has some.
    pub(super) hooks: Option<Hooks>,
    pub(super) life: Mutex<Lifecycle>,
    /// Set once, after the exit was announced.
    pub(super) exit: watch::Sender<Option<Exit>>,
    pub(super) stdio: Mutex<Option<Stdio>>,
    /// Set once, when nobody wants to hear of it any more.
    pub(super) given_up: watch::Sender<bool>,
    /// Held by the one that deletes it; true when it is deleted.
    pub(super) deleted: tokio::sync::Mutex<bool>,
}

impl Process {
    pub(super) fn new(id: ProcessId, pid: u32, bundle: PathBuf, (paths, stdio): (Paths, Stdio)) -> Self {
        Self {
            id,
            pid,
            bundle,
            paths,
            hooks: None,
            life: Mutex::default(),
            exit: watch::Sender::new(None),
            stdio: Mutex::new(Some(stdio)),
            given_up: watch::Sender::new(false),
            deleted: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until the output of this ended process is where it belongs, or nobody wants it any more.
    pub(super) async fn last_words(&self, stdio: Stdio) {
        let mut given_up = self.given_up.subscribe();
        tokio::select! {
            () = stdio.drain() => {}
            _ = given_up.wait_for(|given_up| *given_up) => {}
        }
    }
}

/// The name of a container's first process.
pub fn first(container_id: &str) -> ProcessId {
    ProcessId { container_id: container_id.to_owned(), exec_id: String::new() }
}

/// What it is called in a sentence.
pub(super) fn name(id: &ProcessId) -> String {
    match id.exec_id.as_str() {
        "" => format!("the container {}", id.container_id),
        exec_id => format!("the process {exec_id} of the container {}", id.container_id),
    }
}

/// The exit of an exec that could not be started; nobody hears of it but who waits.
pub(super) fn never_ran() -> Exit {
    Exit { status: NOT_STARTED_STATUS, at: SystemTime::now(), oom_killed: false }
}

/// The exit of what ends with its machine.
pub(super) fn killed_now() -> Exit {
    Exit { status: KILLED_STATUS, at: SystemTime::now(), oom_killed: false }
}
