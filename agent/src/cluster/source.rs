//! What every source gives: snapshots, and how it is.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::state::Snapshot;

/// A running source.
#[derive(Clone, Debug)]
pub struct Source {
    /// The state. Revision 0 means that the directory has not been read yet.
    pub snapshots: watch::Receiver<Snapshot>,
    /// How the source is.
    pub health: watch::Receiver<Health>,
}

/// How a source is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Such as `dir:/etc/fairlead/manifests`.
    pub source: String,
    /// The last attempt to read it succeeded.
    pub healthy: bool,
    /// When it was last read.
    pub last_sync: Option<Timestamp>,
    /// The last error; it may be over.
    pub last_error: Option<SourceError>,
    /// Changes are noticed at once; else within seconds.
    pub watching: bool,
    /// Objects in force, by kind.
    pub objects: BTreeMap<&'static str, usize>,
    /// How many problems the state has.
    pub problems: usize,
}

/// Something that went wrong with a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceError {
    /// When.
    pub time: Timestamp,
    /// What.
    pub message: String,
}
