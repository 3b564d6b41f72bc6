//! Which number stands on the host for which container of the pod.
//!
//! containerd is told a pid for each container and uses it as a name: to let one container join another one's processes (`kubectl debug
//! --target`), the CRI plugin writes `/proc/<pid>/ns/pid` into the specification. A guest's pid would name a stranger on the host, and the VMM's
//! cannot tell containers apart. So the VMM's pid stands for the pod and its sandbox, and each further container has the id of a thread of this
//! process that sleeps as long as the container exists: the kernel gives that number to nobody else meanwhile, `/proc/<number>` is there,
//! and it is in the pod's cgroup.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, Thread},
};

use rustix::thread::gettid;

/// It sleeps; the standard library rounds this up to what the platform needs.
const STACK_BYTES: usize = 16 << 10;

/// Whom a pid of the host means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The pod's: its sandbox.
    Pod,
    /// A container of the pod.
    Container(String),
    /// Nobody's here.
    Stranger,
}

/// The numbers of one pod.
#[derive(Debug)]
pub(crate) struct HostPids {
    machine: u32,
    containers: Mutex<BTreeMap<String, StandIn>>,
}

/// A thread that sleeps until this is dropped.
#[derive(Debug)]
struct StandIn {
    id: u32,
    thread: Thread,
    over: Arc<AtomicBool>,
}

impl HostPids {
    /// Those of a pod without containers, whose machine is this process.
    pub(crate) fn of_machine(pid: u32) -> Self {
        Self { machine: pid, containers: Mutex::default() }
    }

    /// Gives a container a number of its own. Without threads left it has the pod's, and only joining its processes suffers.
    pub(crate) fn give(&self, container: &str) {
        match StandIn::start() {
            Ok(stand_in) => drop(self.held().insert(container.to_owned(), stand_in)),
            Err(error) => log::warn!("container {container} has the pod's pid on the host: no thread for it: {error}"),
        }
    }

    /// Takes it back.
    pub(crate) fn take(&self, container: &str) {
        self.held().remove(container);
    }

    /// The number of a container; the machine's where it has none of its own.
    pub(crate) fn of(&self, container: &str) -> u32 {
        self.held().get(container).map_or(self.machine, |stand_in| stand_in.id)
    }

    /// Whom a number means.
    pub(crate) fn whose(&self, pid: u32) -> Whose {
        if pid == self.machine {
            return Whose::Pod;
        }
        let held = self.held();
        let found = held.iter().find(|(_, stand_in)| stand_in.id == pid);
        found.map_or(Whose::Stranger, |(container, _)| Whose::Container(container.clone()))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, StandIn>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StandIn {
    fn start() -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let until = Arc::clone(&over);
        let sleep = move || {
            let _ = tell.send(gettid());
            drop(tell);
            while !until.load(Ordering::Acquire) {
                thread::park();
            }
        };
        let thread = thread::Builder::new().name("container".to_owned()).stack_size(STACK_BYTES).spawn(sleep)?;
        let id = told.recv().map_err(|_| io::Error::other("the thread ended at once"))?;
        Ok(Self { id: id.as_raw_nonzero().get().unsigned_abs(), thread: thread.thread().clone(), over })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_container_has_a_number_that_exists_and_names_it_alone() {
        let pids = HostPids::of_machine(1);
        pids.give("a");
        pids.give("b");
        let (a, b) = (pids.of("a"), pids.of("b"));
        assert_ne!(a, b);
        assert!(Path::new(&format!("/proc/{a}/ns/pid")).exists());
        assert_eq!(pids.whose(a), Whose::Container("a".into()));
        assert_eq!(pids.whose(b), Whose::Container("b".into()));
        assert_eq!(pids.whose(1), Whose::Pod);
    }

    #[test]
    fn a_number_taken_back_is_a_strangers_and_its_thread_ends() {
        let pids = HostPids::of_machine(1);
        pids.give("a");
        let number = pids.of("a");
        pids.take("a");
        assert_eq!((pids.of("a"), pids.whose(number)), (1, Whose::Stranger));
        let place = format!("/proc/self/task/{number}");
        let begun = std::time::Instant::now();
        while Path::new(&place).exists() {
            assert!(begun.elapsed().as_secs() < 10, "the thread sleeps on");
            thread::yield_now();
        }
    }
}
