//! Counters of VM exits by reason: one set a vCPU, written by its thread alone, read by anyone at any time. Acknowledgements of interrupts, which KVM
//! answers by itself, are counted by the eventfd that it rings for each.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a vCPU came back from KVM_RUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitReason {
    /// Read of a port.
    IoIn,
    /// Write of a port.
    IoOut,
    /// Read of an address without memory, of which a driver of ours does none.
    MmioRead,
    /// Write of a device register (queue notifications and acknowledgements of interrupts are not among them: KVM turns them into events).
    MmioWrite,
    /// HLT, when KVM does not wait itself.
    Halt,
    /// Triple fault.
    Shutdown,
    /// Reset or power-off by a paravirtual call.
    SystemEvent,
    /// A signal, or a vCPU that waits to be started.
    Interrupted,
    /// KVM gave up.
    Failure,
}

const NAMES: [&str; 9] =
    ["io_in", "io_out", "mmio_read", "mmio_write", "halt", "shutdown", "system_event", "interrupted", "failure"];

/// Counters of one vCPU.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    /// Counts one exit. Only the vCPU's own thread calls this, so that a plain load and store is enough.
    pub fn count(&self, reason: ExitReason) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }
}

/// The name of acknowledgements among the reasons.
const ACKNOWLEDGED: &str = "acknowledged";

/// The counters of all vCPUs, and what they were at the agent's call.
#[derive(Debug, Clone)]
pub struct Exits {
    counters: Arc<Mutex<Counters>>,
    acknowledgements: Arc<EventFd>,
    at_call: Arc<OnceLock<BTreeMap<String, u64>>>,
}

#[derive(Debug, Default)]
struct Counters {
    vcpus: Vec<Arc<ExitCounters>>,
    /// What the eventfd has told until now: a read takes its count away.
    acknowledged: u64,
}

impl Counters {
    fn total(&mut self, acknowledgements: &EventFd) -> BTreeMap<String, u64> {
        // Its one error is that there was none since.
        self.acknowledged = self.acknowledged.saturating_add(acknowledgements.read().unwrap_or(0));
        let sum = |index: usize| self.vcpus.iter().map(|counters| counters.0[index].load(Relaxed)).sum::<u64>();
        let exits = NAMES.iter().enumerate().map(|(index, name)| (*name, sum(index)));
        let all = exits.chain([(ACKNOWLEDGED, self.acknowledged)]);
        all.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

impl Exits {
    /// Counters without vCPUs. Fails when there is no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        let acknowledgements = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { counters: Arc::default(), acknowledgements: Arc::new(acknowledgements), at_call: Arc::default() })
    }

    /// What KVM rings for each acknowledgement. Nobody waits for it.
    pub fn acknowledgements(&self) -> &EventFd {
        &self.acknowledgements
    }

    /// A panic ends the process (`panic = abort`), so that no lock is ever poisoned.
    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters for one more vCPU.
    pub fn add_vcpu(&self) -> Arc<ExitCounters> {
        let counters = Arc::new(ExitCounters::default());
        self.counters().vcpus.push(counters.clone());
        counters
    }

    /// Sums over all vCPUs; reasons that never occurred are left out.
    pub fn total(&self) -> BTreeMap<String, u64> {
        self.counters().total(&self.acknowledgements)
    }

    /// Keeps the sums of this moment, the first time.
    pub fn note_call(&self) {
        self.at_call.get_or_init(|| self.total());
    }

    /// The sums at the agent's call; empty before it.
    pub fn at_call(&self) -> BTreeMap<String, u64> {
        self.at_call.get().cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_over_all_vcpus_and_the_call_freezes_a_copy() {
        let exits = Exits::new().expect("a descriptor");
        let (first, second) = (exits.add_vcpu(), exits.add_vcpu());
        first.count(ExitReason::IoOut);
        second.count(ExitReason::IoOut);
        assert!(exits.at_call().is_empty());
        exits.note_call();
        first.count(ExitReason::Failure);
        exits.note_call();
        assert_eq!(exits.at_call(), BTreeMap::from([("io_out".to_owned(), 2)]));
        assert_eq!(exits.total()["failure"], 1);
    }

    #[test]
    fn acknowledgements_add_up_however_often_somebody_asks() {
        let exits = Exits::new().expect("a descriptor");
        let rung = exits.acknowledgements();
        assert!(exits.total().is_empty());
        for sum in [2, 4] {
            rung.write(1).expect("room");
            rung.write(1).expect("room");
            assert_eq!(exits.total(), BTreeMap::from([("acknowledged".to_owned(), sum)]));
        }
    }
}
