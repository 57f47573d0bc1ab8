//! The server as a client library sees it.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, Error};
use serde_json::{Value, json};

use super::{
    ADMIN_TOKEN, ApiServer, Effect, Expiry, Fault, Options, Rule, StreamingLists, TokenOptions,
};

async fn client(server: &ApiServer, token: &str) -> Client {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    server.write_kubeconfig(&path, token).unwrap();
    let file = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await;
    Client::try_from(config.unwrap()).unwrap()
}

async fn server() -> (ApiServer, Client) {
    let server = ApiServer::start(Options::default()).unwrap();
    let client = client(&server, ADMIN_TOKEN).await;
    (server, client)
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"phase": "Running"},
    })
}

#[track_caller]
fn check_refused<T: std::fmt::Debug>(outcome: Result<T, Error>, code: u16, text: &str) {
    match outcome {
        Err(Error::Api(status)) => {
            assert_eq!(status.code, code, "{status:?}");
            assert!(status.message.contains(text), "{status:?}");
        }
        other => panic!("{other:?}"),
    }
}

async fn next(
    stream: &mut (impl futures_util::Stream<Item = Result<WatchEvent<Pod>, Error>> + Unpin),
) -> String {
    let event = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    let name = |pod: Pod| pod.metadata.name.unwrap_or_default();
    match event.expect("an event in time") {
        None => "end".to_owned(),
        Some(Err(error)) => format!("broken {error}"),
        Some(Ok(WatchEvent::Added(pod))) => format!("added {}", name(pod)),
        Some(Ok(WatchEvent::Modified(pod))) => format!("modified {}", name(pod)),
        Some(Ok(WatchEvent::Deleted(pod))) => format!("deleted {}", name(pod)),
        Some(Ok(WatchEvent::Bookmark(_))) => "bookmark".to_owned(),
        Some(Ok(WatchEvent::Error(status))) => format!("error {}", status.code),
    }
}

#[tokio::test]
async fn lists_are_consistent_over_their_pages_until_compacted() {
    let (server, client) = server().await;
    for number in 0..5 {
        server.put(pod(&format!("p{number}"), "n1")).unwrap();
    }
    let pods: Api<Pod> = Api::all(client);
    let first = pods.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    server.delete("pods", "default", "p3").unwrap();
    let token = first.metadata.continue_.unwrap();
    let next = ListParams::default().limit(9).continue_token(&token);
    let second = pods.list(&next).await.unwrap();
    assert_eq!(second.items.len(), 3, "as it was at the first page");
    assert_eq!(
        first.metadata.resource_version,
        second.metadata.resource_version
    );
    server.compact();
    check_refused(pods.list(&next).await, 410, "continue");
}

#[tokio::test]
async fn selectors_choose() {
    let (server, client) = server().await;
    server.put(pod("a", "n1")).unwrap();
    server.put(pod("b", "n2")).unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let of = async |params: ListParams| pods.list(&params).await.map(|list| list.items.len());
    let all = ListParams::default;
    assert_eq!(of(all().fields("spec.nodeName=n2")).await.unwrap(), 1);
    assert_eq!(of(all().labels("app in (a,b)")).await.unwrap(), 2);
    assert_eq!(
        of(all().fields("spec.nodeName!=n1,metadata.name=a"))
            .await
            .unwrap(),
        0
    );
    check_refused(of(all().fields("spec.x=1")).await, 400, "not supported");
}

#[tokio::test]
async fn a_watch_tells_what_passes_its_selector() {
    let (server, client) = server().await;
    let start = server.put(pod("a", "n1")).unwrap();
    let start = start["metadata"]["resourceVersion"].as_str().unwrap();
    let pods: Api<Pod> = Api::all(client);
    let params = WatchParams::default().fields("spec.nodeName=n1").timeout(2);
    let mut events = pin!(pods.watch(&params, start).await.unwrap());
    server.put(pod("b", "n1")).unwrap();
    server.put(pod("c", "n2")).unwrap();
    server.put(pod("b", "n2")).unwrap();
    server.delete("pods", "default", "a").unwrap();
    let mut seen = Vec::new();
    loop {
        match next(&mut events).await.as_str() {
            "end" => break,
            event => seen.push(event.to_owned()),
        }
    }
    assert_eq!(seen, ["added b", "deleted b", "deleted a", "bookmark"]);
}

#[tokio::test]
async fn a_library_keeps_up_by_either_kind_of_list() {
    for (lists, streams) in [
        (watcher::Config::default(), StreamingLists::Ignored),
        (
            watcher::Config::default().streaming_lists(),
            StreamingLists::Served,
        ),
    ] {
        let (server, client) = server().await;
        server.set_streaming_lists(streams);
        server.put(pod("a", "n1")).unwrap();
        let mut events = pin!(watcher::watcher(Api::<Pod>::all(client), lists));
        let mut found = 0;
        loop {
            match events.next().await.unwrap().unwrap() {
                Event::InitDone => break,
                Event::InitApply(_) => found += 1,
                Event::Init | Event::Apply(_) | Event::Delete(_) => {}
            }
        }
        assert_eq!(found, 1);
        server.put(pod("b", "n1")).unwrap();
        let event = events.next().await.unwrap().unwrap();
        assert!(matches!(event, Event::Apply(_)), "{event:?}");
    }
}

#[tokio::test]
async fn a_version_from_before_a_compaction_is_gone_in_either_way() {
    let (server, client) = server().await;
    server.put(pod("a", "n1")).unwrap();
    server.put(pod("b", "n1")).unwrap();
    server.compact();
    let pods: Api<Pod> = Api::all(client);
    let params = WatchParams::default();
    let mut events = pin!(pods.watch(&params, "2").await.unwrap());
    assert_eq!(next(&mut events).await, "error 410");
    server.set_expiry(Expiry::Status);
    let refused = pods.watch(&params, "2").await.map(|_| ());
    check_refused(refused, 410, "too old");
    // The library would try again for minutes.
    assert_eq!(server.shared.store.check(999).unwrap_err().code, 504);
}

#[tokio::test]
async fn writes_of_an_old_version_conflict() {
    let (_server, client) = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let new: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "m"}, "data": {"k": "1"},
    }))
    .unwrap();
    let params = PostParams::default();
    let first = maps.create(&params, &new).await.unwrap();
    assert!(first.metadata.uid.is_some());
    check_refused(maps.create(&params, &new).await, 409, "already exists");
    let patch = Patch::Merge(json!({"data": {"k": "2"}}));
    maps.patch("m", &PatchParams::default(), &patch)
        .await
        .unwrap();
    check_refused(maps.replace("m", &params, &first).await, 409, "modified");
    maps.delete("m", &DeleteParams::default()).await.unwrap();
    check_refused(maps.get("m").await, 404, "\"m\" not found");
}

#[tokio::test]
async fn the_status_is_written_by_its_own_path() {
    let (server, client) = server().await;
    server.put(pod("a", "n1")).unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let both = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"x": "y"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    let params = PatchParams::apply("me");
    let patched = pods
        .patch_status("a", &params, &Patch::Apply(&both))
        .await
        .unwrap();
    assert!(!patched.metadata.labels.unwrap().contains_key("x"));
    let status = patched.status.unwrap();
    assert_eq!(status.phase.unwrap(), "Running", "another's field stays");
    assert_eq!(status.conditions.unwrap()[0].type_, "Ready");
    let version = patched.metadata.resource_version;
    let again = pods.patch_status("a", &params, &Patch::Apply(&both)).await;
    let again = again.unwrap().metadata.resource_version;
    assert_eq!(again, version, "the same again is no change");
}

#[tokio::test]
async fn kinds_come_and_go_with_their_definitions() {
    let (server, client) = server().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "storage": true, "served": true}],
        },
    });
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Thing"));
    let things: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let list = async || things.list(&ListParams::default()).await;
    assert!(matches!(list().await, Err(Error::Api(status)) if status.code == 404));
    let defined = server.put(definition).unwrap();
    let found = server.get("customresourcedefinitions", "", "things.example.com");
    assert_eq!(
        found.unwrap()["status"]["conditions"][1]["type"],
        "Established"
    );
    assert!(defined["metadata"]["uid"].is_string());
    server
        .put(json!({
            "apiVersion": "example.com/v1", "kind": "Thing",
            "metadata": {"name": "t", "namespace": "default"},
        }))
        .unwrap();
    let found = list().await.unwrap();
    let version = found.metadata.resource_version.unwrap();
    assert_eq!(found.items.len(), 1);
    let mut events = pin!(
        things
            .watch(&WatchParams::default(), &version)
            .await
            .unwrap()
    );
    server
        .delete("customresourcedefinitions", "", "things.example.com")
        .unwrap();
    let event = events.next().await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Deleted(_)), "{event:?}");
    assert!(events.next().await.is_none());
    assert!(matches!(list().await, Err(Error::Api(status)) if status.code == 404));
    let groups = client.list_api_groups().await.unwrap();
    assert!(
        groups
            .groups
            .iter()
            .all(|group| group.name != "example.com")
    );
}

#[tokio::test]
async fn refusals_name_verb_and_resource() {
    let (server, _admin) = server().await;
    server.accept("t", "system:serviceaccount:mesh:agent");
    let pods: Api<Pod> = Api::all(client(&server, "t").await);
    let list = async || pods.list(&ListParams::default()).await;
    let expected = "pods is forbidden: User \"system:serviceaccount:mesh:agent\" cannot list \
                    resource \"pods\" in API group \"\" at the cluster scope";
    check_refused(list().await, 403, expected);
    server.grant(
        "system:serviceaccount:mesh:agent",
        Rule::new(&["list"], "", &["pods"]),
    );
    assert!(list().await.is_ok());
    let namespaces: Api<Namespace> = Api::all(client(&server, "unknown").await);
    let refused = namespaces.list(&ListParams::default()).await;
    check_refused(refused, 401, "Unauthorized");
}

#[tokio::test]
async fn tokens_are_for_an_audience_and_end_with_their_pod() {
    let (server, client) = server().await;
    let uid = server.put(pod("a", "n1")).unwrap()["metadata"]["uid"].clone();
    let options = TokenOptions {
        audiences: vec!["ca".to_owned()],
        pod: Some(("a".to_owned(), uid.as_str().unwrap().to_owned())),
        node: Some("n1".to_owned()),
        ..TokenOptions::default()
    };
    let token = server.issue_token("default", "agent", &options);
    let reviews: Api<TokenReview> = Api::all(client);
    let review = async |audience: &str| {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.clone()),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        reviews
            .create(&params, &review)
            .await
            .unwrap()
            .status
            .unwrap()
    };
    let status = review("ca").await;
    assert_eq!(status.authenticated, Some(true));
    let user = status.user.unwrap();
    assert_eq!(
        user.username.unwrap(),
        "system:serviceaccount:default:agent"
    );
    let node = &user.extra.unwrap()["authentication.kubernetes.io/node-name"];
    assert_eq!(node, &["n1"]);
    assert_ne!(review("other").await.authenticated, Some(true));
    server.delete("pods", "default", "a").unwrap();
    assert_ne!(review("ca").await.authenticated, Some(true));
}

#[tokio::test]
async fn faults_happen_as_often_as_they_are_told_to() {
    let (mut server, client) = server().await;
    let pods: Api<Pod> = Api::all(client);
    let list = async || pods.list(&ListParams::default()).await;
    let busy = Effect::Answer {
        status: 429,
        retry_after: Some(1),
    };
    // The library itself tries again after some of them.
    server.fail(Fault::new("list", "pods", Effect::Garbage).times(1));
    assert!(list().await.is_err());
    server.fail(Fault::new("watch", "pods", busy).times(1));
    assert!(list().await.is_ok(), "another verb");
    server.fail(Fault::new("list", "", Effect::Truncate(20)));
    assert!(list().await.is_err());
    server.mend();
    assert!(list().await.is_ok());
    server.stop();
    assert!(list().await.is_err());
    server.resume().unwrap();
    assert!(list().await.is_ok());
    let requests = server.requests();
    let request = requests.last().unwrap();
    assert_eq!(
        (request.verb, &*request.resource, request.status),
        ("list", "pods", 200)
    );
    assert!(request.sent_bytes > 0);
}

#[tokio::test]
async fn events_come_twice_and_in_another_order() {
    let (server, client) = server().await;
    let pods: Api<Pod> = Api::all(client);
    server.fail(Fault::new("watch", "pods", Effect::Duplicate));
    server.fail(Fault::new("watch", "pods", Effect::Reorder));
    for name in ["a", "b", "a"] {
        let mut pod = pod(name, "n1");
        pod["metadata"]["resourceVersion"] = Value::Null;
        pod["spec"]["priority"] = server.list("pods").len().into();
        server.put(pod).unwrap();
    }
    // From before them, so that they come together.
    let mut events = pin!(pods.watch(&WatchParams::default(), "2").await.unwrap());
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(next(&mut events).await);
    }
    let expected = [
        "added b",
        "added b",
        "added a",
        "added a",
        "modified a",
        "modified a",
    ];
    assert_eq!(seen, expected);
}
