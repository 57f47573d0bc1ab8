//! What is said of manifests without a cluster.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::cluster::{Finding, Level, LintOptions, lint};

const POLICY: &str = "apiVersion: fairlead.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  rules: [{}]
";
const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
";
const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

/// Findings as `level file:line kind object field: message`, with `stdin` behind `-`.
fn findings(options: &LintOptions, stdin: &str) -> Vec<String> {
    let text = |Finding { level, problem }: Finding| {
        let file = problem.file.rsplit('/').next().unwrap().to_owned();
        format!(
            "{level:?} {file}:{} {} {} {}: {}",
            problem.line, problem.kind, problem.object, problem.field, problem.message
        )
    };
    let found = lint(options, stdin.as_bytes());
    found.into_iter().map(text).collect()
}

fn of(paths: &[PathBuf]) -> LintOptions {
    LintOptions {
        paths: paths.to_vec(),
        ..LintOptions::default()
    }
}

#[track_caller]
fn check(options: &LintOptions, stdin: &str, expected: &[&str]) {
    let found = findings(options, stdin);
    let matches = |(found, expected): (&String, &&str)| found.contains(expected);
    let all = found.iter().zip(expected).all(matches);
    assert!(all && found.len() == expected.len(), "{found:#?}");
}

#[test]
fn files_and_directories_are_taken_together() {
    let one = directory(&[("policy.yaml", POLICY), ("notes.txt", "kind: [")]);
    let other = directory(&[("service.yaml", SERVICE)]);
    let path = one.path().to_owned();
    let missing = "Problem policy.yaml:1 AuthorizationPolicy shop/p spec.targetRefs[0].name: \
                   there is no Service shop/web";
    check(&of(std::slice::from_ref(&path)), "", &[missing]);
    check(&of(&[path.clone(), other.path().to_owned()]), "", &[]);
    check(
        &of(&[path.clone(), path.join("policy.yaml")]),
        "",
        &[missing],
    );
    let gone = path.join("gone.yaml");
    check(&of(&[gone]), "", &["Problem gone.yaml:0   : No such file"]);
}

#[test]
fn a_file_may_come_by_standard_input() {
    check(&of(&["-".into()]), SERVICE, &[]);
    let broken = POLICY.replace("rules: [{}]", "rules: [{form: []}]") + "---\n" + SERVICE;
    let expected = "Problem -:6 AuthorizationPolicy shop/p spec.rules[0].form: is not known here";
    check(&of(&["-".into()]), &broken, &[expected]);
    let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "A"}}"#;
    check(&of(&["-".into()]), json, &["metadata.name: must be of a-z"]);
}

#[test]
fn a_part_of_the_cluster_does_not_have_every_service() {
    let twice = POLICY.replace("{kind: Service, name: web}", "{kind: Gateway, name: web}");
    let twice = format!("{POLICY}---\n{}", twice.replace("name: p,", "name: q,"));
    let options = LintOptions {
        partial: true,
        ..of(&["-".into()])
    };
    check(&options, POLICY, &[]);
    check(&options, &twice, &["\"Gateway\" can't be a target"]);
    let spelt = POLICY.replace("kind: Service", "kind: Srevice");
    check(&options, &spelt, &["\"Srevice\" can't be a target"]);
}

#[test]
fn an_object_that_is_there_twice_is_told_of_in_both_places() {
    let again = format!("{SERVICE}---\n{SERVICE}");
    let files = directory(&[("a.yaml", &again), ("b.yaml", SERVICE)]);
    let expected = [
        "Problem a.yaml:6 Service shop/web : is also on line 1, which counts",
        "Problem b.yaml:1 Service shop/web : is also in",
    ];
    check(&of(&[files.path().to_owned()]), "", &expected);
}

#[test]
fn what_the_mesh_has_no_use_for_is_told_of_where_that_is_asked_for() {
    let text = format!("{SERVICE}---\n{DEPLOYMENT}");
    check(&of(&["-".into()]), &text, &[]);
    let options = LintOptions {
        ignored: true,
        ..of(&["-".into()])
    };
    let expected = "Ignored -:6 Deployment default/web : is ignored";
    check(&options, &text, &[expected]);
    assert_eq!(lint(&options, text.as_bytes())[0].level, Level::Ignored);
}
