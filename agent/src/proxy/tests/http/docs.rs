//! The examples of docs/l7.md, applied as they stand there and asked over sockets.

use super::Heard;
use super::services::{App, Served, app_of, get, request};
use crate::proxy::tests::world::{TestPod, World, until};

const PAGE: &str = include_str!("../../../../../docs/l7.md");

/// The shop of the page: `web` has both versions, `web-v1` and `web-v2` one each.
struct Shop {
    _world: World,
    client: TestPod,
    web: Served,
    apps: [App; 2],
    _pods: [TestPod; 2],
}

/// With the example of this section applied.
#[track_caller]
fn example(section: &str) -> Shop {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let pods = [world.pod("near", 0), world.pod("far", 1)];
    let apps = [app_of(&pods[0], "v1"), app_of(&pods[1], "v2")];
    let web = world.service("web", &[apps[0].address, apps[1].address]);
    let _v1 = world.service("web-v1", &[apps[0].address]);
    let _v2 = world.service("web-v2", &[apps[1].address]);
    let (_, text) = PAGE.split_once(&format!("\n## {section}\n")).unwrap();
    let (_, yaml) = text.split_once("```yaml\n").unwrap();
    let (yaml, _) = yaml.split_once("```\n").unwrap();
    world.manifest(yaml);
    Shop {
        _world: world,
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

    async fn send(&self, method: &str, headers: &str) -> Heard {
        let text =
            format!("{method} / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n{headers}\r\n");
        request(&self.client, &self.web, &text).await
    }
}

#[tokio::test]
async fn canary() {
    let shop = example("Canary");
    for _ in 0..200 {
        assert_eq!(shop.get("/", "").await.status(), 200);
    }
    let canaries = shop.apps[1].count();
    assert!((3..=60).contains(&canaries), "{canaries} of 200");
}

#[tokio::test]
async fn a_b_by_header() {
    let shop = example("A/B by header");
    let heard = shop.get("/", "x-group: b\r\n").await;
    assert_eq!(heard.header("x-server"), Some("v2"));
    assert_eq!(heard.header("x-served"), Some("group-b"));
    let heard = shop.get("/", "").await;
    assert_eq!(heard.header("x-server"), Some("v1"));
    assert_eq!(heard.header("x-served"), None);
}

#[tokio::test]
async fn mirror() {
    let shop = example("Mirror");
    assert_eq!(shop.get("/", "").await.header("x-server"), Some("v1"));
    let copy = shop.apps[1].clone();
    until("the copy", || copy.count() == 1).await;
}

#[tokio::test]
async fn session() {
    let shop = example("Session");
    let heard = shop.get("/", "").await;
    let server = heard.header("x-server").unwrap().to_owned();
    let cookie = heard.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Max-Age=3600"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..10 {
        let heard = shop.get("/", &format!("cookie: {pair}\r\n")).await;
        assert_eq!(heard.header("x-server"), Some(&*server));
    }
}

#[tokio::test]
async fn retries() {
    let shop = example("Retries");
    let heard = shop.get("/flaky/2", "").await;
    assert_eq!(heard.status(), 200);
    assert_eq!(heard.header("fairlead-retries"), Some("2"));
}

#[tokio::test]
async fn rate_limit() {
    let shop = example("Rate limit");
    for expected in [200, 200, 429] {
        let heard = shop.send("POST", "").await;
        assert_eq!(heard.status(), expected);
        assert_eq!(heard.header("retry-after").is_some(), expected == 429);
    }
    assert_eq!(shop.send("GET", "").await.status(), 200);
}

#[tokio::test]
async fn fault() {
    let shop = example("Fault");
    let heard = shop.get("/", "x-chaos: on\r\n").await;
    assert_eq!(heard.status(), 503);
    assert_eq!(heard.header("fairlead-reason"), Some("fault_injected"));
    assert_eq!(shop.get("/", "").await.status(), 200);
}

#[tokio::test]
async fn other_origins() {
    let shop = example("Other origins");
    let origin = "origin: https://www.shop.example\r\n";
    let ask = format!("{origin}access-control-request-method: PUT\r\n");
    let heard = shop.send("OPTIONS", &ask).await;
    assert_eq!(
        heard.header("access-control-allow-methods"),
        Some("GET, PUT")
    );
    assert_eq!(heard.header("access-control-max-age"), Some("600"));
    let heard = shop.get("/", origin).await;
    let allowed = heard.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://www.shop.example"));
}
