//! How this crate locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what is never held across a wait. A panic ends the process, so no lock is ever poisoned.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
