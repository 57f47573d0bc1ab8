//! Our own kinds: what is understood, and that the rest denies.

use super::*;
use crate::model::NamespacedName;
use crate::state::{
    Action, AuthorizationPolicy, MeshPolicy, MtlsMode, PolicyScope, Selector, StringMatch,
};

fn authorization_in(namespace: &str, spec: &str) -> (Arc<AuthorizationPolicy>, Vec<String>) {
    let text = format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, \
         namespace: {namespace}}}\nspec:\n{spec}\n"
    );
    let snapshot = World::of(&text);
    let policy = snapshot.authorization_policies.values().next().unwrap();
    (Arc::clone(policy), problems(&snapshot))
}

fn authorization(spec: &str) -> Arc<AuthorizationPolicy> {
    let (policy, problems) = authorization_in("shop", spec);
    assert_eq!((problems, &policy.invalid), (vec![], &None));
    policy
}

#[track_caller]
fn check_invalid(spec: &str, expected: &str) -> Arc<AuthorizationPolicy> {
    let (policy, problems) = authorization_in("shop", spec);
    let text = problems.join("\n");
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("; the policy denies what it selects"),
        "{text}"
    );
    assert!(policy.invalid.is_some());
    policy
}

fn mesh(spec: &str) -> (Arc<MeshPolicy>, Vec<String>) {
    let text = format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: p, namespace: \
         shop}}\nspec:\n{spec}\n"
    );
    let snapshot = World::of(&text);
    let policy = snapshot.mesh_policies.values().next().unwrap();
    (Arc::clone(policy), problems(&snapshot))
}

fn whole_namespace() -> PolicyScope {
    PolicyScope::Pods(Selector::default())
}

#[test]
fn a_full_policy() {
    let policy = authorization(
        "  selector: {matchLabels: {app: web}}
  action: DENY
  dryRun: true
  rules:
  - from:
    - source:
        principals: ['spiffe://cluster.local/ns/a/sa/b', 'cluster.local/ns/a/*', '*/sa/b', '*']
        notPrincipals: ['spiffe://x/*']
        namespaces: [a, 'b*']
        notNamespaces: [c]
        ipBlocks: [10.0.0.0/8, 10.1.2.3, '::ffff:10.0.0.0/104', 'fd00::/8', 10.9.9.9/8]
        notIpBlocks: [10.2.0.0/16]
    to:
    - operation: {ports: ['8080', 9090], notPorts: [1]}
  - {}",
    );
    assert_eq!((policy.action, policy.dry_run), (Action::Deny, true));
    let PolicyScope::Pods(selector) = &policy.scope else {
        panic!("{:?}", policy.scope);
    };
    assert_eq!(selector.0["app"], "web");
    assert_eq!(policy.rules.len(), 2);
    let from = &policy.rules[0].from[0];
    assert_eq!(
        from.principals,
        [
            StringMatch::Exact("cluster.local/ns/a/sa/b".to_owned()),
            StringMatch::Prefix("cluster.local/ns/a/".to_owned()),
            StringMatch::Suffix("/sa/b".to_owned()),
            StringMatch::Present,
        ]
    );
    let blocks: Vec<String> = from.ip_blocks.iter().map(ToString::to_string).collect();
    let expected = [
        "10.0.0.0/8",
        "10.1.2.3/32",
        "10.0.0.0/8",
        "fd00::/8",
        "10.0.0.0/8",
    ];
    assert_eq!(blocks, expected);
    assert_eq!(policy.rules[0].to[0].ports, [8080, 9090]);
    assert!(policy.rules[1].from.is_empty() && policy.rules[1].to.is_empty());
}

#[test]
fn defaults() {
    let policy = authorization("  {}");
    assert_eq!((policy.action, policy.dry_run), (Action::Allow, false));
    assert_eq!((&policy.scope, policy.rules.len()), (&whole_namespace(), 0));
    authorization("  rules: []");
    assert_eq!(authorization("  selector: {}").scope, whole_namespace());
    assert_eq!(
        authorization("  selector: {matchLabels: {}}").scope,
        whole_namespace()
    );
    let text =
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n";
    let snapshot = World::of(text);
    check_problems(&snapshot, &[]);
    assert_eq!(snapshot.authorization_policies.len(), 1);
}

#[test]
fn the_root_namespace_is_the_mesh() {
    let (policy, _) = authorization_in("fairlead-system", "  action: DENY");
    assert_eq!(policy.scope, PolicyScope::Mesh);
    let selector = "  selector: {matchLabels: {a: b}}";
    let (policy, _) = authorization_in("fairlead-system", selector);
    assert!(matches!(policy.scope, PolicyScope::Pods(_)));
}

#[test]
fn targets() {
    let target = "{group: '', kind: Service, name: web}";
    let (policy, problems) = authorization_in("shop", &format!("  targetRefs: [{target}]"));
    assert_eq!(policy.scope, PolicyScope::Services(vec!["web".into()]));
    assert_eq!(policy.invalid, None);
    assert_eq!(
        problems,
        [
            "a.yaml:1 AuthorizationPolicy shop/p spec.targetRefs[0].name: there is no Service \
          shop/web: nothing is selected by it"
        ]
    );
}

#[test]
fn what_it_selects_is_the_namespace_where_that_is_not_understood() {
    let cases = [
        (
            "  selector: {matchLabels: {app: 1}}",
            "spec.selector.matchLabels.app: must be a string",
        ),
        (
            "  selector: {matchExpressions: []}",
            "spec.selector.matchExpressions: is not known here",
        ),
        ("  selector: web", "spec.selector: must be a map"),
        ("  selector:", "spec.selector: must be a map"),
        (
            "  selector: {matchLabels: [a]}",
            "spec.selector.matchLabels: must be a map",
        ),
        ("  targetRefs: []", "spec.targetRefs: is empty"),
        ("  targetRefs:", "spec.targetRefs: is empty"),
        (
            "  targetRefs: [{kind: Gateway, name: x}]",
            "can't be a target: only Services can",
        ),
        (
            "  targetRefs: [{kind: Service}]",
            "spec.targetRefs[0].name: is missing",
        ),
        (
            "  targetRefs: [{name: web}]",
            "spec.targetRefs[0].kind: is missing",
        ),
        (
            "  targetRefs: [{group: apps, kind: Service, name: x}]",
            "spec.targetRefs[0].group",
        ),
        (
            "  targetRefs: [{kind: Service, name: x, namespace: y}]",
            "must be the policy's own, shop",
        ),
        (
            "  targetRefs: [{kind: Service, name: x, sectionName: y}]",
            "sectionName: is not known",
        ),
        (
            "  selector: {matchLabels: {a: b}}\n  targetRefs: [{kind: Service, name: x}]",
            "can't be given together with a selector",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(
            check_invalid(spec, expected).scope,
            whole_namespace(),
            "{spec}"
        );
    }
}

#[test]
fn fields_that_are_not_understood_deny() {
    let cases = [
        (
            "  action: allow",
            "spec.action: \"allow\" is not ALLOW, DENY, AUDIT or CUSTOM",
        ),
        ("  action:", "spec.action: null is not ALLOW"),
        (
            "  dryRun: 'true'",
            "spec.dryRun: \"true\" is neither true nor false",
        ),
        (
            "  dryrun: true",
            "spec.dryrun: is not known here; known are: selector, targetRefs",
        ),
        ("  provider: x", "spec.provider: must be a map"),
        ("  - a", "spec: must be a map"),
        ("", "spec: must be a map"),
    ];
    for (spec, expected) in cases {
        check_invalid(spec, expected);
    }
}

#[test]
fn rules_that_are_not_understood_deny() {
    let cases = [
        ("  rules:", "spec.rules: is empty"),
        ("  rules: {}", "spec.rules: must be a list"),
        (
            "  rules: [1]",
            "spec.rules[0]: must be a map of from, to, when",
        ),
        ("  rules: [{when: []}]", "spec.rules[0].when: is empty"),
        (
            "  rules: [{form: []}]",
            "spec.rules[0].form: is not known here",
        ),
        ("  rules: [{from: []}]", "spec.rules[0].from: is empty"),
        ("  rules: [{from: }]", "spec.rules[0].from: is empty"),
        (
            "  rules: [{from: [{}]}]",
            "spec.rules[0].from[0].source: is empty",
        ),
        (
            "  rules: [{from: [{source: {}}]}]",
            "spec.rules[0].from[0].source: is empty",
        ),
        (
            "  rules: [{from: [{source: }]}]",
            "spec.rules[0].from[0].source: must be a map",
        ),
        (
            "  rules: [{from: [{principals: [x]}]}]",
            "from[0].principals: is not known here",
        ),
        (
            "  rules: [{to: [{operation: {methods: ['G T']}}]}]",
            "\"G T\" can never match: it is no method",
        ),
        (
            "  rules: [{to: [{operation: {paths: [admin]}}]}]",
            "can never match: the path does not begin with a slash",
        ),
        (
            "  rules: [{to: [{operation: {ports: []}}]}]",
            "operation.ports: is empty",
        ),
        (
            "  rules: [{to: [{operation: {ports: }}]}]",
            "operation.ports: is empty",
        ),
        (
            "  rules: [{to: [{operation: {ports: 80}}]}]",
            "operation.ports: must be a list",
        ),
        (
            "  rules: [{to: [{operation: {ports: [0]}}]}]",
            "ports[0]: 0 is not a port",
        ),
        (
            "  rules: [{to: [{operation: {ports: [70000]}}]}]",
            "70000 is not a port",
        ),
        (
            "  rules: [{to: [{operation: {ports: ['80-90']}}]}]",
            "\"80-90\" is not a port",
        ),
        (
            "  rules: [{to: [{operation: {notPorts: [x]}}]}]",
            "\"x\" is not a port",
        ),
    ];
    for (spec, expected) in cases {
        check_invalid(spec, expected);
    }
}

#[test]
fn values_of_sources_that_are_not_understood_deny() {
    let cases = [
        (
            "principals: ['']",
            "principals[0]: must be a string that is not empty",
        ),
        (
            "principals: ['spiffe://']",
            "principals[0]: must be a string that is not empty",
        ),
        ("principals: [1]", "principals[0]: must be a string"),
        (
            "principals: [a*b]",
            "a '*' is understood only as the first or the last character",
        ),
        (
            "principals: ['*a*']",
            "a '*' is understood only as the first or the last",
        ),
        ("principals: [shop/web]", "principals[0]: can never match"),
        (
            "notPrincipals: [cluster.local/ns/a]",
            "notPrincipals[0]: can never match",
        ),
        ("namespaces: []", "namespaces: is empty"),
        (
            "namespaces: [null]",
            "namespaces[0]: must be a string that is not empty",
        ),
        ("notNamespaces: ['**']", "a '*' is understood only"),
        (
            "ipBlocks: [10.0.0.0/33]",
            "is neither an IP address nor a CIDR block",
        ),
        (
            "ipBlocks: [web]",
            "ipBlocks[0]: \"web\" is neither an IP address nor a CIDR block",
        ),
        ("notIpBlocks: [1]", "notIpBlocks[0]: 1 is neither"),
        ("requestPrincipals: ['a*b']", "a '*' is understood only"),
        ("serviceAccounts: ['a*']", "is no service account"),
        ("serviceAccounts: [a/b/c]", "is no service account"),
        ("notServiceAccounts: ['']", "is no service account"),
        (
            "remoteIpBlocks: [10.0.0.0/8]",
            "remoteIpBlocks: is not supported: X-Forwarded-For says what a client wants",
        ),
    ];
    for (source, expected) in cases {
        check_invalid(
            &format!("  rules: [{{from: [{{source: {{{source}}}}}]}}]"),
            expected,
        );
    }
}

#[test]
fn every_problem_of_a_policy_is_reported_with_its_line() {
    let (_, problems) = authorization_in(
        "shop",
        "  action: MAYBE
  rules:
  - to:
    - operation:
        ports:
        - 80
        - eighty
        methods: ['G T']",
    );
    let lines: Vec<&str> = problems
        .iter()
        .map(|p| p.split_once(' ').unwrap().0)
        .collect();
    assert_eq!(lines, ["a.yaml:5", "a.yaml:11", "a.yaml:12"]);
}

#[test]
fn a_field_in_the_wrong_place_denies() {
    let snapshot = World::of(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
         action: DENY\nrules: [{}]\n",
    );
    assert_eq!(snapshot.problems.len(), 2);
    let policy = snapshot.authorization_policies.values().next().unwrap();
    assert!(policy.invalid.is_some());
}

#[test]
fn policies_without_a_proper_name_deny_their_namespace() {
    let text = "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                shop, name: A_B}\nspec: {selector: {matchLabels: {app: web}}}\n";
    let snapshot = World::of(text);
    assert!(problems(&snapshot)[0].contains("metadata.name: must be"));
    let policy = snapshot.authorization_policies.values().next().unwrap();
    assert_eq!(&*policy.name.namespace, "shop");
    assert!(policy.invalid.is_some());
    assert_eq!(policy.scope, whole_namespace());
}

#[track_caller]
fn check_alien(version: &str, kind: &str, is_mesh: bool) {
    let text = format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: \
         {{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: STRICT}}}}\n"
    );
    let snapshot = World::of(&text);
    assert_eq!(snapshot.problems.len(), 1, "{:?}", problems(&snapshot));
    let (scope, invalid) = if is_mesh {
        let policy = snapshot.mesh_policies.values().next().unwrap();
        (policy.scope.clone(), policy.invalid.clone())
    } else {
        let policy = snapshot.authorization_policies.values().next().unwrap();
        (policy.scope.clone(), policy.invalid.clone())
    };
    assert!(invalid.is_some());
    assert!(matches!(scope, PolicyScope::Pods(selector) if selector.0["app"] == "web"));
}

#[test]
fn kinds_that_protect_something_and_are_not_known_deny() {
    check_alien("fairlead.dev/v1", "AuthorizationPolicy", false);
    check_alien("fairlead.dev/v1", "MeshPolicy", true);
    check_alien("fairlead.dev/v1alpha1", "AuthorisationPolicy", false);
    check_alien("security.istio.io/v1", "AuthorizationPolicy", false);
    check_alien("security.istio.io/v1", "PeerAuthentication", true);
    check_alien("fairlead.io/v1alpha1", "AuthorizationPolicy", false);
}

#[test]
fn an_alien_does_not_take_the_place_of_a_proper_policy() {
    let mut world = World::new();
    let proper =
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n";
    world.put("a.yaml", proper);
    let snapshot = world.put(
        "b.yaml",
        &proper.replace("fairlead.dev/v1alpha1", "x.io/v1"),
    );
    assert_eq!(snapshot.authorization_policies.len(), 2);
}

#[test]
fn mesh_policies() {
    let (policy, problems) = mesh(
        "  selector: {matchLabels: {app: web}}\n  mtls: {mode: STRICT, ports: {8080: {mode: \
         PERMISSIVE}, '9090': {mode: STRICT}}}",
    );
    assert_eq!((problems, &policy.invalid), (vec![], &None));
    assert_eq!(policy.mtls, Some(MtlsMode::Strict));
    assert_eq!(policy.port_mtls[&8080], MtlsMode::Permissive);
    assert_eq!(policy.port_mtls[&9090], MtlsMode::Strict);
    let (policy, problems) = mesh("  {}");
    assert_eq!((problems, policy.mtls), (vec![], None));
}

#[test]
fn mesh_policies_that_are_not_understood_are_strict() {
    let cases = [
        (
            "  mtls: {mode: DISABLE}",
            "spec.mtls.mode: \"DISABLE\" is neither STRICT nor PERMISSIVE",
        ),
        ("  mtls: STRICT", "spec.mtls: must be a map"),
        ("  mtls:", "spec.mtls: must be a map"),
        (
            "  mtls: {ports: [8080]}",
            "spec.mtls.ports: must be a map of ports",
        ),
        (
            "  mtls: {ports: {http: {mode: STRICT}}}",
            "spec.mtls.ports.http: \"http\" is not a port",
        ),
        (
            "  mtls: {ports: {80: STRICT}}",
            "spec.mtls.ports.80: must be a map",
        ),
        (
            "  mtls: {ports: {80: {}}}",
            "spec.mtls.ports.80.mode: is empty",
        ),
        ("  mtls: {mod: STRICT}", "spec.mtls.mod: is not known here"),
        (
            "  accessLog: {modes: ALL}",
            "spec.accessLog.modes: is not known here",
        ),
        (
            "  jwt: {providers: [{issuer: a, jwksUri: 'http://a'}]}\n  targetRefs: []",
            "spec.targetRefs: is empty",
        ),
    ];
    for (spec, expected) in cases {
        let (policy, problems) = mesh(spec);
        let text = problems.join("\n");
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("; the policy is STRICT for what it selects"),
            "{text}"
        );
        assert!(policy.invalid.is_some() && !policy.jwt_invalid);
    }
}

#[test]
fn mesh_policies_whose_tokens_may_be_lost_deny() {
    for (spec, expected) in [
        ("  jwts: {}", "spec.jwts: is not known here"),
        (
            "  mtls: {mode: STRICT}\n  JWT: {providers: []}",
            "spec.JWT: is not known here",
        ),
        ("  - jwt", "spec: must be a map"),
    ] {
        let (policy, problems) = mesh(spec);
        let text = problems.join("\n");
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("; the policy denies what it selects"),
            "{text}"
        );
        assert!(policy.jwt_invalid && policy.invalid.is_some());
    }
    for (version, kind, denies) in [
        ("fairlead.dev/v1", "MeshPolicy", true),
        ("security.istio.io/v1", "PeerAuthentication", false),
    ] {
        let text =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p}}\nspec: {{}}\n");
        let snapshot = World::of(&text);
        let policy = snapshot.mesh_policies.values().next().unwrap();
        assert_eq!(policy.jwt_invalid, denies);
        assert!(policy.invalid.is_some());
    }
}

/// More conditions than the schema lets an API server take.
fn unbounded(namespace: &str) -> String {
    let condition = "\n    - {key: source.namespace, values: [bank]}";
    format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: many, namespace: {namespace}}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  rules:\n  - when:{}\n",
        condition.repeat(65)
    )
}

#[test]
fn what_is_beyond_a_bound_of_the_schema_denies() {
    let mut world = World::new();
    let good = "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                metadata: {name: good, namespace: shop}\n";
    world.put("good.yaml", good);
    let snapshot = world.put("many.yaml", &unbounded("shop"));
    check_problems(
        &snapshot,
        &[
            "many.yaml:7 AuthorizationPolicy shop/many spec.rules[0].when: has 65 items, more than \
           64; the policy denies what it selects",
        ],
    );
    let of = |name: &str| &snapshot.authorization_policies[&NamespacedName::new("shop", name)];
    assert!(of("many").invalid.is_some());
    assert!(matches!(&of("many").scope, PolicyScope::Pods(selector) if !selector.0.is_empty()));
    assert_eq!(of("good").invalid, None);
    let mended =
        unbounded("shop").replacen("\n    - {key: source.namespace, values: [bank]}", "", 1);
    check_problems(&world.put("many.yaml", &mended), &[]);
}
