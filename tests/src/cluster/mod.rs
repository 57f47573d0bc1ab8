//! A real Kubernetes control plane for tests: etcd and kube-apiserver, with RBAC.
//!
//! There are no controllers, no scheduler and no kubelets: what they would do, a test
//! does itself with the functions of [`kubelet`], and says so. A control plane takes
//! seconds to start, so one that a test is through with is brought back to its
//! beginnings, by its database, and given to the next: see [`Lease`].

mod api;
mod control_plane;
mod etcd;
pub mod kubelet;
mod pki;

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::world::World;
use etcd::Contents;

pub use api::Api;
pub use control_plane::{ControlPlane, kubernetes};
pub use kubelet::ClusterPod;

/// Control planes that no test has.
static FREE: Mutex<Vec<(ControlPlane, Contents)>> = Mutex::new(Vec::new());

/// A control plane that one test has for itself.
#[derive(Debug)]
pub struct Lease {
    plane: Option<ControlPlane>,
    beginnings: Contents,
}

impl Lease {
    /// Takes a free control plane, or starts one and has it prepared; what it holds then
    /// is what every test begins with, so that all of a process have to prepare it alike.
    /// Its nodes are those of the world.
    pub fn take(world: &World, prepare: fn(&ControlPlane) -> Result<()>) -> Result<Self> {
        let free = lock().pop();
        let (plane, beginnings) = if let Some(free) = free {
            free
        } else {
            let plane = ControlPlane::start()?;
            prepare(&plane)?;
            let beginnings = plane.contents()?;
            (plane, beginnings)
        };
        let mut lease = Self {
            plane: Some(plane),
            beginnings,
        };
        lease.connect(world)?;
        kubelet::register_nodes(lease.admin(), world)?;
        Ok(lease)
    }
}

impl Deref for Lease {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        self.plane.as_ref().expect("it is taken only by drop")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut ControlPlane {
        self.plane.as_mut().expect("it is taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut plane) = self.plane.take() else {
            return;
        };
        plane.disconnect();
        // One that can't be brought back ends here; the next test starts another.
        if plane.restore(&self.beginnings).is_ok() {
            lock().push((plane, self.beginnings.clone()));
        }
    }
}

/// Ends the control planes that no test has. To be called before the process ends: what
/// is left behind is swept by the next run only.
pub fn end() {
    lock().clear();
}

fn lock() -> std::sync::MutexGuard<'static, Vec<(ControlPlane, Contents)>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}
