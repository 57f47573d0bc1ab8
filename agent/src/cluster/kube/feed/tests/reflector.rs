//! Events to changes.

use super::super::reflector::Reflector;
use super::*;
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::state::{Change, Writer};

/// A reflector of pods and the state that it makes.
struct Pods {
    reflector: Reflector,
    converter: Converter,
    writer: Writer,
}

impl Pods {
    fn new() -> Self {
        let trust_domain = TrustDomain("cluster.local".into());
        Self {
            reflector: Reflector::new(ObjectKind::Pod),
            converter: Converter::new(trust_domain, NetnsFrom::Node),
            writer: Writer::new(),
        }
    }

    /// With a list of `a` (version 10) and `b` (version 11), as of version 20.
    fn listed() -> Self {
        let mut pods = Self::new();
        pods.reflector.begin();
        pods.put("a", "10.0.0.1", 10);
        pods.put("b", "10.0.0.2", 11);
        pods.finish(20);
        pods
    }

    fn apply(&mut self, changes: Vec<Change>) -> usize {
        let count = changes.len();
        for change in changes {
            self.writer.apply(change);
        }
        count
    }

    /// How many changes that made.
    fn put_text(&mut self, text: &str) -> usize {
        let received = self.converter.text(ObjectKind::Pod, text).unwrap();
        let mut changes = Vec::new();
        self.reflector.put(received, &mut changes);
        self.apply(changes)
    }

    fn put(&mut self, name: &str, ip: &str, version: u64) -> usize {
        self.put_text(&pod(name, ip, version))
    }

    fn gone(&mut self, name: &str, version: u64) -> usize {
        let text = pod(name, "10.0.0.1", version);
        let (name, version) = self.converter.identify(ObjectKind::Pod, &text).unwrap();
        let mut changes = Vec::new();
        self.reflector.gone(&name, &version, &mut changes);
        self.apply(changes)
    }

    fn finish(&mut self, version: u64) -> usize {
        let mut changes = Vec::new();
        self.reflector.finish(&version.to_string(), &mut changes);
        self.apply(changes)
    }

    #[track_caller]
    fn check(&mut self, expected: &[&str]) {
        if let Some(snapshot) = self.writer.publish() {
            assert_eq!(pods(&snapshot), expected);
        }
        assert_eq!(self.reflector.len(), expected.len());
    }
}

/// What a node says that it runs by itself, of any namespace, has no account in the API.
#[test]
fn a_pod_without_a_service_account_is_nobody() {
    let mut converter = Converter::new(TrustDomain("cluster.local".into()), NetnsFrom::Node);
    let mut writer = Writer::new();
    let pod = |name: &str, spec: &str| {
        format!(
            r#"{{"metadata": {{"name": "{name}", "namespace": "payments", "uid": "{name}",
            "resourceVersion": "1"}}, "spec": {{"nodeName": "n1", {spec} "containers": []}}}}"#
        )
    };
    let mut reflector = Reflector::new(ObjectKind::Pod);
    reflector.begin();
    for (name, spec) in [
        ("mirror", ""),
        ("empty", r#""serviceAccountName": "","#),
        ("named", r#""serviceAccountName": "default","#),
    ] {
        let received = converter.text(ObjectKind::Pod, &pod(name, spec)).unwrap();
        let mut changes = Vec::new();
        reflector.put(received, &mut changes);
        for change in changes {
            writer.apply(change);
        }
    }
    let mut changes = Vec::new();
    reflector.finish("1", &mut changes);
    for change in changes {
        writer.apply(change);
    }
    let snapshot = writer.publish().unwrap();
    let known = snapshot.pods.values();
    let known: Vec<_> = known
        .map(|pod| (&*pod.name.name, pod.has_identity()))
        .collect();
    assert_eq!(
        known,
        [("empty", false), ("mirror", false), ("named", true)]
    );
}

#[test]
fn an_event_that_comes_twice_or_late_says_nothing() {
    let mut pods = Pods::listed();
    assert_eq!(pods.put("a", "10.0.0.9", 30), 1);
    assert_eq!(pods.put("a", "10.0.0.9", 30), 0);
    assert_eq!(pods.put("a", "10.0.0.5", 25), 0);
    assert_eq!(pods.gone("a", 26), 0);
    pods.check(&["shop/a 10.0.0.9", "shop/b 10.0.0.2"]);
    assert_eq!(pods.reflector.version(), Some("30"));
}

#[test]
fn a_late_event_does_not_bring_back_what_is_gone() {
    let mut pods = Pods::listed();
    assert_eq!(pods.gone("a", 30), 1);
    assert_eq!(pods.put("a", "10.0.0.5", 25), 0);
    assert_eq!(pods.gone("a", 30), 0);
    pods.check(&["shop/b 10.0.0.2"]);
    assert_eq!(pods.put("a", "10.0.0.5", 31), 1);
    pods.check(&["shop/a 10.0.0.5", "shop/b 10.0.0.2"]);
}

#[test]
fn versions_are_compared_as_numbers_and_only_where_they_are_numbers() {
    let mut pods = Pods::listed();
    assert_eq!(pods.put("a", "10.0.0.9", 100), 1);
    assert_eq!(pods.put("a", "10.0.0.8", 99), 0);
    let opaque = |ip: &str, version: &str| {
        pod("a", ip, 0).replace(
            "\"resourceVersion\":\"0\"",
            &format!("\"resourceVersion\":\"{version}\""),
        )
    };
    assert_eq!(pods.put_text(&opaque("10.0.0.6", "abc")), 1);
    assert_eq!(pods.put_text(&opaque("10.0.0.5", "abb")), 1);
    assert_eq!(pods.reflector.version(), Some("abb"));
}

#[test]
fn a_list_that_is_read_again_changes_what_differs_and_that_at_its_end() {
    let mut pods = Pods::listed();
    pods.reflector.begin();
    assert_eq!(pods.reflector.version(), None);
    assert_eq!(pods.put("a", "10.0.0.1", 10), 0);
    assert_eq!(pods.put("c", "10.0.0.2", 40), 0);
    // Events of a streamed list that came after it began.
    assert_eq!(pods.put("d", "10.0.0.4", 41), 0);
    assert_eq!(pods.gone("d", 42), 0);
    assert_eq!(pods.finish(50), 2);
    pods.check(&["shop/a 10.0.0.1", "shop/c 10.0.0.2"]);
    assert_eq!(pods.reflector.version(), Some("50"));
}

#[test]
fn what_is_gone_while_a_list_is_read_again_is_gone() {
    let mut pods = Pods::listed();
    pods.reflector.begin();
    pods.put("a", "10.0.0.1", 10);
    pods.put("b", "10.0.0.2", 11);
    pods.gone("a", 45);
    assert_eq!(pods.finish(50), 1);
    pods.check(&["shop/b 10.0.0.2"]);
}

#[test]
fn a_list_of_an_older_history_counts() {
    let mut pods = Pods::listed();
    pods.reflector.begin();
    pods.put("a", "10.0.0.7", 4);
    pods.finish(5);
    pods.check(&["shop/a 10.0.0.7"]);
    assert_eq!(pods.put("a", "10.0.0.8", 6), 1);
}

#[test]
fn an_object_that_becomes_malformed_keeps_its_last_good_version() {
    let mut pods = Pods::listed();
    let malformed = |version| pod("a", "10.0.0.9", version).replace("\"10.0.0.9\"", "[]");
    pods.put_text(&malformed(30));
    let snapshot = pods.writer.publish().unwrap();
    assert_eq!(
        super::pods(&snapshot),
        ["shop/a 10.0.0.1", "shop/b 10.0.0.2"]
    );
    let problem = snapshot.problems.iter().next().unwrap();
    assert_eq!((&*problem.file, &*problem.object), ("", "shop/a"));
    assert_eq!(problem.field, "status.podIP");
    assert_eq!(
        problem.message,
        "invalid type: sequence, expected a string; its last good version stays in force"
    );
    // One that was never good is left out; both are forgotten with their objects.
    pods.put_text(&malformed(31).replace("\"name\":\"a\"", "\"name\":\"z\""));
    assert_eq!(pods.reflector.len(), 2);
    assert_eq!(pods.writer.publish().unwrap().problems.len(), 2);
    pods.gone("a", 40);
    pods.gone("z", 41);
    let snapshot = pods.writer.publish().unwrap();
    assert!(snapshot.problems.is_empty());
    assert_eq!(super::pods(&snapshot), ["shop/b 10.0.0.2"]);
}

#[test]
fn a_problem_that_is_mended_is_over() {
    let mut pods = Pods::listed();
    pods.put_text(&pod("a", "10.0.0.300", 30));
    assert_eq!(pods.writer.publish().unwrap().problems.len(), 2);
    pods.put("a", "10.0.0.3", 31);
    assert!(pods.writer.publish().unwrap().problems.is_empty());
}

#[test]
fn an_address_goes_to_the_pod_that_is_not_being_deleted() {
    let mut pods = Pods::listed();
    let leaving = pod("a", "10.0.0.1", 30).replace(
        "\"managedFields\"",
        "\"deletionTimestamp\":\"2026-01-01T00:00:00Z\",\"managedFields\"",
    );
    pods.put_text(&leaving);
    pods.put("c", "10.0.0.1", 31);
    let snapshot = pods.writer.publish().unwrap();
    let owner = &snapshot.pods_by_ip[&crate::state::fixtures::ip("10.0.0.1")];
    assert_eq!(&*owner.name.name, "c");
    assert!(snapshot.contested.is_empty() && snapshot.problems.is_empty());
    let leaving = &snapshot.pods.values().next().unwrap();
    assert!(leaving.terminating && !leaving.ready);
}

#[test]
fn a_kind_that_vanishes_takes_its_objects_along() {
    let mut pods = Pods::listed();
    let mut changes = Vec::new();
    pods.reflector.vanish(&mut changes);
    assert_eq!(pods.apply(changes), 2);
    pods.check(&[]);
    assert_eq!(pods.reflector.version(), None);
}
