//! One verdict on an object, whether an API server or `fairlead lint` is asked.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use fairlead_tests::{binary, run};

use super::mesh::ClusterMesh;
use crate::Test;
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[Test::cluster(
    "verdict::lint_says_what_the_api_server_says",
    lint,
)];

/// Specs of a kind: the first is just inside a bound, the second just outside.
fn pairs() -> Vec<(&'static str, [String; 2])> {
    let times = |text: &str, [inside, outside]: [usize; 2]| {
        [inside, outside].map(|count| vec![text; count].join(", "))
    };
    let within = |frame: &str, values: [String; 2]| values.map(|it| frame.replace('@', &it));
    let words = |frame: &str, words: [&str; 2]| within(frame, words.map(str::to_owned));
    let letters = |[inside, outside]: [usize; 2]| [inside, outside].map(|it| "a".repeat(it));
    let authorization = "AuthorizationPolicy";
    let source = "{rules: [{from: [{source: {@}}]}]}";
    let operation = "{rules: [{to: [{operation: {@}}]}]}";
    let target = "{kind: Service, name: web}";
    let issuer = "{issuer: i, jwksUri: 'https://issuer.example/keys'}";
    let limit = "{targetRefs: [{kind: Service, name: web}], rateLimits: [{local: {requests: 1, per: \
                 1s, by: HEADER, header: '@'}}]}";
    vec![
        (
            authorization,
            within("{rules: [@]}", times("{}", [1024, 1025])),
        ),
        (
            authorization,
            within(
                "{rules: [{when: [@]}]}",
                times("{key: source.namespace, values: [a]}", [64, 65]),
            ),
        ),
        (
            authorization,
            words(operation, ["methods: [G-T*]", "methods: [G1]"]),
        ),
        (
            authorization,
            words(operation, ["ports: [80.0]", "ports: [80.5]"]),
        ),
        (
            authorization,
            words(operation, ["ports: ['65535']", "ports: ['65536']"]),
        ),
        (
            authorization,
            within(
                &source.replace('@', "serviceAccounts: [shop/@]"),
                letters([253, 254]),
            ),
        ),
        (
            authorization,
            words(
                source,
                ["notServiceAccounts: [web]", "notServiceAccounts: ['*']"],
            ),
        ),
        (
            "MeshPolicy",
            within("{jwt: {providers: [@]}}", times(issuer, [64, 65])),
        ),
        (
            "MeshPolicy",
            words("{accessLog: {percent: @}}", ["100", "100.5"]),
        ),
        (
            "TrafficPolicy",
            within("{targetRefs: [@]}", times(target, [64, 65])),
        ),
        ("TrafficPolicy", within(limit, letters([256, 257]))),
    ]
}

fn lint() -> Result<()> {
    let mesh = ClusterMesh::down(&[], true)?;
    let file = mesh.file("verdict.yaml");
    let path = file.display().to_string();
    for (kind, specs) in pairs() {
        for (spec, taken) in specs.iter().zip([true, false]) {
            let object = format!(
                "apiVersion: fairlead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: \
                 shop}}\nspec: {spec}\n"
            );
            fs::write(&file, &object)?;
            let applied = ["apply", "--dry-run=server", "--validate=false", "-f", &path];
            let applied = mesh.api().kubectl(&applied)?;
            let start: String = spec.chars().take(120).collect();
            ensure!(applied.success() == taken, "{kind} {start}: {applied:?}");
            let mut command = Command::new(binary()?);
            let linted = run(command.args(["lint", "--partial", "-f", &path]), SOON)?;
            ensure!(linted.success() == taken, "{kind} {start}: {linted:?}");
        }
    }
    Ok(())
}
