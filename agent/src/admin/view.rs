//! What the admin side may see of the running agent.

use std::fmt::Debug;
use std::sync::Arc;

use super::status::Status;
use super::usage::Usage;
use crate::model::NamespacedName;
use crate::policy::Table;
use crate::policy::balance::EndpointFigures;

/// How the endpoints of a Service's port are, as this node sees them.
#[derive(Clone, Debug)]
pub struct ServiceLoad {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// Those of one family of addresses.
    pub endpoints: Vec<EndpointFigures>,
}

/// The running agent, for looking only. Calls are cheap and do not wait.
pub trait View: Debug + Send + Sync + 'static {
    /// How it is now.
    fn status(&self) -> Status;
    /// What each pod takes of the proxy.
    fn usage(&self) -> Usage;
    /// The cluster as it sees it now.
    fn table(&self) -> Arc<Table>;
    /// The endpoints that pods of this node send requests to.
    fn loads(&self) -> Vec<ServiceLoad>;
}
