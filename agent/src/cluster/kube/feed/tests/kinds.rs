//! Several kinds, and those that are not there.

use super::*;

const TWO: &[ObjectKind] = &[ObjectKind::Pod, ObjectKind::AuthorizationPolicy];
const POLICIES: &str = "authorizationpolicies";

fn policy(name: &str, version: u64, spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"fairlead.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"{version}"}},"spec":{spec}}}"#
    )
}

/// The API server is ready and has no kind of ours.
fn not_installed(api: &Api) {
    api.say(POLICIES, 404, "404 page not found\n");
    api.say("readyz", 200, "ok");
    api.say("v1alpha1", 404, "404 page not found\n");
}

/// A feed of no pods and these policies, with its watches.
async fn with_policies(policies: &[String]) -> (World, [api::Sender; 2]) {
    let mut world = World::new(TWO);
    let pods = world.api.stream("pods");
    pods.lines(&[end_of_list(5)]);
    let watch = world.api.stream(POLICIES);
    let events: Vec<String> = policies.iter().map(|policy| added(policy)).collect();
    watch.lines(&events);
    watch.lines(&[end_of_list(5)]);
    world.state(|it| it.revision > 0).await;
    (world, [pods, watch])
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_every_kind_was_read() {
    let mut world = World::new(TWO);
    let pods = world.api.stream("pods");
    pods.lines(&[added(&pod("a", "10.0.0.1", 1)), end_of_list(5)]);
    world.health(|it| it.objects["Pod"] == 1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.source.snapshots.borrow().revision, 0);
    let policies = world.api.stream(POLICIES);
    policies.lines(&[added(&policy("p", 2, "{}")), end_of_list(5)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(
        (snapshot.pods.len(), snapshot.authorization_policies.len()),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn what_selects_is_asked_for_after_what_it_selects() {
    let world = World::new(TWO);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.api.requests().len(), 1);
    let _pods = world.api.stream("pods");
    world.api.refuse("pods");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(world.api.requests().iter().any(|it| it.contains(POLICIES)));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_found_once_it_is() {
    let mut world = World::new(TWO);
    let pods = world.api.stream("pods");
    pods.lines(&[end_of_list(5)]);
    for _ in 0..12 {
        not_installed(&world.api);
    }
    let start = Instant::now();
    let health = world.health(|it| it.healthy).await;
    assert!(!health.kinds[1].installed);
    assert!(elapsed_since(start) < 6.0);
    world.state(|it| it.revision > 0).await;
    let policies = world.api.stream(POLICIES);
    policies.lines(&[added(&policy("p", 7, "{}")), end_of_list(9)]);
    world.state(|it| it.authorization_policies.len() == 1).await;
    assert!(world.health(|it| it.healthy).await.kinds[1].installed);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_starts_is_not_believed_that_there_are_no_policies() {
    let mut world = World::new(TWO);
    world.api.stream("pods").lines(&[end_of_list(5)]);
    for _ in 0..3 {
        world.api.say(POLICIES, 404, "404 page not found\n");
        world
            .api
            .say("readyz", 500, "[-]poststarthook/crd-informer-synced failed");
    }
    world.api.say(POLICIES, 404, "404 page not found\n");
    world.api.say("readyz", 200, "ok");
    world.api.say(
        "v1alpha1",
        200,
        r#"{"resources":[{"name":"authorizationpolicies"}]}"#,
    );
    assert!(world.complaint().await.contains("are not served yet"));
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(world.source.snapshots.borrow().revision, 0);
    let policies = world.api.stream(POLICIES);
    policies.lines(&[added(&policy("p", 7, "{}")), end_of_list(9)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(snapshot.authorization_policies.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn policies_stay_in_force_until_it_is_sure_that_their_kind_is_gone() {
    let (mut world, [_pods, watch]) = with_policies(&[policy("p", 1, "{}")]).await;
    let start = Instant::now();
    drop(watch);
    for _ in 0..30 {
        not_installed(&world.api);
    }
    assert!(
        world
            .complaint()
            .await
            .contains("seem to have been uninstalled; 1 ")
    );
    assert_eq!(
        world.source.snapshots.borrow().authorization_policies.len(),
        1
    );
    world.state(|it| it.authorization_policies.is_empty()).await;
    let waited = elapsed_since(start);
    assert!((60.0..120.0).contains(&waited), "{waited}");
    world.health(|it| it.healthy).await;
}

#[tokio::test(start_paused = true)]
async fn policies_that_come_back_in_time_were_never_away() {
    let (mut world, [_pods, watch]) = with_policies(&[policy("p", 1, "{}")]).await;
    let revision = world.source.snapshots.borrow().revision;
    drop(watch);
    not_installed(&world.api);
    not_installed(&world.api);
    let list = world.api.stream(POLICIES);
    list.lines(&[added(&policy("p", 1, "{}")), end_of_list(9)]);
    world.health(|it| it.kinds[1].watch_restarts == 1).await;
    assert_eq!(world.source.snapshots.borrow().revision, revision);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_not_understood_denies_whatever_it_is() {
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let deep = format!(r#"{{"rules":{deep}}}"#);
    let (world, _watches) = with_policies(&[
        policy("deep", 1, &deep),
        policy("misspelt", 2, r#"{"rulez":[]}"#),
    ])
    .await;
    let snapshot = world.source.snapshots.borrow().clone();
    assert_eq!(snapshot.authorization_policies.len(), 2);
    for policy in snapshot.authorization_policies.values() {
        assert!(policy.invalid.is_some(), "{policy:?}");
    }
    let texts: Vec<String> = snapshot
        .problems
        .iter()
        .map(|it| format!("{} {}: {}", it.object, it.field, it.message))
        .collect();
    let text = texts.join("\n");
    assert!(
        text.contains("shop/misspelt spec.rulez: is not known"),
        "{text}"
    );
    assert!(text.contains("recursion limit exceeded"), "{text}");
    assert!(
        text.contains("; the policy denies what it selects"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_can_not_choose_its_network_namespace() {
    let mut world = World::new(&[ObjectKind::Pod]);
    let mut text = pod("a", "10.0.0.1", 1);
    text = text.replace(
        "\"managedFields\"",
        "\"annotations\":{\"fairlead.dev/netns\":\"/run/netns/other\"},\"managedFields\"",
    );
    world
        .api
        .stream("pods")
        .lines(&[added(&text), end_of_list(5)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(snapshot.pods.values().next().unwrap().netns, None);
    assert!(snapshot.problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_is_not_believed_at_its_first_word() {
    let (mut world, [_pods, watch]) = with_policies(&[policy("p", 1, "{}")]).await;
    drop(watch);
    not_installed(&world.api);
    for _ in 0..6 {
        world.api.refuse(POLICIES);
    }
    not_installed(&world.api);
    let list = world.api.stream(POLICIES);
    list.lines(&[added(&policy("p", 1, "{}")), end_of_list(9)]);
    world.health(|it| it.lost.is_some()).await;
    world.health(|it| it.kinds[1].watch_restarts == 1).await;
    assert_eq!(
        world.source.snapshots.borrow().authorization_policies.len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_was_not_installed_when_the_server_was_lost_is_not_either_when_it_is_back() {
    let mut world = World::new(TWO);
    let pods = world.api.stream("pods");
    pods.lines(&[end_of_list(5)]);
    for _ in 0..12 {
        not_installed(&world.api);
    }
    world.health(|it| it.healthy).await;
    world.api.refuse(POLICIES);
    world.api.say(POLICIES, 404, "404 page not found\n");
    world.health(|it| it.lost.is_some()).await;
    world
        .health(|it| it.healthy && !it.kinds[1].installed)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_read_in_the_version_that_is_served() {
    let mut world = World::new(&[ObjectKind::TcpRoute]);
    world.api.say("tcproutes", 404, "404 page not found\n");
    let routes = world.api.stream("tcproutes");
    let route = r#"{"apiVersion":"gateway.networking.k8s.io/v1alpha2","kind":"TCPRoute","metadata":{"name":"r","namespace":"shop","resourceVersion":"3"},"spec":{}}"#;
    routes.lines(&[added(route), end_of_list(5)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(snapshot.routes.len(), 1);
    let asked = world.api.requests();
    let versions = ["/v1/tcproutes", "/v1alpha2/tcproutes"];
    assert!(
        asked[0].contains(versions[0]) && asked[1].contains(versions[1]),
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_kind_of_others_is_away_at_the_first_word_of_a_server_that_is_ready() {
    let mut world = World::new(&[ObjectKind::TcpRoute]);
    for _version in 0..2 {
        world.api.say("tcproutes", 404, "404 page not found\n");
    }
    world.api.say("readyz", 200, "ok");
    world.api.say("v1", 404, "404 page not found\n");
    let others = r#"{"resources":[{"name":"udproutes"}]}"#;
    world.api.say("v1alpha2", 200, others);
    let start = Instant::now();
    world.state(|it| it.revision > 0).await;
    assert!(elapsed_since(start) < 0.1);
    assert_eq!(world.api.requests().len(), 5);
    assert!(!world.health(|it| it.healthy).await.kinds[0].installed);
}
