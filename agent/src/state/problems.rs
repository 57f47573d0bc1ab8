//! The problems of a snapshot, each kept for as long as whoever reported it says so.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;

use super::change::ObjectKey;
use super::exposed::Exposed;
use super::objects::Problem;
use crate::model::NamespacedName;

/// Who reported a set of problems.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// The source, of one of its files or objects.
    Source(Arc<str>),
    /// The writer, of an address that several objects claim.
    Address(IpAddr),
    /// The writer, of an address beside those of the cluster that several Services claim.
    Exposed(Exposed),
    /// The writer, of a pod that can't be meshed.
    Pod(NamespacedName),
    /// The writer, of a policy whose targets don't exist.
    Targets(ObjectKey),
}

/// All problems by owner. Two owners may report the same; it is shown once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    by_owner: HashMap<Owner, Vec<Problem>>,
    owners_of: HashMap<Problem, usize>,
}

impl Problems {
    /// Replaces what `owner` said. True where that changed `shown`.
    pub(super) fn replace(
        &mut self,
        owner: Owner,
        mut problems: Vec<Problem>,
        shown: &mut OrdSet<Problem>,
    ) -> bool {
        problems.sort();
        problems.dedup();
        let old = self.by_owner.remove(&owner).unwrap_or_default();
        if old == problems {
            if !old.is_empty() {
                self.by_owner.insert(owner, old);
            }
            return false;
        }
        for problem in &problems {
            let owners = self.owners_of.entry(problem.clone()).or_default();
            *owners += 1;
            if *owners == 1 {
                shown.insert(problem.clone());
            }
        }
        for problem in &old {
            self.forget(problem, shown);
        }
        if !problems.is_empty() {
            self.by_owner.insert(owner, problems);
        }
        true
    }

    fn forget(&mut self, problem: &Problem, shown: &mut OrdSet<Problem>) {
        let Some(owners) = self.owners_of.get_mut(problem) else {
            return;
        };
        *owners -= 1;
        if *owners == 0 {
            self.owners_of.remove(problem);
            shown.remove(problem);
        }
    }
}
