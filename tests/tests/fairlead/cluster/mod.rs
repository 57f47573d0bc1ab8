//! Fairlead on a real API server, with the RBAC of `deploy/`.
//!
//! No test has a kubelet or a controller: the tests report pods as running, project
//! tokens and `ConfigMaps` into files, and write `EndpointSlices`.

mod access;
mod authority;
mod cni;
mod enrolment;
mod faults;
mod manifests;
mod mesh;
mod objects;
mod plane;
mod status;
mod verdict;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[
    access::TESTS,
    authority::TESTS,
    cni::TESTS,
    enrolment::TESTS,
    faults::TESTS,
    objects::TESTS,
    plane::TESTS,
    status::TESTS,
    verdict::TESTS,
];
