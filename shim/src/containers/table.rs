//! The names of the pod's processes: taken while one is being made, given back when it cannot be.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex},
};

use pod::{ErrorKind, ProcessId};
use tokio::sync::watch;

use super::process::{Process, name};
use crate::{doom::Doom, lock::held, refusal::Refusal};

enum Slot {
    /// Being made: the name is taken, and all that can be done to it is to delete it, which waits.
    Reserved(Making),
    Made(Arc<Process>),
}

/// A process that is being made.
#[derive(Clone)]
struct Making {
    /// Whether it is not wanted any more.
    doomed: Arc<Doom>,
    /// Ends when it is made, or cannot be.
    over: watch::Receiver<()>,
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
            Some(Slot::Reserved(_)) => {
                let sentence = format!("{} is still being made", name(id));
                Err(Refusal::new(ErrorKind::FailedPrecondition, sentence))
            }
            None => Err(Refusal::not_found(name(id))),
        }
    }

    /// Whether the name is taken, be it by one that is still being made.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn check_taken(&self, id: &ProcessId) -> Result<(), Refusal> {
        if held(&self.0).contains_key(id) { Ok(()) } else { Err(Refusal::not_found(name(id))) }
    }

    /// The process of this name, to delete it. One that is still being made is doomed: this waits until it is no more.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn find_to_delete(&self, id: &ProcessId) -> Result<Arc<Process>, Refusal> {
        loop {
            let making = match held(&self.0).get(id) {
                Some(Slot::Made(process)) => return Ok(Arc::clone(process)),
                Some(Slot::Reserved(making)) => making.clone(),
                None => return Err(Refusal::not_found(name(id))),
            };
            making.doomed.tell();
            let mut over = making.over;
            let _ = over.changed().await;
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
                let (over, end) = watch::channel(());
                let doomed = Arc::<Doom>::default();
                slot.insert(Slot::Reserved(Making { doomed: Arc::clone(&doomed), over: end }));
                Ok(Reservation { table: self.clone(), id: Some(id), doomed, _over: over })
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
    doomed: Arc<Doom>,
    /// Dropped last, when the table says how it went.
    _over: watch::Sender<()>,
}

impl Reservation {
    /// Whether somebody has deleted the process before it was made; it must not come to be then.
    ///
    /// # Errors
    /// Somebody has.
    pub(super) fn check_wanted(&self) -> Result<(), Refusal> {
        match &self.id {
            Some(id) if self.doomed.is_told() => {
                Err(Refusal::new(ErrorKind::Unavailable, format!("{} was deleted while it was being made", name(id))))
            }
            _ => Ok(()),
        }
    }

    /// Told when somebody deletes it before it is made.
    pub(super) fn doomed(&self) -> Arc<Doom> {
        Arc::clone(&self.doomed)
    }

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
        Slot::Reserved(_) => None,
    }
}
