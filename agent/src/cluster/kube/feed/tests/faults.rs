//! What can go wrong between a feed and its API server.

use super::*;

const PODS: &[ObjectKind] = &[ObjectKind::Pod];
const LIST: &str = "/api/v1/pods?watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
                    &resourceVersionMatch=NotOlderThan";

fn watch_from(version: u64) -> String {
    format!("/api/v1/pods?watch=true&allowWatchBookmarks=true&resourceVersion={version}")
}

/// A feed of one pod `a` of version 1, with a list as of version 5, and its watch.
async fn one_pod() -> (World, api::Sender) {
    let mut world = World::new(PODS);
    let watch = world.api.stream("pods");
    watch.lines(&[added(&pod("a", "10.0.0.1", 1)), end_of_list(5)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(pods(&snapshot), ["shop/a 10.0.0.1"]);
    (world, watch)
}

#[tokio::test(start_paused = true)]
async fn a_list_is_streamed_and_followed() {
    let (mut world, watch) = one_pod().await;
    assert_eq!(world.api.requests(), [LIST]);
    let health = world.health(|it| it.healthy).await;
    assert_eq!(health.objects["Pod"], 1);
    watch.lines(&[
        event("MODIFIED", &pod("a", "10.0.0.9", 6)),
        added(&pod("b", "10.0.0.2", 7)),
    ]);
    let snapshot = world.state(|it| it.pods.len() == 2).await;
    assert_eq!(pods(&snapshot), ["shop/a 10.0.0.9", "shop/b 10.0.0.2"]);
    watch.lines(&[event("DELETED", &pod("a", "10.0.0.9", 8))]);
    let snapshot = world.state(|it| it.pods.len() == 1).await;
    assert_eq!(pods(&snapshot), ["shop/b 10.0.0.2"]);
}

#[tokio::test(start_paused = true)]
async fn events_come_in_any_pieces() {
    let (mut world, watch) = one_pod().await;
    let text = format!(
        "{}\n",
        added(&pod("ü", "10.0.0.2", 6)).replace("\"name\":\"ü\"", "\"name\":\"b\",\"x\":\"ü\"")
    );
    for byte in text.as_bytes() {
        watch.bytes(&[*byte]);
    }
    world.state(|it| it.pods.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_one_revision() {
    let (mut world, watch) = one_pod().await;
    let revision = world.source.snapshots.borrow().revision;
    for number in 0..50_u64 {
        watch.lines(&[added(&pod(
            &format!("p{number}"),
            &format!("10.1.0.{number}"),
            10 + number,
        ))]);
    }
    let snapshot = world.state(|it| it.pods.len() == 51).await;
    assert_eq!(snapshot.revision, revision + 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_can_not_stream_is_asked_for_pages() {
    let mut world = World::new(PODS);
    world
        .api
        .say("pods", 422, r#"{"code":422,"reason":"Invalid"}"#);
    let first = [pod("a", "10.0.0.1", 1)];
    world.api.say("pods", 200, &page(&first, 5, "x/+="));
    let second = [pod("b", "10.0.0.2", 2)];
    world.api.say("pods", 200, &page(&second, 6, ""));
    let watch = world.api.stream("pods");
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(snapshot.pods.len(), 2);
    watch.lines(&[added(&pod("c", "10.0.0.3", 7))]);
    world.state(|it| it.pods.len() == 3).await;
    let pages = "/api/v1/pods?limit=500";
    assert_eq!(
        world.api.requests(),
        [
            LIST,
            pages,
            &format!("{pages}&continue=x%2F%2B%3D"),
            &watch_from(5)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_of_streamed_lists_is_asked_for_pages() {
    for silent in [true, false] {
        let mut world = World::new(PODS);
        let endless = world.api.stream("pods");
        endless.lines(&[added(&pod("a", "10.0.0.1", 1))]);
        let again = silent.then(|| world.api.stream("pods"));
        if !silent {
            endless.lines(&[bookmark(1)]);
        }
        world
            .api
            .say("pods", 200, &page(&[pod("a", "10.0.0.1", 1)], 5, ""));
        let _watch = world.api.stream("pods");
        let snapshot = world.state(|it| it.revision > 0).await;
        assert_eq!(snapshot.pods.len(), 1);
        drop(again);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_slow_once_is_not_asked_for_more() {
    let mut world = World::new(PODS);
    let slow = world.api.stream("pods");
    slow.lines(&[added(&pod("a", "10.0.0.1", 1))]);
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("a", "10.0.0.1", 1)), end_of_list(5)]);
    world.state(|it| it.revision > 0).await;
    assert_eq!(world.api.requests(), [LIST, LIST]);
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let (mut world, watch) = one_pod().await;
    watch.lines(&[added(&pod("b", "10.0.0.2", 7)), bookmark(9)]);
    world.state(|it| it.pods.len() == 2).await;
    let start = Instant::now();
    watch.cut();
    let watch = world.api.stream("pods");
    watch.lines(&[added(&pod("c", "10.0.0.3", 10))]);
    world.state(|it| it.pods.len() == 3).await;
    assert_eq!(world.api.requests(), [LIST, &watch_from(9)]);
    let waited = elapsed_since(start);
    assert!((1.0..3.5).contains(&waited), "{waited}");
    let health = world.health(|it| it.watching).await;
    assert_eq!(health.kinds[0].watch_restarts, 1);
    assert!(health.kinds[0].relists.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_connection_did_not_finish_is_not_taken() {
    let (mut world, watch) = one_pod().await;
    watch.bytes(added(&pod("b", "10.0.0.2", 7)).as_bytes());
    drop(watch);
    let watch = world.api.stream("pods");
    watch.lines(&[added(&pod("c", "10.0.0.3", 8))]);
    let snapshot = world.state(|it| it.pods.len() == 2).await;
    assert_eq!(pods(&snapshot), ["shop/a 10.0.0.1", "shop/c 10.0.0.3"]);
    assert_eq!(world.api.requests()[1], watch_from(5));
}

#[tokio::test(start_paused = true)]
async fn a_lost_server_is_told_and_its_last_state_served() {
    let (mut world, watch) = one_pod().await;
    watch.cut();
    for _ in 0..4 {
        world.api.refuse("pods");
    }
    let health = world.health(|it| !it.healthy).await;
    assert!(health.lost.is_some() && health.last_sync.is_some());
    assert!(world.complaint().await.contains("connection refused"));
    assert_eq!(world.source.snapshots.borrow().pods.len(), 1);
    let start = Instant::now();
    let _watch = world.api.stream("pods");
    let health = world.health(|it| it.healthy).await;
    assert_eq!((health.lost, world.api.requests().len()), (None, 6));
    // 4, 8, 16, 30 s, each spread.
    assert!(elapsed_since(start) > 20.0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let mut world = World::new(PODS);
    world.api.refuse("pods");
    world.api.say("pods", 500, "oops");
    let health = world.health(|it| it.lost.is_some()).await;
    assert!(!health.healthy);
    assert_eq!(world.source.snapshots.borrow().revision, 0);
    let health = world.health(|it| it.lost.is_none()).await;
    assert_eq!(
        health.last_error.unwrap().message,
        "can't watch pods: 500 oops"
    );
    world.api.stream("pods").lines(&[end_of_list(5)]);
    assert!(world.state(|it| it.revision > 0).await.pods.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_to_wait_is_given_the_time() {
    let mut world = World::new(PODS);
    let start = Instant::now();
    world.api.ask_to_wait("pods", 429, 60);
    let watch = world.api.stream("pods");
    watch.lines(&[end_of_list(5)]);
    world.state(|it| it.revision > 0).await;
    let waited = elapsed_since(start);
    assert!((60.0..=90.5).contains(&waited), "{waited}");
}

const EXPIRED: &str = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;

#[tokio::test(start_paused = true)]
async fn a_list_that_is_read_again_replaces_what_was_in_one_step() {
    for in_stream in [true, false] {
        let (mut world, watch) = one_pod().await;
        watch.lines(&[added(&pod("b", "10.0.0.2", 6))]);
        world.state(|it| it.pods.len() == 2).await;
        if in_stream {
            watch.lines(&[event("ERROR", EXPIRED)]);
        } else {
            drop(watch);
            world.api.say("pods", 410, EXPIRED);
        }
        let list = world.api.stream("pods");
        // `a` went, and `c` got its address.
        list.lines(&[
            added(&pod("b", "10.0.0.2", 6)),
            added(&pod("c", "10.0.0.1", 20)),
        ]);
        world
            .health(|it| it.kinds[0].relists.get("expired") == Some(&1))
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            pods(&world.source.snapshots.borrow()),
            ["shop/a 10.0.0.1", "shop/b 10.0.0.2"]
        );
        let before = world.source.snapshots.borrow().revision;
        list.lines(&[end_of_list(21)]);
        let snapshot = world.state(|it| it.revision > before).await;
        assert_eq!(pods(&snapshot), ["shop/b 10.0.0.2", "shop/c 10.0.0.1"]);
        assert!(snapshot.contested.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_changes_nothing_and_is_begun_again() {
    let (mut world, watch) = one_pod().await;
    watch.lines(&[event("ERROR", EXPIRED)]);
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("x", "10.0.0.7", 20))]);
    list.cut();
    let list = world.api.stream("pods");
    list.lines(&[
        added(&pod("a", "10.0.0.1", 1)),
        added(&pod("y", "10.0.0.8", 21)),
        end_of_list(22),
    ]);
    let snapshot = world.state(|it| it.pods.len() == 2).await;
    assert_eq!(pods(&snapshot), ["shop/a 10.0.0.1", "shop/y 10.0.0.8"]);
}

#[tokio::test(start_paused = true)]
async fn a_first_list_that_breaks_off_leaves_nothing_behind() {
    let mut world = World::new(PODS);
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("x", "10.0.0.7", 3))]);
    list.cut();
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("a", "10.0.0.1", 1)), end_of_list(5)]);
    let snapshot = world.state(|it| it.revision > 0).await;
    assert_eq!(pods(&snapshot), ["shop/a 10.0.0.1"]);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_goes_back_is_read_again() {
    let (mut world, watch) = one_pod().await;
    watch.lines(&[bookmark(3)]);
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("old", "10.0.0.3", 2)), end_of_list(3)]);
    let snapshot = world.state(|it| it.revision > 1).await;
    assert_eq!(pods(&snapshot), ["shop/old 10.0.0.3"]);
    let health = world.health(|it| it.watching).await;
    assert_eq!(health.kinds[0].relists["went_back"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_is_noticed() {
    let (mut world, watch) = one_pod().await;
    let start = Instant::now();
    let next = world.api.stream("pods");
    next.lines(&[added(&pod("b", "10.0.0.2", 6))]);
    world.state(|it| it.pods.len() == 2).await;
    let waited = elapsed_since(start);
    assert!((100.0..110.0).contains(&waited), "{waited}");
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_watches_at_once_is_not_hammered() {
    let (mut world, watch) = one_pod().await;
    let start = Instant::now();
    drop(watch);
    for _ in 0..8 {
        drop(world.api.stream("pods"));
    }
    let last = world.api.stream("pods");
    last.lines(&[added(&pod("b", "10.0.0.2", 6))]);
    world.state(|it| it.pods.len() == 2).await;
    assert!(elapsed_since(start) > 60.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_of_an_api_server_is_refused_and_the_list_read_again() {
    let (mut world, watch) = one_pod().await;
    watch.lines(&["<html>login</html>".to_owned()]);
    let list = world.api.stream("pods");
    list.lines(&[added(&pod("a", "10.0.0.1", 1)), end_of_list(9)]);
    let health = world
        .health(|it| it.kinds[0].relists.contains_key("failed"))
        .await;
    assert_eq!(health.objects["Pod"], 1);
}

#[tokio::test(start_paused = true)]
async fn missing_rights_are_named_and_looked_for_again() {
    let mut world = World::new(PODS);
    let forbidden = r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"pods is forbidden: User \"system:serviceaccount:fairlead-system:fairlead-agent\" cannot watch resource \"pods\" in API group \"\" at the cluster scope"}"#;
    for _ in 0..3 {
        world.api.say("pods", 403, forbidden);
    }
    assert_eq!(
        world.complaint().await,
        "may not watch pods: grant verbs list, watch on pods to ServiceAccount \
         fairlead-system/fairlead-agent; deploy/ has the rules"
    );
    assert_eq!(world.source.health.borrow().lost, None);
    let watch = world.api.stream("pods");
    watch.lines(&[end_of_list(5)]);
    world.state(|it| it.revision > 0).await;
    world.health(|it| it.healthy).await;
}
