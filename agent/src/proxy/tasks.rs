//! Every task of the data path, so that none outlives it.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::turns::Turns;

/// Starts tasks, and stops them all together. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs the future until it ends, or all are stopped: among the tasks of the pod whose
    /// task this is called from, if it is one.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match Turns::current() {
            Some(turns) => self.spawn_among(&turns, task),
            None => self.spawn_alone(task),
        }
    }

    /// Runs the future among the tasks of a pod, until it ends or all are stopped.
    pub(super) fn spawn_among(
        &self,
        turns: &Arc<Turns>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        turns.spawn(self.tracker.track_future(task));
    }

    /// Runs the future as a task of its own in another runtime than the caller's.
    pub(super) fn spawn_on(
        &self,
        runtime: &Handle,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let _entered = runtime.enter();
        self.spawn_alone(task);
    }

    pub(super) fn spawn_alone(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Boxed: each of the futures around it would hold it twice, as argument and as state.
        let task = self.stop.clone().run_until_cancelled_owned(Box::pin(task));
        let _handle = self.tracker.spawn(async move {
            let _stopped = task.await.is_none();
        });
    }

    /// Cancelled when all tasks are to end.
    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// All tasks are stopped when the guard is dropped.
    pub(super) fn stop_on_drop(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.tracker.len()
    }
}
