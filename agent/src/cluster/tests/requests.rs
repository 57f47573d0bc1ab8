//! What policies say of requests, as it is understood.

use super::*;
use crate::state::{
    Action, AuthorizationPolicy, JwtKeys, MeshPolicy, PathPart, PathPattern, PathTemplate,
    StringMatch, Test,
};

fn authorization(spec: &str) -> (Arc<AuthorizationPolicy>, Vec<String>) {
    let text = format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, \
         namespace: shop}}\nspec: {spec}\n"
    );
    let snapshot = World::of(&text);
    let policy = snapshot.authorization_policies.values().next().unwrap();
    (Arc::clone(policy), problems(&snapshot))
}

fn understood(spec: &str) -> Arc<AuthorizationPolicy> {
    let (policy, problems) = authorization(spec);
    assert_eq!((problems, &policy.invalid), (vec![], &None));
    policy
}

fn mesh(jwt: &str) -> (Arc<MeshPolicy>, Vec<String>) {
    let text = format!(
        "apiVersion: fairlead.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: p, namespace: \
         shop}}\nspec: {{jwt: {jwt}}}\n"
    );
    let snapshot = World::of(&text);
    let policy = snapshot.mesh_policies.values().next().unwrap();
    (Arc::clone(policy), problems(&snapshot))
}

#[track_caller]
fn check_denies(spec: &str, expected: &str) {
    let (policy, problems) = authorization(spec);
    let text = problems.join("\n");
    assert!(text.contains(expected), "{text}");
    assert!(policy.invalid.is_some());
}

#[test]
fn a_rule_about_requests() {
    let policy = understood(
        "{rules: [{from: [{source: {requestPrincipals: ['https://a/*']}}], to: [{operation: \
         {methods: [GET], notHosts: ['*.evil'], paths: ['/a', '/b*', '/u/{*}/o/{**}']}}], when: \
         [{key: 'request.headers[X-Role]', values: [admin], notValues: [x]}, {key: \
         'request.auth.claims[realm][roles]', values: ['*']}, {key: request.auth.audiences, \
         values: [web]}, {key: source.ip, notValues: [10.0.0.1]}]}]}",
    );
    let rule = &policy.rules[0];
    let prefix = |text: &str| StringMatch::Prefix(text.to_owned());
    let exact = |text: &str| StringMatch::Exact(text.to_owned());
    let literal = |text: &str| PathPart::Literal(text.to_owned());
    assert_eq!(rule.from[0].request_principals, [prefix("https://a/")]);
    let to = &rule.to[0];
    assert_eq!(to.methods, [exact("GET")]);
    assert_eq!(to.not_hosts, [StringMatch::Suffix(".evil".to_owned())]);
    let template = [
        literal("/u/"),
        PathPart::Segment,
        literal("/o/"),
        PathPart::Rest,
    ];
    assert_eq!(
        to.paths,
        [
            PathPattern::Text(exact("/a")),
            PathPattern::Text(prefix("/b")),
            PathPattern::Template(PathTemplate(template.to_vec())),
        ]
    );
    let keys: Vec<&str> = rule.when.iter().map(|condition| &*condition.key).collect();
    assert_eq!(keys[1], "request.auth.claims[realm][roles]");
    let Test::Header { name, values } = &rule.when[0].test else {
        panic!("{:?}", rule.when[0]);
    };
    assert_eq!(
        (&**name, &values.values[..]),
        ("x-role", &[exact("admin")][..])
    );
    let claim = |index: usize| match &rule.when[index].test {
        Test::Claim { path, .. } => path.join("."),
        other => panic!("{other:?}"),
    };
    assert_eq!([claim(1), claim(2)], ["realm.roles", "aud"]);
    let Test::Source(from) = &rule.when[3].test else {
        panic!("{:?}", rule.when[3]);
    };
    assert_eq!(from.not_ip_blocks.len(), 1);
}

#[test]
fn service_accounts_are_those_of_the_policy_s_namespace_unless_said() {
    let policy = understood(
        "{rules: [{from: [{source: {serviceAccounts: [web, bank/web], notServiceAccounts: [x.y]}}], \
         when: [{key: source.serviceAccount, values: [api], notValues: [bank/api]}]}]}",
    );
    let end = |text: &str| StringMatch::Suffix(text.to_owned());
    let rule = &policy.rules[0];
    let of = &rule.from[0];
    assert_eq!(
        of.service_accounts,
        [end("/ns/shop/sa/web"), end("/ns/bank/sa/web")]
    );
    assert_eq!(of.not_service_accounts, [end("/ns/shop/sa/x.y")]);
    let Test::Source(when) = &rule.when[0].test else {
        panic!("{:?}", rule.when[0]);
    };
    assert_eq!(when.service_accounts, [end("/ns/shop/sa/api")]);
    assert_eq!(when.not_service_accounts, [end("/ns/bank/sa/api")]);
}

#[test]
fn conditions_that_can_not_be_held_deny() {
    for (key, expected) in [
        ("remote.ip", "is not supported: X-Forwarded-For"),
        ("connection.sni", "is not known; known are"),
        ("request.query[a]", "is not known; known are"),
        ("destination.ip", "is not known; known are"),
    ] {
        let spec = format!("{{rules: [{{when: [{{key: '{key}', values: ['1']}}]}}]}}");
        check_denies(&spec, expected);
    }
}

#[test]
fn paths_that_can_never_match_deny() {
    for (path, expected) in [
        (
            "/a//b",
            "paths are compared in their normal form, such as /a/b",
        ),
        ("/a/../b", "such as /b"),
        ("/%61", "such as /a"),
        ("/%c3%a9", "such as /%C3%A9"),
        ("/a%2fb", "the path has an encoded slash"),
        ("/a/./*", "such as /a/x"),
        ("*//x", "such as /x/x"),
        ("/a%2*", "the path has a % without two hexadecimal digits"),
        ("a*", "the path does not begin with a slash"),
        ("/a/{*}b", "stand for whole segments"),
        ("/a{*}", "stand for whole segments"),
        ("/{**}/{*}", "{**} must be the last operator"),
        ("/{name}", "no operators but {*} and {**}"),
        ("/*/{*}", "no operators but {*} and {**}"),
        ("/a//{*}", "such as /a/x"),
    ] {
        check_denies(
            &format!("{{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}"),
            expected,
        );
    }
    for path in ["/.*", "*.php", "*/admin", "/a/{**}/b", "/a%20b*"] {
        understood(&format!(
            "{{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}"
        ));
    }
}

#[test]
fn a_custom_names_whom_it_asks() {
    let (policy, problems) =
        authorization("{action: CUSTOM, rules: [{}], provider: {service: authz, port: 9000}}");
    let missing = "a.yaml:1 AuthorizationPolicy shop/p spec.provider.service: there is no Service \
                   shop/authz: what it would be asked about is refused";
    assert_eq!(
        (problems, &policy.invalid),
        (vec![missing.to_owned()], &None)
    );
    assert_eq!(policy.action, Action::Custom);
    let provider = policy.provider.as_ref().unwrap();
    assert_eq!(provider.service.to_string(), "shop/authz");
    assert_eq!(provider.timeout.as_millis(), 1000);
    assert!(!provider.fail_open);
    check_denies("{action: CUSTOM}", "spec.provider: is missing");
    check_denies(
        "{action: DENY, provider: {service: a, port: 1}}",
        "spec.provider: has a meaning with CUSTOM only",
    );
    check_denies(
        "{action: CUSTOM, dryRun: true, provider: {service: a, port: 1}}",
        "spec.dryRun: has no meaning with CUSTOM",
    );
}

#[test]
fn issuers_of_tokens() {
    let (policy, problems) = mesh(
        "{providers: [{issuer: 'https://a', jwksUri: 'http://keys.auth/k'}, {issuer: b, jwks: \
         '{\"keys\": [{\"kty\": \"RSA\"}]}', fromCookies: [session], outputClaimToHeaders: \
         [{header: X-User, claim: user.name}]}]}",
    );
    assert_eq!((problems, policy.jwt_invalid), (vec![], false));
    let [first, second] = &policy.jwt[..] else {
        panic!("{:?}", policy.jwt);
    };
    assert_eq!(first.keys, JwtKeys::Uri("http://keys.auth/k".into()));
    assert_eq!(&*first.from_headers[0].prefix, "Bearer ");
    assert_eq!(&*first.from_params[0], "access_token");
    assert_eq!(first.clock_skew.as_secs(), 60);
    assert!(second.from_headers.is_empty() && second.from_params.is_empty());
    assert_eq!(&*second.output_claims[0].header, "x-user");
    assert_eq!(second.output_claims[0].claim.join("/"), "user/name");
}

#[test]
fn keys_are_not_fetched_from_the_machine_itself() {
    for host in [
        "127.0.0.1:8080",
        "[::1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "[::ffff:7f00:1]:80",
    ] {
        let uri = format!("http://{host}/keys");
        let (policy, problems) = mesh(&format!("{{providers: [{{issuer: a, jwksUri: '{uri}'}}]}}"));
        assert!(policy.jwt_invalid, "{host}");
        let expected = " is the machine's, the link's or the cloud's own";
        assert!(problems[0].contains(expected), "{problems:?}");
        assert!(
            problems[0].contains("providers[0].jwksUri: "),
            "{problems:?}"
        );
    }
    let (_, problems) = mesh("{providers: [{issuer: a, jwksUri: 'http://192.0.2.1/keys'}]}");
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn key_sets_have_a_size() {
    let with = |keys: &str| {
        let set = format!(r#"{{"keys": [{keys}]}}"#);
        mesh(&format!("{{providers: [{{issuer: a, jwks: '{set}'}}]}}"))
    };
    let many = |count| vec![r#"{"kty": "RSA"}"#; count].join(",");
    assert_eq!(with(&many(256)).1, Vec::<String>::new());
    let long = format!(r#"{{"kty": "RSA", "n": "{}"}}"#, "A".repeat(64 << 10));
    for (keys, expected) in [
        (many(257), "jwks: has more than 256 keys"),
        (long, "jwks: is more than 64 KiB"),
    ] {
        let (policy, problems) = with(&keys);
        assert!(policy.jwt_invalid);
        assert!(problems[0].contains(expected), "{problems:?}");
    }
}

#[test]
fn issuers_that_are_not_understood_deny() {
    let (policy, problems) = mesh("{providers: [{issuer: a, jwksURI: 'http://a'}]}");
    assert!(policy.jwt_invalid && policy.invalid.is_some());
    assert!(problems[0].contains("providers[0].jwksURI: is not known here"));
    assert!(mesh("{}").0.jwt_invalid);
    let (policy, _) = mesh("{providers: []}, mtls: {mode: what}");
    assert!(policy.jwt_invalid);
}
