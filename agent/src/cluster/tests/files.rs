//! Several files, and what becomes of them.

use std::fmt::Write as _;

use super::*;
use crate::model::NamespacedName;

fn pod(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nstatus:\n  podIP: {ip}\n")
}

fn policy(name: &str, action: &str) -> String {
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n\
         spec:\n  action: {action}\n"
    )
}

/// The pods with their addresses.
#[track_caller]
fn check_pods(snapshot: &Snapshot, expected: &[&str]) {
    let pods = snapshot
        .pods
        .values()
        .map(|pod| format!("{} {}", pod.name.name, pod.ips[0]));
    assert_eq!(pods.collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_that_does_not_parse_leaves_its_last_good_objects() {
    let mut world = World::new();
    world.put("a.yaml", &pod("p", "10.0.0.1"));
    world.put("b.yaml", &pod("q", "10.0.0.2"));
    let snapshot = world.put(
        "a.yaml",
        &format!("{}---\n  broken: [\n", pod("r", "10.0.0.3")),
    );
    check_pods(&snapshot, &["p 10.0.0.1", "q 10.0.0.2"]);
    let problem = &problems(&snapshot)[0];
    assert!(problem.starts_with("a.yaml:9 : "), "{problem}");
    assert!(
        problem.contains("what the file said before stays in force"),
        "{problem}"
    );
    let snapshot = world.put("a.yaml", &pod("r", "10.0.0.3"));
    check_pods(&snapshot, &["q 10.0.0.2", "r 10.0.0.3"]);
    check_problems(&snapshot, &[]);
}

#[test]
fn an_unreadable_file_leaves_its_last_good_objects() {
    let mut world = World::new();
    world.put("a.yaml", &pod("p", "10.0.0.1"));
    let snapshot = world.update("a.yaml", Content::Unreadable("no".to_owned()));
    check_pods(&snapshot, &["p 10.0.0.1"]);
    check_problems(&snapshot, &["a.yaml:0 : no"]);
}

#[test]
fn what_can_be_read_of_a_new_file_that_does_not_parse_counts() {
    let snapshot = World::of(&format!("{}---\nbroken: [\n", pod("p", "10.0.0.1")));
    check_pods(&snapshot, &["p 10.0.0.1"]);
    assert_eq!(snapshot.problems.len(), 1);
}

#[test]
fn a_broken_policy_that_was_never_read_denies_its_namespace() {
    let deny = policy("p", "DENY").replace("  name: p", "  namespace: shop\n  name: p");
    let mut world = World::new();
    let snapshot = world.put(
        "a.yaml",
        &format!("{}---\n{deny}  rules: [\n", pod("p", "10.0.0.1")),
    );
    let broken = snapshot.authorization_policies.values().next().unwrap();
    assert_eq!(&*broken.name.namespace, "shop");
    assert!(broken.invalid.is_some());
    check_pods(&snapshot, &["p 10.0.0.1"]);
    let text = problems(&snapshot).join("\n");
    assert!(
        text.contains("a.yaml:7 : seems to hold a policy: namespace shop is denied"),
        "{text}"
    );
    let snapshot = world.put("a.yaml", &deny);
    check_problems(&snapshot, &[]);
    assert_eq!(snapshot.authorization_policies.len(), 1);
    let fine = snapshot.authorization_policies.values().next().unwrap();
    assert_eq!(fine.invalid, None);
}

#[test]
fn a_broken_policy_in_json_denies_its_namespace() {
    let text = r#"{"kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},"#;
    let snapshot = World::new().put("a.json", text);
    let broken = snapshot.authorization_policies.values().next().unwrap();
    assert_eq!(&*broken.name.namespace, "shop");
}

#[test]
fn a_bad_object_keeps_its_last_good_version_and_others_apply() {
    let mut world = World::new();
    world.put(
        "a.yaml",
        &format!("{}---\n{}", pod("p", "10.0.0.1"), pod("q", "10.0.0.2")),
    );
    let bad = pod("p", "[10.0.0.9]");
    let snapshot = world.put("a.yaml", &format!("{bad}---\n{}", pod("q", "10.0.0.3")));
    check_pods(&snapshot, &["p 10.0.0.1", "q 10.0.0.3"]);
    check_problems(
        &snapshot,
        &[
            "a.yaml:6 Pod default/p status.podIP: invalid type: sequence, expected a string; its last \
           good version stays in force",
        ],
    );
    // Also after another bad version of it.
    let snapshot = world.put("a.yaml", &pod("p", "{}"));
    check_pods(&snapshot, &["p 10.0.0.1"]);
}

#[test]
fn a_bad_object_that_never_was_good_is_left_out() {
    let snapshot = World::of(&format!("{}---\n{}", pod("p", "[]"), pod("q", "10.0.0.2")));
    check_pods(&snapshot, &["q 10.0.0.2"]);
    assert!(problems(&snapshot)[0].ends_with("; it is left out"));
}

#[test]
fn a_bad_policy_denies_and_does_not_keep_its_last_good_version() {
    let mut world = World::new();
    world.put("a.yaml", &policy("p", "ALLOW"));
    let snapshot = world.put("a.yaml", &policy("p", "MAYBE"));
    assert!(
        snapshot
            .authorization_policies
            .values()
            .next()
            .unwrap()
            .invalid
            .is_some()
    );
    check_problems(
        &snapshot,
        &[
            "a.yaml:6 AuthorizationPolicy default/p spec.action: \"MAYBE\" is not ALLOW, DENY, \
           AUDIT or CUSTOM; the policy denies what it selects",
        ],
    );
}

#[test]
fn the_first_file_by_name_counts() {
    let mut world = World::new();
    world.put("b.yaml", &pod("p", "10.0.0.2"));
    let snapshot = world.put("a.yaml", &pod("p", "10.0.0.1"));
    check_pods(&snapshot, &["p 10.0.0.1"]);
    let problem =
        "b.yaml:1 Pod default/p: is also in a.yaml, which counts since its name comes first";
    check_problems(&snapshot, &[problem]);
    let snapshot = world.update("a.yaml", Content::Gone);
    check_pods(&snapshot, &["p 10.0.0.2"]);
    check_problems(&snapshot, &[]);
}

#[test]
fn an_object_twice_in_a_file() {
    let snapshot = World::of(&format!(
        "{}---\n{}",
        pod("p", "10.0.0.1"),
        pod("p", "10.0.0.2")
    ));
    check_pods(&snapshot, &["p 10.0.0.1"]);
    check_problems(
        &snapshot,
        &["a.yaml:8 Pod default/p: is also on line 1, which counts"],
    );
}

#[test]
fn two_pods_with_one_address_are_both_reported_where_they_are() {
    let mut world = World::new();
    world.put("a.yaml", &pod("p", "10.0.0.1"));
    let snapshot = world.put("b.yaml", &format!("---\n{}", pod("q", "10.0.0.1")));
    check_problems(
        &snapshot,
        &[
            "a.yaml:1 Pod default/p status.podIPs: 10.0.0.1 is claimed by Pod default/q too: \
             nothing is sent there until one of them lets go",
            "b.yaml:2 Pod default/q status.podIPs: 10.0.0.1 is claimed by Pod default/p too: \
             nothing is sent there until one of them lets go",
        ],
    );
}

#[test]
fn objects_move_between_files() {
    let mut world = World::new();
    world.put("a.yaml", &pod("p", "10.0.0.1"));
    world.put("b.yaml", &pod("p", "10.0.0.1"));
    let snapshot = world.put("a.yaml", "");
    check_pods(&snapshot, &["p 10.0.0.1"]);
    check_problems(&snapshot, &[]);
    let snapshot = world.update("b.yaml", Content::Gone);
    check_pods(&snapshot, &[]);
    assert!(world.files.counts().is_empty());
}

#[test]
fn enrolment_follows_the_namespaces_file() {
    let namespace = |label: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels:\n    \
             fairlead.dev/mesh: {label}\n"
        )
    };
    let mut world = World::new();
    world.put("a.yaml", &pod("p", "10.0.0.1"));
    let name = NamespacedName::new("default", "p");
    assert!(world.put("n.yaml", &namespace("enabled")).pods[&name].enrolled);
    assert!(!world.update("n.yaml", Content::Gone).pods[&name].enrolled);
}

#[test]
fn of_very_many_problems_not_every_line_is_searched() {
    let mut text = "kind: List\nitems:\n".to_owned();
    for index in 0..1000 {
        writeln!(
            text,
            "- {{apiVersion: fairlead.dev/v1alpha1, kind: MeshPolicy, metadata: {{name: p{index}}}, \
             spec: {{x: 1}}}}"
        )
        .unwrap();
    }
    let found = problems(&World::of(&text));
    assert_eq!(found.len(), 1000);
    assert!(found.iter().any(|problem| problem.starts_with("a.yaml:3 ")));
    let unlocated = found.iter().filter(|p| p.starts_with("a.yaml:1 "));
    assert!(unlocated.count() > 900);
}

#[test]
fn a_policy_in_a_file_that_is_no_text_denies_its_namespace() {
    let mut world = World::new();
    let text = policy("allow", "ALLOW").replace("  name", "  namespace: shop\n  name");
    let garbled = Content::Garbled("is not UTF-8".to_owned(), text);
    let snapshot = world.update("a.yaml", garbled);
    let policies: Vec<_> = snapshot.authorization_policies.values().collect();
    assert_eq!(policies.len(), 1);
    assert!(policies[0].invalid.is_some() && &*policies[0].name.namespace == "shop");
    check_problems(
        &snapshot,
        &[
            "a.yaml:0 : is not UTF-8",
            "a.yaml:1 : seems to hold a policy: namespace shop is denied",
        ],
    );
}
