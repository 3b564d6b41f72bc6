//! Counters of VM exits by reason: one set a vCPU, written by its thread alone, read by anyone at any time.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Why a vCPU came back from KVM_RUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitReason {
    /// Read of a port.
    IoIn,
    /// Write of a port.
    IoOut,
    /// Read of a device register.
    MmioRead,
    /// Write of a device register (queue notifications are not among them: KVM turns them into events).
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

/// The counters of all vCPUs, and what they were at the agent's call.
#[derive(Debug, Clone, Default)]
pub struct Exits {
    vcpus: Arc<Mutex<Vec<Arc<ExitCounters>>>>,
    at_call: Arc<OnceLock<BTreeMap<String, u64>>>,
}

impl Exits {
    /// Counters for one more vCPU.
    pub fn add_vcpu(&self) -> Arc<ExitCounters> {
        let counters = Arc::new(ExitCounters::default());
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        counters
    }

    /// Sums over all vCPUs; reasons that never occurred are left out.
    pub fn total(&self) -> BTreeMap<String, u64> {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |index: usize| vcpus.iter().map(|counters| counters.0[index].load(Relaxed)).sum::<u64>();
        (0..NAMES.len()).map(|index| (NAMES[index].to_owned(), sum(index))).filter(|(_, count)| *count > 0).collect()
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
        let exits = Exits::default();
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
}
