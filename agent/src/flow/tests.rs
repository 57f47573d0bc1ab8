use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;

use crate::model::NamespacedName;

pub(crate) use super::request::tests::ended;
use super::{
    Destination, Direction, Filter, FlowEvent, FlowHub, FlowMetrics, FlowProtocol, Missed,
    OpenLabels, Source, TlsState, Verdict, queue,
};

/// A request of `shop/web-1` to the Service `bank/ledger`.
pub(crate) fn request_event() -> FlowEvent {
    let record = super::request::tests::record("web-1", 10);
    FlowEvent {
        time: event().time,
        ..record.event()
    }
}

/// A connection of `shop/web-1` to the Service `bank/ledger`.
pub(crate) fn event() -> FlowEvent {
    let ip: IpAddr = "10.1.0.5".parse().unwrap();
    FlowEvent {
        time: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        node: "node-a".into(),
        direction: Direction::Outbound,
        source: Source {
            namespace: Some("shop".into()),
            pod: Some("web-1".into()),
            workload: Some("web".into()),
            ip: Some(ip),
            port: 40000,
            identity: Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()),
        },
        destination: Destination {
            namespace: Some("bank".into()),
            pod: Some("ledger-0".into()),
            workload: Some("ledger".into()),
            service: Some("ledger".into()),
            ip: Some("10.96.0.7".parse().unwrap()),
            port: 80,
            identity: None,
        },
        protocol: FlowProtocol::Tcp,
        tls: TlsState::Mtls,
        verdict: Verdict::Forwarded,
        reason: "closed".into(),
        policy: None,
        audit: Vec::new(),
        bytes_sent: 1500,
        bytes_received: 2_000_000,
        duration_ms: 1234,
        connection_id: "1".into(),
        kernel: None,
        http: None,
    }
}

fn filter(change: impl FnOnce(&mut Filter)) -> Filter {
    let mut filter = Filter::default();
    change(&mut filter);
    filter
}

#[track_caller]
fn check(change: impl FnOnce(&mut Filter), expected: bool) {
    let filter = filter(change);
    assert_eq!(filter.matches(&event()), expected, "{filter:?}");
}

#[test]
fn an_empty_filter_takes_everything() {
    check(|_| {}, true);
}

#[test]
fn namespace_and_pod_match_either_end() {
    check(|f| f.namespace = Some("shop".into()), true);
    check(|f| f.namespace = Some("bank".into()), true);
    check(|f| f.namespace = Some("other".into()), false);
    check(|f| f.pod = Some("web-1".parse().unwrap()), true);
    check(|f| f.pod = Some("shop/web-1".parse().unwrap()), true);
    check(|f| f.pod = Some("bank/ledger-0".parse().unwrap()), true);
    check(|f| f.pod = Some("bank/web-1".parse().unwrap()), false);
}

#[test]
fn a_service_matches_with_and_without_its_namespace() {
    check(|f| f.service = Some("ledger".parse().unwrap()), true);
    check(|f| f.service = Some("bank/ledger".parse().unwrap()), true);
    check(|f| f.service = Some("shop/ledger".parse().unwrap()), false);
    check(|f| f.service = Some("web".parse().unwrap()), false);
}

#[test]
fn every_field_must_match() {
    check(|f| f.port = Some(80), true);
    check(|f| f.port = Some(81), false);
    check(|f| f.verdict = Some(Verdict::Denied), false);
    check(|f| f.direction = Some(Direction::Outbound), true);
    check(|f| f.protocol = Some(FlowProtocol::Http), false);
    let mixed = |f: &mut Filter| {
        f.port = Some(80);
        f.namespace = Some("other".into());
    };
    check(mixed, false);
}

fn request(path: &str, status: u16, duration_ms: u64) -> FlowEvent {
    let mut event = request_event();
    event.duration_ms = duration_ms;
    if let Some(http) = &mut event.http {
        http.path = path.into();
        http.status = status;
    }
    event
}

#[test]
fn fields_of_requests_match_requests_only() {
    let about: [fn(&mut Filter); 7] = [
        |f| f.kind = Some(super::RecordKind::Request),
        |f| f.method = vec!["GET".into()],
        |f| f.path = Some("/cart".parse().unwrap()),
        |f| f.host = Some("LEDGER.bank".into()),
        |f| f.status = vec!["2xx".parse().unwrap()],
        |f| f.route = Some("bank/ledger".into()),
        |f| f.min_latency = Some(Duration::from_millis(5)),
    ];
    let request = request("/cart/7", 200, 5);
    for change in about {
        check(change, false);
        assert!(filter(change).matches(&request), "{:?}", filter(change));
    }
    let connections = filter(|f| f.kind = Some(super::RecordKind::Connection));
    assert!(connections.matches(&event()) && !connections.matches(&request));
}

#[test]
fn paths_match_by_segments_or_by_pattern() {
    #[track_caller]
    fn matches(pattern: &str, path: &str, expected: bool) {
        let filter = filter(|f| f.path = Some(pattern.parse().unwrap()));
        assert_eq!(filter.matches(&request(path, 200, 0)), expected);
    }
    matches("/api", "/api", true);
    matches("/api/", "/api/v1", true);
    matches("/api", "/apis", false);
    matches("/", "/anything", true);
    matches("/api/*/items", "/api/v1/items", true);
    matches("/api/*/items", "/api/v1/items/7", false);
    matches("*.php", "/a/b.php", true);
    matches("/a*", "/apis", true);
    matches("/*a*b", "/xab", true);
    matches("/*a*b", "/xba", false);
    matches("/a*a", "/a", false);
    for bad in ["", "api", "/a?b=1"] {
        assert!(bad.parse::<super::PathFilter>().is_err(), "{bad} was taken");
    }
}

#[test]
fn statuses_match_by_code_or_class() {
    #[track_caller]
    fn matches(wanted: &[&str], status: u16, expected: bool) {
        let filter = filter(|f| f.status = wanted.iter().map(|it| it.parse().unwrap()).collect());
        let json = serde_json::to_string(&filter).unwrap();
        assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), filter);
        assert_eq!(filter.matches(&request("/", status, 0)), expected);
    }
    matches(&["404"], 404, true);
    matches(&["404"], 403, false);
    matches(&["404", "5xx"], 503, true);
    matches(&["5xx"], 499, false);
    matches(&["0"], 0, true);
    for bad in ["", "xx", "0xx", "55", "5x", "-1", "1000"] {
        let parsed = bad.parse::<super::StatusFilter>();
        assert!(parsed.is_err(), "{bad} was taken");
    }
}

#[test]
fn since_looks_back_from_now() {
    let event = event();
    let filter = filter(|f| f.since = Some(Duration::from_mins(1)));
    let at = |seconds| event.time + jiff::SignedDuration::from_secs(seconds);
    assert!(filter.is_recent(event.time, at(60)));
    assert!(!filter.is_recent(event.time, at(61)));
    assert!(
        filter.is_recent(event.time, at(-5)),
        "the clock stepped back"
    );
}

#[test]
fn names_of_pods_are_checked() {
    for bad in ["", "/", "a/", "/a", "a/b/c"] {
        assert!(bad.parse::<super::PodFilter>().is_err(), "{bad} was taken");
    }
}

#[tokio::test]
async fn a_follower_gets_the_last_and_then_each_new_record_once() {
    let (sender, receiver) = queue(16, FlowMetrics::default());
    let (hub, flows) = FlowHub::new(receiver, 3);
    let numbered = |number: u64| FlowEvent {
        bytes_sent: number,
        ..event()
    };
    for number in 0..5 {
        sender.record(numbered(number));
    }
    let task = tokio::task::JoinSet::from_iter([hub.run()]);
    tokio::task::yield_now().await;
    let (first, mut follower) = flows.follow(filter(|f| f.last = Some(2)), Timestamp::now());
    let sent = |events: &[std::sync::Arc<FlowEvent>]| -> Vec<u64> {
        events.iter().map(|e| e.bytes_sent).collect()
    };
    assert_eq!(sent(&first), [3, 4]);
    assert_eq!(
        sent(&flows.recent(&Filter::default(), Timestamp::now())),
        [2, 3, 4]
    );
    sender.record(numbered(5));
    assert_eq!(follower.next().await.unwrap().unwrap().bytes_sent, 5);
    drop(sender);
    drop(task.join_all().await);
}

#[tokio::test]
async fn a_slow_follower_is_told_how_many_it_lost() {
    let (sender, receiver) = queue(8192, FlowMetrics::default());
    let (hub, flows) = FlowHub::new(receiver, 1);
    let (_, mut follower) = flows.follow(Filter::default(), Timestamp::now());
    for _ in 0..5000 {
        sender.record(event());
    }
    drop(sender);
    hub.run().await;
    assert_eq!(follower.next().await, Some(Err(Missed(5000 - 4096))));
    assert!(follower.next().await.unwrap().is_ok());
}

#[test]
fn a_full_queue_drops_and_counts_but_metrics_stay_exact() {
    let metrics = FlowMetrics::default();
    let (sender, _receiver) = queue(2, metrics.clone());
    for _ in 0..5 {
        let open = sender.opened(&OpenLabels::of(&event()));
        open.close(event());
    }
    assert_eq!(sender.dropped(), 3);
    assert_eq!(sender.open_connections(), 0);
    let text = scrape(&metrics);
    assert!(text.contains("} 5\n"), "{text}");
    assert!(
        text.contains("sent_bytes_total{") && text.contains("} 7500\n"),
        "{text}"
    );
}

#[test]
fn an_open_connection_counts_until_it_is_dropped() {
    let metrics = FlowMetrics::default();
    let (sender, _receiver) = queue(2, metrics.clone());
    let event = event();
    let mut open = sender.opened(&OpenLabels::of(&event));
    open.progress(10, 0);
    open.progress(30, 0);
    let client = NamespacedName::new("shop", "web-1");
    assert_eq!(sender.open_connections(), 1);
    assert_eq!(sender.open_connections_of(&client), 1);
    drop(open);
    assert_eq!(sender.open_connections(), 0);
    assert_eq!(sender.open_connections_of(&client), 0);
    let expected = "fairlead_tcp_sent_bytes_total{reporter=\"source\",source_workload=\"web\",\
        source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",\
        destination_workload=\"ledger\",destination_workload_namespace=\"bank\",\
        destination_principal=\"unknown\",\
        destination_service=\"ledger.bank.svc.cluster.local\",destination_service_name=\"ledger\",\
        destination_service_namespace=\"bank\",request_protocol=\"tcp\",\
        connection_security_policy=\"mutual_tls\"} 30\n";
    let text = scrape(&metrics);
    assert!(text.contains(expected), "{text}");
}

#[test]
fn label_sets_go_an_hour_after_their_last_connection() {
    let metrics = FlowMetrics::default();
    let (sender, _receiver) = queue(8, metrics.clone());
    let of = |workload: &str| {
        let mut event = event();
        event.source.workload = Some(workload.into());
        event
    };
    let held = sender.opened(&OpenLabels::of(&of("held")));
    sender.record(of("gone"));
    sender.record(of("steady"));
    let sweep = |times: u32| (0..times).for_each(|_| metrics.sweep());
    sweep(60);
    sender.record(of("steady"));
    assert!(scrape(&metrics).contains("source_workload=\"gone\""));
    sweep(1);
    let text = scrape(&metrics);
    assert!(!text.contains("\"gone\""), "{text}");
    assert_eq!(text.matches("source_workload=\"steady\"").count(), 4);
    // An open connection keeps its series, however long it says nothing.
    sweep(1000);
    drop(held);
    let text = scrape(&metrics);
    assert!(!text.contains("\"steady\""), "{text}");
    assert_eq!(text.matches("source_workload=\"held\"").count(), 4);
    assert!(text.contains("} 1\n"), "{text}");
    sweep(61);
    assert!(!scrape(&metrics).contains("source_workload"));
}

pub(super) fn scrape(metrics: &FlowMetrics) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test]
async fn connections_and_requests_come_in_the_order_of_time() {
    let (sender, receiver) = queue(16, FlowMetrics::default());
    let (hub, flows) = FlowHub::new(receiver, 4);
    let (_, mut follower) = flows.follow(Filter::default(), Timestamp::now());
    let requests = sender.requests(super::request::tests::ends("web-1"));
    for number in 0..3 {
        requests.record(super::EndedRequest {
            bytes_sent: number,
            ..ended(200)
        });
        sender.record(FlowEvent {
            time: Timestamp::now(),
            bytes_sent: 100 + number,
            ..event()
        });
    }
    drop((requests, sender));
    hub.run().await;
    let sent = |last| -> Vec<u64> {
        let filter = filter(|f| f.last = last);
        let found = flows.recent(&filter, Timestamp::now());
        found.iter().map(|it| it.bytes_sent).collect()
    };
    assert_eq!(sent(None), [0, 100, 1, 101, 2, 102]);
    assert_eq!(sent(Some(3)), [101, 2, 102]);
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(follower.next().await.unwrap().unwrap().bytes_sent);
    }
    assert_eq!(seen, [0, 100, 1, 101, 2, 102]);
}
