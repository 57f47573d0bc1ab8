//! Policies on requests, on both nodes and on connections that are open already.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Heard, ask, everywhere, request_flow};
use crate::flow::Verdict;
use crate::model::NamespacedName;
use crate::policy::jwt_fixtures::{ec_key, rsa_key, set, sign};
use crate::proxy::caller::Caller;
use crate::proxy::tests::world::{World, app, fresh_ip};
use crate::state::{
    Action, AuthorizationPolicy, ClaimHeader, Condition, From, JwtKeys, JwtProvider, MeshPolicy,
    Object, PathPattern, Pod, PolicyScope, Rule, Selector, StringMatch, Test, To, TokenHeader,
    Values,
};

pub(super) fn policy(name: &str, action: Action, rule: Rule) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: NamespacedName::new("shop", name),
        scope: PolicyScope::Pods(Selector::default()),
        action,
        dry_run: false,
        rules: vec![rule],
        provider: None,
        generation: 0,
        invalid: None,
    }
}

fn to(operation: To) -> Rule {
    Rule {
        to: vec![operation],
        ..Rule::default()
    }
}

fn paths(pattern: StringMatch) -> Rule {
    to(To {
        paths: vec![PathPattern::Text(pattern)],
        ..To::default()
    })
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.to_owned())
}

pub(super) fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

pub(super) fn apply(world: &mut World, policy: AuthorizationPolicy) {
    world.apply(Object::AuthorizationPolicy(policy));
    world.publish();
}

async fn get(stream: &mut TcpStream, path: &str, headers: &str) -> Heard {
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.shop\r\n{headers}\r\n");
    ask(stream, &request).await
}

/// The request line that the application got.
fn line(heard: &Heard) -> &str {
    heard.text().lines().next().unwrap()
}

#[tokio::test]
async fn rules_hold_for_each_request_and_change_under_open_connections() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (_, address) in &servers {
        apply(
            &mut world,
            policy("p", Action::Allow, paths(prefix("/public/"))),
        );
        let mut stream = client.dial(*address).await;
        let fine = get(&mut stream, "/public/x?y=1", "").await;
        assert_eq!(
            (fine.status(), line(&fine)),
            (200, "GET /public/x?y=1 HTTP/1.1")
        );
        let denied = get(&mut stream, "/admin", "").await;
        assert_eq!(denied.status(), 403);
        assert_eq!(
            denied.header("fairlead-reason"),
            Some("policy_denied; by shop/p")
        );
        apply(
            &mut world,
            policy("p", Action::Allow, paths(prefix("/admin"))),
        );
        loop {
            // The change is published by a task of its own.
            let now = get(&mut stream, "/admin", "").await;
            if now.status() == 200 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(get(&mut stream, "/public/x", "").await.status(), 403);
        drop(stream);
    }
    let flow = request_flow(&mut world, 0).await;
    assert_eq!(flow.verdict, Verdict::Forwarded);
    assert_eq!(flow.policy.as_deref(), Some("shop/p#0"));
    let flow = request_flow(&mut world, 0).await;
    assert_eq!(
        (flow.verdict, flow.http.unwrap().status),
        (Verdict::Denied, 403)
    );
    assert_eq!(flow.policy.as_deref(), Some("shop/p"));
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_a_rule() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    apply(
        &mut world,
        policy("a", Action::Deny, paths(prefix("/admin"))),
    );
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        for path in [
            "/admin",
            "/%61dmin",
            "/%61%64%6D%69%6E/x",
            "//admin",
            "/./admin",
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/public/.%2E//./admin",
            "/admin;x=1",
            "/;a/admin",
            "http://web.shop/admin",
            "http://web.shop/x/../admin",
        ] {
            assert_eq!(get(&mut stream, path, "").await.status(), 403, "{path}");
        }
        for path in [
            "/public%2f..%2fadmin",
            "/public/..;/admin",
            "/public/..%3b/admin",
            "/public\\..\\admin",
            "/public/%5c../admin",
            "/../admin",
            "/%c0%af/admin",
            "/%c0%ae%c0%ae/admin",
            "/admi%",
            "/admin%00",
            "/x%0d%0aadmin",
        ] {
            assert_eq!(get(&mut stream, path, "").await.status(), 400, "{path}");
        }
        for (path, forwarded) in [
            ("/x//y/../z?q=//..", "/x/z?q=//.."),
            ("/%7euser/%c3%a9", "/~user/%C3%A9"),
            ("/%2561dmin", "/%2561dmin"),
        ] {
            let heard = get(&mut stream, path, "").await;
            assert_eq!(line(&heard), format!("GET {forwarded} HTTP/1.1"), "{path}");
        }
    }
}

#[tokio::test]
async fn paths_that_no_rule_looks_at_are_left_alone() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let methods = to(To {
        methods: vec![exact("GET")],
        ..To::default()
    });
    apply(&mut world, policy("a", Action::Allow, methods));
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        for path in ["/a//b%2Fc", "/%e9", "/x/../y", "/a%00"] {
            let heard = get(&mut stream, path, "").await;
            assert_eq!(line(&heard), format!("GET {path} HTTP/1.1"));
        }
    }
}

fn provider(keys: JwtKeys) -> Arc<JwtProvider> {
    Arc::new(JwtProvider {
        from_headers: vec![TokenHeader {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        }],
        from_params: vec!["token".into()],
        from_cookies: vec!["session".into()],
        output_claims: vec![ClaimHeader {
            header: "x-user".into(),
            claim: vec!["sub".into()],
        }],
        clock_skew: Duration::from_mins(1),
        ..JwtProvider::new("https://issuer", keys)
    })
}

fn with_jwt(world: &mut World, provider: Arc<JwtProvider>) {
    world.apply(Object::MeshPolicy(MeshPolicy {
        name: NamespacedName::new("shop", "jwt"),
        scope: PolicyScope::Pods(Selector::default()),
        mtls: None,
        port_mtls: std::collections::BTreeMap::new(),
        jwt: vec![provider],
        jwt_invalid: false,
        access_log: None,
        generation: 0,
        invalid: None,
    }));
    world.publish();
}

fn token(id: &str, claims: &Value) -> String {
    let mut all = json!({"iss": "https://issuer", "sub": "joe"});
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    let algorithm = if id == "e" {
        Algorithm::ES256
    } else {
        Algorithm::RS256
    };
    sign(algorithm, Some(id), &all)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn a_bad_token_is_refused_and_none_goes_on() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let keys = JwtKeys::Inline(set(&[ec_key("e")]).into());
    with_jwt(&mut world, provider(keys));
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        let spoofed = "X-User: root\r\nX_User: root\r\nx_uSER: root\r\n";
        let anonymous = get(&mut stream, "/a", spoofed).await;
        assert_eq!(anonymous.status(), 200);
        assert!(!anonymous.text().contains("root"), "{anonymous:?}");
        let good = token("e", &json!({}));
        let headers = format!("{spoofed}{}", bearer(&good));
        let known = get(&mut stream, "/a", &headers).await;
        assert_eq!(known.status(), 200);
        assert!(known.text().contains("\nx-user: joe\n"), "{known:?}");
        assert!(!known.text().contains("root") && !known.text().contains(&good));
        let cookie = format!("Cookie: a=b; session={good}; c=d\r\n");
        let by_cookie = get(&mut stream, "/a", &cookie).await;
        assert!(by_cookie.text().contains("\nx-user: joe\n"));
        assert!(
            by_cookie.text().contains("\ncookie: a=b; c=d\n"),
            "{by_cookie:?}"
        );
        let by_param = get(&mut stream, &format!("/a?x=1&token={good}&y=2"), "").await;
        assert!(by_param.text().contains("\nx-user: joe\n"));
        assert_eq!(line(&by_param), "GET /a?x=1&y=2 HTTP/1.1");
        let expired = token("e", &json!({"exp": 1}));
        let stolen = format!("{}{}", bearer(&good), bearer("a.b.c"));
        for (headers, why) in [
            (bearer(&expired), "expired"),
            (bearer(&token("r", &json!({}))), "key unknown"),
            (bearer(&token("e", &json!({"iss": "me"}))), "issuer unknown"),
            ("authorization: bearer x\r\n".to_owned(), "malformed"),
            (stolen, "malformed"),
            (format!("Cookie: session={expired}\r\n"), "expired"),
        ] {
            let refused = get(&mut stream, "/a", &headers).await;
            assert_eq!(refused.status(), 401, "{headers}");
            let reason = format!("jwt_invalid; {why}");
            assert_eq!(refused.header("fairlead-reason"), Some(&*reason));
            let challenge = format!(r#"Bearer error="invalid_token", error_description="{why}""#);
            assert_eq!(refused.header("www-authenticate"), Some(&*challenge));
        }
        let basic = get(&mut stream, "/a", "Authorization: Basic eA==\r\n").await;
        assert!(
            basic.text().contains("\nauthorization: Basic eA==\n"),
            "{basic:?}"
        );
    }
}

#[tokio::test]
async fn who_lacks_a_token_is_asked_for_one() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let keys = JwtKeys::Inline(set(&[ec_key("e")]).into());
    with_jwt(&mut world, provider(keys));
    let mut rule = paths(prefix("/users/"));
    rule.from = vec![From {
        request_principals: vec![exact("https://issuer/joe")],
        ..From::default()
    }];
    apply(&mut world, policy("users", Action::Allow, rule));
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        let ask = async |stream: &mut TcpStream, path: &str, headers: &str| {
            let heard = get(stream, path, headers).await;
            (
                heard.status(),
                heard.header("www-authenticate").map(str::to_owned),
            )
        };
        let asked = Some("Bearer".to_owned());
        assert_eq!(ask(&mut stream, "/users/", "").await, (401, asked));
        assert_eq!(ask(&mut stream, "/", "").await, (403, None));
        let joe = bearer(&token("e", &json!({})));
        assert_eq!(ask(&mut stream, "/users/", &joe).await, (200, None));
        let ann = bearer(&token("e", &json!({"sub": "ann"})));
        assert_eq!(ask(&mut stream, "/users/", &ann).await, (403, None));
    }
}

#[tokio::test]
async fn rules_see_what_claims_say_and_not_what_clients_do() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let keys = JwtKeys::Inline(set(&[ec_key("e")]).into());
    with_jwt(&mut world, provider(keys));
    let joe = Rule {
        when: vec![Condition {
            key: "request.headers[x-user]".into(),
            test: Test::Header {
                name: "x-user".into(),
                values: Values {
                    values: vec![exact("joe")],
                    not_values: Vec::new(),
                },
            },
        }],
        ..Rule::default()
    };
    apply(&mut world, policy("joe", Action::Allow, joe));
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        let spoofed = get(&mut stream, "/", "X-User: joe\r\n").await;
        assert_eq!(spoofed.status(), 403);
        let ann = bearer(&token("e", &json!({"sub": "ann"})));
        let spoofed = get(&mut stream, "/", &format!("X-User: joe\r\n{ann}")).await;
        assert_eq!(spoofed.status(), 403);
        let joe = bearer(&token("e", &json!({})));
        assert_eq!(get(&mut stream, "/", &joe).await.status(), 200);
    }
}

/// A server of keys, which counts how often it is asked.
struct Issuer {
    keys: Arc<std::sync::Mutex<String>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    /// In a pod outside the mesh.
    fn start(world: &mut World, keys: &[Value]) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let pod = world.declare("keys", 1, false);
        let (listener, address) = app(SocketAddr::new(pod.ips[0], 0));
        let keys = Arc::new(std::sync::Mutex::new(set(keys)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (Arc::clone(&keys), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _count = stream.read(&mut request).await;
                count.fetch_add(1, Ordering::Relaxed);
                let body = shared.lock().unwrap().clone();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _sent = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Self {
            keys,
            asked,
            address,
            serving,
        }
    }

    /// By the name of a Service.
    fn provider(&self, world: &mut World) -> Arc<JwtProvider> {
        let _service = world.service("keys", &[self.address]);
        provider(JwtKeys::Uri("http://keys.shop/keys".into()))
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_kept_while_their_server_is_away() {
    let mut world = World::new();
    let (client, [(_, address), _]) = everywhere(&mut world);
    let issuer = Issuer::start(&mut world, &[ec_key("e")]);
    let provider = issuer.provider(&mut world);
    with_jwt(&mut world, provider);
    let mut stream = client.dial(address).await;
    let good = bearer(&token("e", &json!({})));
    for _ in 0..3 {
        assert_eq!(get(&mut stream, "/a", &good).await.status(), 200);
    }
    assert_eq!(issuer.asked(), 1);
    // A key that is not known makes nobody ask at once after the last time.
    *issuer.keys.lock().unwrap() = set(&[ec_key("e"), rsa_key("r")]);
    let newer = bearer(&token("r", &json!({})));
    for _ in 0..3 {
        assert_eq!(get(&mut stream, "/a", &newer).await.status(), 401);
    }
    assert_eq!(issuer.asked(), 1);
    // Later it is, once, and the key is there.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    assert_eq!(get(&mut stream, "/a", &newer).await.status(), 200);
    assert_eq!(issuer.asked(), 2);
    issuer.serving.abort();
    assert_eq!(get(&mut stream, "/a", &good).await.status(), 200);
}

#[tokio::test]
async fn nobody_sends_the_agent_to_the_addresses_of_its_node() {
    let mut world = World::with(|config| {
        config.jwks_networks = vec!["192.0.2.128/25".parse().unwrap()];
    });
    let (client, [(_, address), _]) = everywhere(&mut world);
    let issuer = Issuer::start(&mut world, &[ec_key("e")]);
    let uri = format!("http://{}/keys", issuer.address);
    with_jwt(&mut world, provider(JwtKeys::Uri(uri.into())));
    let mut stream = client.dial(address).await;
    let good = bearer(&token("e", &json!({})));
    assert_eq!(get(&mut stream, "/a", &good).await.status(), 401);
    assert_eq!(issuer.asked(), 0);
    let agent = world.declare("agent", 0, false);
    world.apply(Object::Pod(Pod {
        host_network: true,
        ips: vec!["192.0.2.1".parse().unwrap()],
        ..Pod::clone(&agent)
    }));
    for (name, ip) in [("asked", "192.0.2.3"), ("let", "192.0.2.129")] {
        let pod = world.declare(name, 1, false);
        world.apply(Object::Pod(Pod {
            ips: vec![ip.parse().unwrap()],
            ..Pod::clone(&pod)
        }));
    }
    world.service_at("asked", "192.0.2.4".parse().unwrap(), &[]);
    world.publish();
    let shared = &world.nodes[0].proxy.shared;
    let caller = Caller::new(shared, &shared.pod(&client.pod.name).unwrap());
    for (ip, expected) in [
        ("192.0.2.1", true),
        ("::ffff:192.0.2.1", true),
        ("169.254.169.254", true),
        ("192.0.2.2", false),
        ("192.0.2.3", true),
        ("64:ff9b::192.0.2.3", true),
        ("64:ff9b::192.0.2.2", false),
        ("2002:c000:204::1", true),
        ("192.0.2.4", true),
        ("192.0.2.129", false),
    ] {
        let why = caller.out_of_bounds(ip.parse().unwrap());
        assert_eq!(why.is_some(), expected, "{ip}");
    }
}

#[tokio::test]
async fn without_keys_no_token_is_valid() {
    let mut world = World::new();
    let (client, [(_, address), _]) = everywhere(&mut world);
    // Nobody listens there.
    let (listener, away) = app(SocketAddr::new(fresh_ip(), 0));
    drop(listener);
    let _service = world.service("keys", &[away]);
    let uri = "http://keys.shop/keys".into();
    with_jwt(&mut world, provider(JwtKeys::Uri(uri)));
    let mut stream = client.dial(address).await;
    let refused = get(&mut stream, "/a", &bearer(&token("e", &json!({})))).await;
    assert_eq!(refused.status(), 401);
    let reason = refused.header("fairlead-reason");
    assert_eq!(
        reason,
        Some("jwt_invalid; keys of the issuer not available")
    );
    assert_eq!(get(&mut stream, "/a", "").await.status(), 200);
}

#[tokio::test]
async fn a_policy_about_tokens_that_is_not_understood_denies() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    world.apply(Object::MeshPolicy(MeshPolicy {
        name: NamespacedName::new("shop", "jwt"),
        scope: PolicyScope::Pods(Selector::default()),
        mtls: None,
        port_mtls: std::collections::BTreeMap::new(),
        jwt: Vec::new(),
        jwt_invalid: true,
        access_log: None,
        generation: 0,
        invalid: Some("spec.jwt: no".to_owned()),
    }));
    world.publish();
    for (_, address) in &servers {
        client.dial_refused(*address).await;
    }
}
