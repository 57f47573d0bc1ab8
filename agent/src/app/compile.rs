//! Snapshots to tables.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::NodeName;
use crate::policy::Table;
use crate::state::Snapshot;

/// The channel of a node's tables, with the table of the empty state in it.
pub(super) fn tables(node: NodeName) -> (watch::Sender<Arc<Table>>, watch::Receiver<Arc<Table>>) {
    watch::channel(Arc::new(Table::of_node(node)))
}

/// Compiles every snapshot that comes; those that come while it compiles are skipped.
/// Ends with the source.
pub(super) async fn run(
    mut snapshots: watch::Receiver<Snapshot>,
    tables: watch::Sender<Arc<Table>>,
) -> anyhow::Result<()> {
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let previous = Arc::clone(&tables.borrow());
        if snapshot.revision != previous.snapshot().revision {
            let revision = snapshot.revision;
            // Seconds of work after the first sync of a large cluster: other tasks go on.
            let table = tokio::task::block_in_place(|| Table::compile(Some(&previous), snapshot));
            let _old = tables.send_replace(Arc::new(table));
            tracing::debug!(revision, "compiled the policies");
        }
        if snapshots.changed().await.is_err() {
            return Ok(());
        }
    }
}
