//! What the admin side may see of the running agent.

use std::fmt::Debug;
use std::sync::Arc;

use super::status::Status;
use crate::policy::Table;

/// The running agent, for looking only. Calls are cheap and do not wait.
pub trait View: Debug + Send + Sync + 'static {
    /// How it is now.
    fn status(&self) -> Status;
    /// The cluster as it sees it now.
    fn table(&self) -> Arc<Table>;
}
