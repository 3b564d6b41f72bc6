//! The pod's end, which two services can ask for, and who may.
//!
//! containerd says `Shutdown` to the Task service after each container's end; that counts after the last one only, and not at all while a
//! sandbox of the sandbox service holds the pod: then containers come and go, and the pod ends with `ShutdownSandbox`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, OnceCell};

use crate::{containers::Containers, group::Group};

/// The end of one pod. Clones are the same end.
#[derive(Clone)]
pub struct Ending(Arc<Shared>);

struct Shared {
    containers: Arc<Containers>,
    group: Group,
    held: AtomicBool,
    wanted: AtomicBool,
    /// Filled when the pod is stopped; a second end waits for the first.
    down: OnceCell<()>,
    ended: Notify,
}

impl Ending {
    /// The end of the pod of `containers`, reached at the socket of `group`.
    pub fn new(containers: Arc<Containers>, group: Group) -> Self {
        Self(Arc::new(Shared {
            containers,
            group,
            held: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            down: OnceCell::new(),
            ended: Notify::new(),
        }))
    }

    /// The pod's name, which is its sandbox's.
    pub fn pod_id(&self) -> &str {
        &self.0.group.id
    }

    /// From now on the pod outlives its containers.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::Relaxed);
    }

    /// Whether the sandbox of this id holds the pod.
    pub fn holds(&self, id: &str) -> bool {
        self.0.held.load(Ordering::Relaxed) && id == self.pod_id()
    }

    /// The last container may be gone: then the pod ends, unless a sandbox holds it. One that is still being made is waited for.
    pub async fn after_a_container(&self) {
        self.0.wanted.store(true, Ordering::Relaxed);
        self.unless_needed().await;
    }

    /// A container that was being made when the pod's end was asked for has not come to be.
    pub async fn after_a_failed_container(&self) {
        if self.0.wanted.load(Ordering::Relaxed) {
            self.unless_needed().await;
        }
    }

    /// A container has come to be: an end that was asked for before is not meant for it.
    pub fn not_yet(&self) {
        self.0.wanted.store(false, Ordering::Relaxed);
    }

    async fn unless_needed(&self) {
        if self.0.containers.is_empty() && !self.0.held.load(Ordering::Relaxed) {
            self.now().await;
        }
    }

    /// The pod ends, whoever is still in it. Once: by the second time the socket's name may be another daemon's. The work is a task of its
    /// own, because containerd may hang up.
    pub async fn now(&self) {
        let shared = Arc::clone(&self.0);
        let _ = tokio::spawn(async move {
            shared.down.get_or_init(|| shared.take_down()).await;
        })
        .await;
    }

    /// Resolves when the pod has ended.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }
}

impl Shared {
    async fn take_down(&self) {
        log::info!("the pod is not needed any more: it is stopped");
        // First, so that a new pod of the same name does not find this one.
        self.group.remove_socket(true);
        self.containers.machine().stop().await;
        self.ended.notify_one();
    }
}
