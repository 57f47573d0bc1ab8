//! Explanations.

use super::*;
use crate::model::NodeName;
use crate::policy::{ExplainError, Explanation, Verdict};
use crate::state::Pod;
use crate::state::fixtures::{labels, service};

/// The client `shop/cart` on node one, `shop/web` of two pods on two nodes, `out/legacy`
/// outside of the mesh, and whatever is added.
pub(super) fn meshed_world(extra: Vec<Object>) -> World {
    let on = |name, ips: &[&str], node: &str| {
        Object::Pod(Pod {
            node: Some(NodeName(node.into())),
            ..pod(name, ips)
        })
    };
    let mut world = World::new([
        namespace("shop", "enabled"),
        on("shop/cart", &["10.0.0.9"], "one"),
        on("shop/web-1", &["10.0.0.1"], "one"),
        on("shop/web-2", &["10.0.0.2"], "two"),
        on("out/legacy", &["10.0.1.1"], "two"),
        Object::Service(service("shop/web", "10.96.0.1")),
    ]);
    let cart = Pod {
        labels: labels(&[("app", "cart")]),
        ..pod("shop/cart", &["10.0.0.9"])
    };
    world.put(Object::Pod(Pod {
        node: Some(NodeName("one".into())),
        ..cart
    }));
    for object in extra {
        world.put(object);
    }
    world
}

fn explain(
    extra: Vec<Object>,
    source: &str,
    destination: &str,
) -> Result<Explanation, ExplainError> {
    Table::compile(None, meshed_world(extra).now()).explain(source, destination)
}

#[track_caller]
fn check(
    extra: Vec<Object>,
    source: &str,
    destination: &str,
    expected: (Verdict, &str),
) -> Explanation {
    let explanation = explain(extra, source, destination).unwrap();
    let reason = explanation.outcome.reason.as_deref().unwrap_or("");
    assert_eq!((explanation.outcome.verdict, reason), expected);
    read_back(&explanation)
}

/// What the command line understands of it.
fn read_back(explanation: &Explanation) -> Explanation {
    let sent = serde_json::to_string(explanation).unwrap();
    let read = serde_json::from_str(&sent).unwrap();
    assert_eq!(*explanation, read);
    read
}

#[test]
fn names_and_addresses_of_destinations() {
    let fine = (Verdict::Permitted, "");
    for destination in [
        "10.96.0.1:80",
        "shop/web:80",
        "web:80",
        "web.shop:80",
        "web.shop.svc.cluster.local:80",
    ] {
        let explanation = check(vec![], "shop/cart", destination, fine);
        assert_eq!(explanation.service, Some(name("shop/web")));
        let transports = explanation.servers.iter().map(|s| &*s.transport);
        let transports: Vec<&str> = transports.collect();
        assert_eq!(transports, ["same node", "mtls"]);
    }
    check(vec![], "10.0.0.9", "10.0.0.1:8080", fine);
    let mut exposed = service("shop/web", "10.96.0.1");
    exposed.balancer_ips = vec![ip("203.0.113.7")];
    let exposed = vec![Object::Service(exposed)];
    let explanation = check(exposed, "shop/cart", "203.0.113.7:80", fine);
    assert_eq!(explanation.service, Some(name("shop/web")));
    check(vec![], "shop/cart", "shop/web-1:8080", fine);
}

#[test]
fn questions_that_make_no_sense() {
    let ask = |source: &str, destination: &str| explain(vec![], source, destination).unwrap_err();
    let source = |text: &str| ExplainError::UnknownSource(text.to_owned());
    assert_eq!(ask("shop/none", "web:80"), source("shop/none"));
    assert_eq!(ask("10.9.9.9", "web:80"), source("10.9.9.9"));
    assert_eq!(
        ask("shop/cart", "web"),
        ExplainError::NoPort("web".to_owned())
    );
    assert_eq!(
        ask("shop/cart", "web:0"),
        ExplainError::NoPort("web:0".to_owned())
    );
    let unknown = ExplainError::UnknownDestination("no".to_owned());
    assert_eq!(ask("shop/cart", "no:80"), unknown);
}

#[test]
fn every_policy_and_rule_says_why() {
    let elsewhere = AuthorizationPolicy {
        scope: PolicyScope::Pods(Selector(labels(&[("app", "db")]))),
        ..policy("shop/db", Action::Deny, vec![Rule::default()])
    };
    let wrong = from(From {
        principals: exact("cluster.local/ns/shop/sa/admin"),
        ..From::default()
    });
    let rules = vec![wrong, ports(&[1])];
    let policies = vec![
        Object::AuthorizationPolicy(elsewhere),
        Object::AuthorizationPolicy(policy("shop/only-admin", Action::Allow, rules)),
        Object::MeshPolicy(mesh("shop/strict", Some(MtlsMode::Strict), &[])),
    ];
    let explanation = check(
        policies,
        "shop/cart",
        "web:80",
        (Verdict::Denied, "no_rule_allows"),
    );
    assert_eq!(
        explanation.outcome.policy.as_deref(),
        Some("shop/only-admin")
    );
    let server = &explanation.servers[0];
    assert_eq!(server.mtls.mode, MtlsMode::Strict);
    assert_eq!(server.mtls.policy.as_deref(), Some("shop/strict"));
    let [db, admin] = &server.policies[..] else {
        panic!("{:?}", server.policies);
    };
    assert!(!db.selects && db.rules.is_empty());
    assert_eq!(db.scope, "pods of namespace shop with app=db");
    assert!(admin.selects);
    assert_eq!(admin.rules[0].why, "from[0].principals does not list it");
    assert_eq!(admin.rules[1].why, "to[0].ports does not list it");
}

#[test]
fn plaintext_clients() {
    let strict = || {
        vec![Object::MeshPolicy(mesh(
            "shop/strict",
            Some(MtlsMode::Strict),
            &[],
        ))]
    };
    let explanation = check(
        strict(),
        "out/legacy",
        "shop/web:80",
        (Verdict::Denied, "mtls_required"),
    );
    assert_eq!(
        explanation.servers[0].plaintext_because.as_deref(),
        Some("the client is not enrolled")
    );
    check(
        vec![],
        "out/legacy",
        "shop/web:80",
        (Verdict::Permitted, ""),
    );
    let excluding = Pod {
        exclude_outbound_ports: Box::new([80]),
        ..pod("shop/cart", &["10.0.0.9"])
    };
    let mut objects = strict();
    objects.push(Object::Pod(excluding));
    check(
        objects,
        "shop/cart",
        "shop/web:80",
        (Verdict::Denied, "mtls_required"),
    );
}

#[test]
fn nothing_is_enforced_outside_the_mesh() {
    let explanation = check(
        vec![],
        "shop/cart",
        "10.0.1.1:80",
        (Verdict::Passthrough, ""),
    );
    let server = &explanation.servers[0];
    assert!(server.decision.is_none() && server.unenforced.contains("not enrolled"));
    check(
        vec![],
        "shop/cart",
        "1.1.1.1:443",
        (Verdict::Passthrough, ""),
    );
    let deny = policy("shop/p", Action::Deny, vec![Rule::default()]);
    let excluding = Pod {
        exclude_inbound_ports: Box::new([8080]),
        ..pod("shop/web-1", &["10.0.0.1"])
    };
    let objects = vec![Object::AuthorizationPolicy(deny), Object::Pod(excluding)];
    check(
        objects.clone(),
        "shop/cart",
        "10.0.0.1:8080",
        (Verdict::Passthrough, ""),
    );
    check(
        objects,
        "shop/cart",
        "web:80",
        (Verdict::Depends, "the back ends differ"),
    );
}

#[test]
fn a_pod_without_a_service_account_can_be_asked_about() {
    let mut mirror = pod("shop/mirror", &["10.0.0.7"]);
    mirror.identity.service_account = "".into();
    let asked = explain(vec![Object::Pod(mirror)], "shop/mirror", "10.96.0.1:80");
    assert_eq!(read_back(&asked.unwrap()).source.identity, None);
}

#[test]
fn what_leads_nowhere() {
    let unavailable = |reason| (Verdict::Unavailable, reason);
    check(vec![], "shop/cart", "web:81", unavailable("unknown_port"));
    let empty = service("shop/empty", "10.96.0.2");
    let empty = crate::state::Service {
        selector: labels(&[("app", "none")]),
        ..empty
    };
    check(
        vec![Object::Service(empty)],
        "shop/cart",
        "empty:80",
        unavailable("no_endpoints"),
    );
    let twin = Object::Pod(pod("evil/web", &["10.0.0.1"]));
    check(
        vec![twin],
        "shop/cart",
        "10.0.0.1:80",
        unavailable("address_contested"),
    );
    let unready = Pod {
        ready: false,
        ..pod("shop/web-1", &["10.0.0.1"])
    };
    let explanation = check(
        vec![Object::Pod(unready)],
        "shop/cart",
        "web:80",
        (Verdict::Permitted, ""),
    );
    let skipped: Vec<&str> = explanation.candidates.iter().map(|c| &*c.skipped).collect();
    assert_eq!(skipped, ["", "not ready"]);
}

#[test]
fn the_access_log_of_both_ends_is_told() {
    use crate::state::traffic::Share;
    use crate::state::{AccessLog, AccessLogMode};

    let says = |text, app: &str, mode, share| {
        let log = AccessLog {
            mode,
            share: Share(share),
        };
        Object::MeshPolicy(MeshPolicy {
            scope: PolicyScope::Pods(Selector(labels(&[("app", app)]))),
            access_log: Some(log),
            ..mesh(text, None, &[])
        })
    };
    let errors = AccessLogMode::Errors { min_status: 500 };
    let told = check(
        vec![
            says("shop/tenth", "cart", AccessLogMode::All, 100_000),
            says("shop/errors", "cart", errors, 1_000_000),
            says("shop/none", "web", AccessLogMode::None, 10_000),
        ],
        "shop/cart",
        "shop/web:80",
        (Verdict::Permitted, ""),
    );
    let words = |steps: &[crate::policy::AccessLogStep]| {
        let steps = steps.iter();
        let steps = steps.map(|it| format!("{}: {}", it.policy, it.writes));
        steps.collect::<Vec<_>>()
    };
    assert_eq!(
        words(&told.access_log),
        [
            "shop/errors: what fails, or is answered with 500 or more",
            "shop/tenth: 10 % of everything, drawn for each",
        ]
    );
    for server in &told.servers {
        assert_eq!(words(&server.access_log), ["shop/none: nothing"]);
    }
    let silent = check(vec![], "shop/cart", "shop/web:80", (Verdict::Permitted, ""));
    assert_eq!(silent.access_log, []);
}
