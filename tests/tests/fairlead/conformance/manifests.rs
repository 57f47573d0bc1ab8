//! The tests whose manifests are read from the suite's directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::echo::{Case, get, refused};
use super::stage::{Stage, all};
use crate::mesh::LONG;

/// What a skipped test is said to need.
pub(super) const NEEDED: &str = "the Gateway API's conformance manifests (FAIRLEAD_CONFORMANCE)";

/// The directory of the suite's manifests.
fn directory() -> PathBuf {
    match std::env::var_os("FAIRLEAD_CONFORMANCE") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/gateway-api/conformance"),
    }
}

/// Whether they are there.
pub(super) fn are_there() -> bool {
    directory().join("mesh").is_dir()
}

/// One file below `mesh/`.
pub(super) fn read(file: &str) -> Result<String> {
    let path = directory().join("mesh").join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

pub(super) fn http() -> Result<()> {
    let stage = Stage::up()?;
    let run = |file: &str, cases: &[Case]| stage.with_routes(file, &read(file)?, cases);
    without_routes(&stage)?;
    all([
        run(
            "httproute-simple-same-namespace.yaml",
            &[get("/", "echo-v1")],
        ),
        run("httproute-matching.yaml", &matching()),
        run("httproute-query-param-matching.yaml", &query_parameters()),
        run("httproute-request-header-modifier.yaml", &request_headers()),
        run(
            "httproute-request-header-modifier-backend.yaml",
            &request_headers(),
        ),
        run("mesh-frontend.yaml", &frontend()),
        run("mesh-ports.yaml", &ports()),
        run("mesh-split.yaml", &split()),
        weights(&stage),
    ])
}

/// `MeshBasic`: without a route both versions answer.
fn without_routes(stage: &Stage) -> Result<()> {
    get("/", "echo-v1").check(stage)?;
    get("/", "echo-v2").check(stage)
}

fn matching() -> Vec<Case> {
    vec![
        get("/", "echo-v1"),
        get("/example", "echo-v1"),
        get("/", "echo-v1").send("Version", "one"),
        get("/v2", "echo-v2"),
        get("/v2/example", "echo-v2"),
        get("/v2/", "echo-v2"),
        get("/", "echo-v2").send("Version", "two"),
        // A prefix is one of whole segments.
        get("/v2example", "echo-v1"),
        get("/foo/v2/example", "echo-v1"),
    ]
}

fn query_parameters() -> Vec<Case> {
    vec![
        get("/?animal=whale", "echo-v1"),
        get("/?animal=dolphin", "echo-v2"),
        get("/?animal=whale&otherparam=irrelevant", "echo-v1"),
        get("/?animal=dolphin&color=yellow", "echo-v2"),
        refused("/?ANIMAL=Whale", 404),
        refused("/?animal=shark", 404),
        refused("/?animal=whaledolphin", 404),
        refused("/", 404),
        get("/path1?animal=whale", "echo-v1"),
        get("/?animal=whale", "echo-v2").send("version", "one"),
        get("/path3?animal=shark", "echo-v1"),
        get("/path4?animal=kraken", "echo-v1").send("version", "three"),
        refused("/path4?animal=kraken", 404),
        get("/path5?animal=hydra", "echo-v1"),
        get("/?animal=hydra", "echo-v2"),
    ]
}

fn request_headers() -> Vec<Case> {
    vec![
        get("/set", "echo-v1")
            .send("Some-Other-Header", "val")
            .receives("Some-Other-Header", "val")
            .receives("X-Header-Set", "set-overwrites-values"),
        get("/set", "echo-v1")
            .send("X-Header-Set", "some-other-value")
            .receives("X-Header-Set", "set-overwrites-values"),
        get("/add", "echo-v1").receives("X-Header-Add", "add-appends-values"),
        get("/add", "echo-v1")
            .send("X-Header-Add", "some-other-value")
            .receives("X-Header-Add", "some-other-value,add-appends-values"),
        get("/remove", "echo-v1")
            .send("X-Header-Remove", "val")
            .receives_no("X-Header-Remove"),
        get("/multiple", "echo-v1")
            .send("X-Header-Set-2", "set-val-2")
            .send("X-Header-Add-2", "add-val-2")
            .send("X-Header-Remove-2", "remove-val-2")
            .send("Another-Header", "another-header-val")
            .receives("X-Header-Set-1", "header-set-1")
            .receives("X-Header-Set-2", "header-set-2")
            .receives("X-Header-Add-1", "header-add-1")
            .receives("X-Header-Add-2", "add-val-2,header-add-2")
            .receives("X-Header-Add-3", "header-add-3")
            .receives("Another-Header", "another-header-val")
            .receives_no("X-Header-Remove-1")
            .receives_no("X-Header-Remove-2"),
        get("/case-insensitivity", "echo-v1")
            .send("x-header-set", "original-val-set")
            .send("x-header-add", "original-val-add")
            .send("x-header-remove", "original-val-remove")
            .receives("X-Header-Set", "header-set")
            .receives("X-Header-Add", "original-val-add,header-add")
            .receives_no("X-Header-Remove"),
    ]
}

/// A route of a Service holds for the Service, not for the pods behind it; and for its
/// address, whatever the request calls the host.
fn frontend() -> Vec<Case> {
    let header = "x-header-set";
    vec![
        get("/", "echo-v2").to("echo-v2", 80).answers(header, "set"),
        get("/", "echo-v2")
            .to("pod/echo-v2", 8080)
            .answers_no(header),
        get("/", "echo-v1").to("echo-v1", 80).answers_no(header),
        get("/", "echo-v1")
            .to("echo-v1", 80)
            .send("Host", "echo-v2")
            .answers_no(header),
        get("/", "echo-v2")
            .to("echo-v2", 80)
            .send("Host", "echo-v1")
            .answers(header, "set"),
    ]
}

fn ports() -> Vec<Case> {
    let header = "x-header-set";
    vec![
        get("/", "echo-v1").to("echo-v1", 80).answers(header, "v1"),
        get("/", "echo-v1").to("echo-v1", 8080).answers_no(header),
        get("/", "echo-v2").to("echo-v2", 80).answers(header, "v2"),
        get("/", "echo-v2")
            .to("echo-v2", 8080)
            .answers(header, "v2"),
    ]
}

fn split() -> Vec<Case> {
    vec![
        get("/v1", "echo-v1"),
        get("/v2", "echo-v2"),
        refused("/", 404),
    ]
}

/// Of 600 requests, 70 % to the first, give or take five standard deviations.
fn weights(stage: &Stage) -> Result<()> {
    let file = "httproute-weight.yaml";
    let manifests = stage.world.manifests();
    manifests.write(file, &read(file)?)?;
    stage.wait_routed("mesh-weighted-backends")?;
    let url = format!("http://{}/?[1-600]", stage.address("echo")?);
    let ask = ["curl", "-sS", "--max-time", "10", &url];
    let output = stage.client(false).run_for(LONG, &ask)?.ok()?;
    manifests.remove(file)?;
    let first = output.stdout.matches(r#""pod": "echo-v1""#).count();
    let second = output.stdout.matches(r#""pod": "echo-v2""#).count();
    ensure!(first + second == 600, "{first} + {second} answers of 600");
    ensure!(
        (364..=476).contains(&first),
        "{first} of 600 instead of 420"
    );
    Ok(())
}
