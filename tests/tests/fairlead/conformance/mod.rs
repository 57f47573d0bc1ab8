//! The Gateway API's conformance tests of meshes, over real sockets: what the suite sends
//! and expects, with curl and grpcio for its client, and its echo server in Python.
//!
//! Its manifests are not ours: they are read from a directory beside this repository, or
//! from where `FAIRLEAD_CONFORMANCE` says. A test that needs one that is not there is
//! skipped. What has no manifest there is written here, as its documentation has it.

mod echo;
mod extended;
mod grpc;
mod http2;
mod manifests;
mod stage;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("conformance::mesh_http", manifests::http)
        .with(&["python3", "curl"])
        .given(manifests::NEEDED, manifests::are_there),
    Test::node("conformance::mesh_http_filters", extended::filters).with(&["python3", "curl"]),
    Test::node("conformance::mesh_http_backends", extended::backends).with(&["python3", "curl"]),
    Test::node("conformance::mesh_http_matches", extended::matches).with(&["python3", "curl"]),
    Test::node("conformance::mesh_consumers", extended::consumers).with(&["python3", "curl"]),
    Test::node("conformance::mesh_grpc", grpc::calls).with(&["python3"]),
    Test::node("conformance::http2_frames", http2::frames).with(&["python3"]),
];
