//! The names of the pod's processes: taken while one is being made, given back when it cannot be.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex},
};

use pod::{ErrorKind, ProcessId};

use super::process::{Process, name};
use crate::{lock::held, refusal::Refusal};

enum Slot {
    /// Being made: the name is taken, nothing else can be done to it.
    Reserved,
    Made(Arc<Process>),
}

/// Every process of the pod by its name. Clones are the same table.
#[derive(Clone, Default)]
pub(super) struct Table(Arc<Mutex<BTreeMap<ProcessId, Slot>>>);

impl Table {
    /// Whether no name is taken.
    pub(super) fn is_empty(&self) -> bool {
        held(&self.0).is_empty()
    }

    /// All that are made.
    pub(super) fn made(&self) -> Vec<Arc<Process>> {
        held(&self.0).values().filter_map(made).collect()
    }

    /// The process of this name.
    ///
    /// # Errors
    /// There is none, or it is still being made.
    pub(super) fn find(&self, id: &ProcessId) -> Result<Arc<Process>, Refusal> {
        match held(&self.0).get(id) {
            Some(Slot::Made(process)) => Ok(Arc::clone(process)),
            Some(Slot::Reserved) => {
                let sentence = format!("{} is still being made", name(id));
                Err(Refusal::new(ErrorKind::FailedPrecondition, sentence))
            }
            None => Err(Refusal::not_found(name(id))),
        }
    }

    /// Takes a name for a process that is about to be made.
    ///
    /// # Errors
    /// It is taken already.
    pub(super) fn reserve(&self, id: ProcessId) -> Result<Reservation, Refusal> {
        match held(&self.0).entry(id.clone()) {
            Entry::Occupied(_) => Err(Refusal::new(ErrorKind::AlreadyExists, format!("{} exists already", name(&id)))),
            Entry::Vacant(slot) => {
                slot.insert(Slot::Reserved);
                Ok(Reservation { table: self.clone(), id: Some(id) })
            }
        }
    }

    /// Takes a process out, and with a container its execs, which come back. `None` when someone else did.
    pub(super) fn forget(&self, id: &ProcessId) -> Option<Vec<Arc<Process>>> {
        let mut table = held(&self.0);
        table.remove(id)?;
        if !id.exec_id.is_empty() {
            return Some(Vec::new());
        }
        let execs = table.extract_if(.., |other, _| other.container_id == id.container_id);
        Some(execs.filter_map(|(_, slot)| made(&slot)).collect())
    }
}

/// A taken name; given back unless filled.
pub(super) struct Reservation {
    table: Table,
    id: Option<ProcessId>,
}

impl Reservation {
    /// The process of this name is made.
    pub(super) fn fill(mut self, process: Arc<Process>) {
        if let Some(id) = self.id.take() {
            held(&self.table.0).insert(id, Slot::Made(process));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            held(&self.table.0).remove(&id);
        }
    }
}

fn made(slot: &Slot) -> Option<Arc<Process>> {
    match slot {
        Slot::Made(process) => Some(Arc::clone(process)),
        Slot::Reserved => None,
    }
}
