//! What routes do with requests, over sockets of both nodes.

use super::Heard;
use super::request_flow;
use super::services::{App, Served, app_of, get, request};
use crate::flow::Verdict;
use crate::proxy::tests::world::{TestPod, World, until};

/// Service `web` with an endpoint of each node, and Services `v1` and `v2` with one each.
struct Shop {
    world: World,
    client: TestPod,
    web: Served,
    apps: [App; 2],
    _pods: [TestPod; 2],
}

fn shop() -> Shop {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let pods = [world.pod("near", 0), world.pod("far", 1)];
    let apps = [app_of(&pods[0], "v1"), app_of(&pods[1], "v2")];
    let web = world.service("web", &[apps[0].address, apps[1].address]);
    let _v1 = world.service("v1", &[apps[0].address]);
    let _v2 = world.service("v2", &[apps[1].address]);
    Shop {
        world,
        client,
        web,
        apps,
        _pods: pods,
    }
}

impl Shop {
    async fn get(&self, path: &str, headers: &str) -> Heard {
        get(&self.client, &self.web, path, headers).await
    }

    /// Who answers.
    async fn server(&self, path: &str, headers: &str) -> String {
        let heard = self.get(path, headers).await;
        heard
            .header("x-server")
            .expect("an application answers")
            .to_owned()
    }
}

#[tokio::test]
async fn without_routes_requests_go_to_every_endpoint() {
    let mut shop = shop();
    for _ in 0..40 {
        assert_eq!(shop.get("/", "").await.status(), 200);
    }
    assert!(shop.apps.iter().all(|app| app.count() > 0));
    let flow = request_flow(&mut shop.world, 0).await;
    assert_eq!(flow.http.unwrap().route, None);
}

#[tokio::test]
async fn a_canary_gets_its_share_and_a_header_chooses() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{headers: [{name: x-user, value: beta}]}], backendRefs: [{name: v2, port: 80}]},
          {backendRefs: [{name: v1, port: 80, weight: 3}, {name: v2, port: 80, weight: 1}]}]",
    );
    assert_eq!(shop.server("/", "x-user: beta\r\n").await, "v2");
    let flow = request_flow(&mut shop.world, 0).await;
    let http = flow.http.unwrap();
    assert_eq!(http.route.as_deref(), Some("HTTPRoute shop/web#0"));
    assert_eq!(http.upstream, Some(shop.apps[1].address));
    let mut canaries = 0;
    for _ in 0..100 {
        canaries += usize::from(shop.server("/", "").await == "v2");
    }
    assert!((5..=50).contains(&canaries), "{canaries}");
}

#[tokio::test]
async fn a_request_that_no_rule_is_for_is_told_so() {
    let mut shop = shop();
    shop.world
        .route("[{matches: [{path: {value: /cart}}], backendRefs: [{name: v1, port: 80}]}]");
    let heard = shop.get("/other", "").await;
    assert_eq!(heard.status(), 404);
    assert_eq!(heard.header("fairlead-reason"), Some("no_route"));
    let flow = request_flow(&mut shop.world, 0).await;
    assert_eq!((flow.verdict, &*flow.reason), (Verdict::Failed, "no_route"));
    assert_eq!(shop.server("/cart/1", "").await, "v1");
}

#[tokio::test]
async fn a_back_end_that_is_none_answers_500_for_its_share() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{path: {value: /gone}}], backendRefs: [{name: absent, port: 80}]},
          {matches: [{path: {value: /zero}}], backendRefs: [{name: v1, port: 80, weight: 0}]},
          {backendRefs: [{name: v1, port: 80}]}]",
    );
    for path in ["/gone", "/zero"] {
        let heard = shop.get(path, "").await;
        assert_eq!(heard.status(), 500, "{path}");
        let reason = heard.header("fairlead-reason").unwrap();
        assert!(reason.starts_with("backend_invalid"), "{reason}");
    }
    assert_eq!(shop.server("/", "").await, "v1");
}

#[tokio::test]
async fn heads_of_requests_and_answers_are_changed() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{path: {value: /v1}}],
           filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: a}], add: [{name: X-Add, value: b}], remove: [x-gone]}},
                     {type: URLRewrite, urlRewrite: {hostname: api.shop, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}},
                     {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: X-From, value: rule}]}}],
           backendRefs: [{name: v2, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Backend, value: two}]}},
                     {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: X-From, value: back-end}]}}]}]}]",
    );
    let headers = "x-set: old\r\nx-add: old\r\nx-gone: 1\r\n";
    let heard = shop.get("/v1/cart?id=7", headers).await;
    let text = heard.text();
    assert!(text.starts_with("GET /v2/cart?id=7\n"), "{text}");
    for line in [
        "host: api.shop\n",
        "x-set: a\n",
        "x-add: old\nx-add: b\n",
        "x-backend: two\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("x-gone"));
    let from: Vec<_> = heard
        .head
        .lines()
        .filter(|line| line.starts_with("x-from"))
        .collect();
    assert_eq!(from, ["x-from: back-end", "x-from: rule"]);
    // The record is of what the client has asked for.
    let flow = request_flow(&mut shop.world, 0).await;
    let http = flow.http.unwrap();
    assert_eq!((&*http.path, &*http.host), ("/v1/cart", "web"));
}

#[tokio::test]
async fn redirects_and_preflights_are_answered_here() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{path: {value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}]},
          {filters: [{type: CORS, cors: {allowOrigins: ['https://*.shop.example'], allowMethods: [PUT], maxAge: 60}}], backendRefs: [{name: v1, port: 80}]}]",
    );
    let heard = shop.get("/old/a?b=c", "").await;
    assert_eq!(heard.status(), 301);
    assert_eq!(heard.header("location"), Some("https://web/new/a?b=c"));
    let flow = request_flow(&mut shop.world, 0).await;
    assert_eq!(
        (flow.verdict, &*flow.reason),
        (Verdict::Forwarded, "closed")
    );

    let origin = "origin: https://www.shop.example\r\n";
    let text = format!(
        "OPTIONS / HTTP/1.1\r\nHost: web\r\n{origin}access-control-request-method: PUT\r\n\r\n"
    );
    let heard = request(&shop.client, &shop.web, &text).await;
    assert_eq!(heard.status(), 200);
    assert_eq!(heard.header("access-control-allow-methods"), Some("PUT"));
    assert_eq!(heard.header("access-control-max-age"), Some("60"));
    assert_eq!(shop.apps[0].count() + shop.apps[1].count(), 0);

    let heard = shop.get("/", origin).await;
    let allowed = heard.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://www.shop.example"));
    let heard = shop.get("/", "origin: https://evil.example\r\n").await;
    assert_eq!(heard.status(), 200);
    assert_eq!(heard.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn copies_are_sent_with_their_bodies_and_nobody_waits_for_them() {
    let mut shop = shop();
    shop.world.route(
        "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}], backendRefs: [{name: v1, port: 80}]}]",
    );
    let text = "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello";
    let heard = request(&shop.client, &shop.web, text).await;
    assert_eq!(
        (heard.status(), heard.header("x-server")),
        (200, Some("v1"))
    );
    let copy = shop.apps[1].clone();
    until("the copy", || copy.last().ends_with("\n\nhello")).await;
    assert!(copy.last().starts_with("POST /a\n"));
    let mut upstreams = Vec::new();
    for _ in 0..2 {
        let flow = request_flow(&mut shop.world, 0).await;
        assert_eq!(flow.bytes_sent, 5);
        upstreams.push(flow.http.unwrap().upstream.unwrap());
    }
    upstreams.sort();
    let mut expected = shop.apps.each_ref().map(|app| app.address);
    expected.sort();
    assert_eq!(upstreams, expected);
}

#[tokio::test]
async fn a_mirror_that_never_answers_delays_nothing() {
    let mut shop = shop();
    // The copy is made before the back end's own filters: it alone asks for `/never`.
    shop.world.route(
        "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}],
           backendRefs: [{name: v1, port: 80, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}]}]}]",
    );
    for _ in 0..3 {
        let heard = shop.get("/never/x", "").await;
        assert_eq!(
            (heard.status(), heard.header("x-server")),
            (200, Some("v1"))
        );
    }
    let copy = shop.apps[1].clone();
    until("the copies", || copy.count() == 3).await;
    assert!(copy.last().starts_with("GET /never/x\n"));
}

#[tokio::test]
async fn a_session_stays_with_its_endpoint_whatever_the_weights() {
    let mut shop = shop();
    let rules = |v1: u32, v2: u32| {
        format!(
            "[{{sessionPersistence: {{type: Cookie, cookie: {{name: sid}}}}, backendRefs: \
             [{{name: v1, port: 80, weight: {v1}}}, {{name: v2, port: 80, weight: {v2}}}]}}]"
        )
    };
    shop.world.route(&rules(0, 1));
    let heard = shop.get("/", "").await;
    assert_eq!(heard.header("x-server"), Some("v2"));
    let cookie = heard.header("set-cookie").unwrap().to_owned();
    assert!(
        cookie.starts_with("sid=") && cookie.ends_with("; Path=/; HttpOnly"),
        "{cookie}"
    );
    let pair = cookie.split(';').next().unwrap();
    shop.world.route(&rules(1, 0));
    for _ in 0..5 {
        let heard = shop.get("/", &format!("cookie: a=b; {pair}\r\n")).await;
        assert_eq!(heard.header("x-server"), Some("v2"));
        assert_eq!(heard.header("set-cookie"), None);
    }
    // One that was made up is none: the weights hold, and a new session begins.
    let other = if pair.ends_with('x') { 'y' } else { 'x' };
    let forged = format!("cookie: {}{other}\r\n", &pair[..pair.len() - 1]);
    let heard = shop.get("/", &forged).await;
    assert_eq!(heard.header("x-server"), Some("v1"));
    assert!(heard.header("set-cookie").is_some());
}
