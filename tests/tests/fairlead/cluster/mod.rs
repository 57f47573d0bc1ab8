//! Fairlead on a real API server, with the RBAC of `deploy/`.
//!
//! No test has a kubelet or a controller: the tests report pods as running, project
//! tokens and `ConfigMaps` into files, and write `EndpointSlices`.

mod plane;

use anyhow::Result;
use fairlead_tests::cluster::{ControlPlane, kubelet};

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[plane::TESTS];

/// What every test begins with.
fn install(plane: &ControlPlane) -> Result<()> {
    kubelet::apply_namespace(plane.admin(), "fairlead-system", false)
}
