//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also where a panic has poisoned it: one under a lock of the proxy ends the process,
/// or, where a body is polled under it, breaks that body alone.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
