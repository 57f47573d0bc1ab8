use std::fs;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::sync::watch;

use super::{AccessLog, AccessLogTo, AccessLogWriter};
use crate::flow::request::tests::{ended, ends};
use crate::flow::tests::event;
use crate::flow::{EndedRequest, FlowEvent, FlowHub, FlowMetrics, FlowProtocol, Verdict, queue};
use crate::model::{NamespacedName, NodeName, TrustDomain};
use crate::policy::Table;
use crate::state::fixtures::{World, namespace, pod};
use crate::state::traffic::Share;
use crate::state::{AccessLog as Said, AccessLogMode, MeshPolicy, Object, Pod, PolicyScope};

const PAGE: &str = include_str!("../../../../docs/observability.md");

/// `shop/web-1` of this node, and `bank/ledger-0` of another.
fn world() -> World {
    let on = |text: &str, ip: &str, node: &str| {
        Object::Pod(Pod {
            node: Some(NodeName(node.into())),
            enrolled: true,
            ..pod(text, &[ip])
        })
    };
    World::new([
        namespace("shop", "enabled"),
        namespace("bank", "enabled"),
        on("shop/web-1", "10.1.0.5", "node-a"),
        on("bank/ledger-0", "10.1.1.5", "node-b"),
    ])
}

fn policy(text: &str, mode: AccessLogMode) -> Object {
    let (namespace, name) = text.split_once('/').unwrap();
    Object::MeshPolicy(MeshPolicy {
        name: NamespacedName::new(namespace, name),
        scope: PolicyScope::Pods(crate::state::Selector::default()),
        mtls: None,
        port_mtls: std::collections::BTreeMap::new(),
        jwt: Vec::new(),
        access_log: Some(Said {
            mode,
            share: Share::ALL,
        }),
        jwt_invalid: false,
        generation: 0,
        invalid: None,
    })
}

fn table(mut world: World) -> Arc<Table> {
    let empty = Table::of_node(NodeName("node-a".into()));
    Arc::new(Table::compile(Some(&empty), world.now()))
}

/// What is written of these requests and connections under these policies.
fn written(policies: impl IntoIterator<Item = Object>, events: &[Happened]) -> Vec<String> {
    let mut world = world();
    for policy in policies {
        world.put(policy);
    }
    let (_keep, tables) = watch::channel(table(world));
    let metrics = FlowMetrics::default();
    let (mut log, lines) = AccessLog::queued(tables, &metrics, 64);
    let (sender, mut records) = queue(64, metrics);
    for happened in events {
        match happened {
            Happened::Request(request) => sender.requests(ends("web-1")).record(request()),
            Happened::Connection(event) => sender.record((**event).clone()),
        }
        log.offer(&records.try_take().unwrap());
    }
    let line = |event: Box<FlowEvent>| match &event.http {
        Some(http) => format!("{} {}", http.path, http.status),
        None => format!("{} {}", event.protocol.as_str(), event.verdict.as_str()),
    };
    lines.try_iter().map(line).collect()
}

enum Happened {
    Request(fn() -> EndedRequest<'static>),
    Connection(Box<FlowEvent>),
}

fn connection(protocol: FlowProtocol, verdict: Verdict) -> Happened {
    Happened::Connection(Box::new(FlowEvent {
        protocol,
        verdict,
        ..event()
    }))
}

fn happened() -> Vec<Happened> {
    vec![
        Happened::Request(|| ended(200)),
        Happened::Request(|| ended(404)),
        Happened::Request(|| ended(503)),
        Happened::Request(|| ended(0)),
        Happened::Request(|| EndedRequest {
            grpc_status: Some(13),
            ..ended(200)
        }),
        connection(FlowProtocol::Tcp, Verdict::Forwarded),
        connection(FlowProtocol::Tcp, Verdict::Denied),
        connection(FlowProtocol::Http2, Verdict::Failed),
    ]
}

#[test]
fn nothing_is_written_where_no_policy_says_so() {
    assert!(written([], &happened()).is_empty());
    let none = policy("shop/log", AccessLogMode::None);
    assert!(written([none], &happened()).is_empty());
    // The destination's node writes what its policy says.
    let bank = policy("bank/log", AccessLogMode::All);
    assert!(written([bank], &happened()).is_empty());
}

#[test]
fn all_are_written_once_and_without_queries() {
    let all = policy("shop/log", AccessLogMode::All);
    assert_eq!(
        written([all], &happened()),
        [
            "/cart/7 200",
            "/cart/7 404",
            "/cart/7 503",
            "/cart/7 0",
            "/cart/7 200",
            "tcp forwarded",
            "tcp denied",
        ]
    );
}

#[test]
fn errors_are_what_got_no_good_answer() {
    let errors = |min_status| policy("shop/log", AccessLogMode::Errors { min_status });
    assert_eq!(
        written([errors(500)], &happened()),
        ["/cart/7 503", "/cart/7 0", "/cart/7 200", "tcp denied"]
    );
    assert_eq!(written([errors(400)], &happened()).len(), 5);
}

#[tokio::test(start_paused = true)]
async fn lines_are_records_in_a_file_that_may_be_moved_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let (tables_in, tables) = watch::channel(table(world()));
    let metrics = FlowMetrics::default();
    let to = AccessLogTo::File(path.clone());
    let (log, writer) = AccessLog::new(tables, &metrics, &to).unwrap();
    let writer = std::thread::spawn(|| writer.run());
    let (sender, receiver) = queue(64, metrics.clone());
    let (hub, _flows) = FlowHub::new(receiver, 10);
    let hub = tokio::spawn(hub.logging(log).run());
    let ask = async |status| {
        sender.requests(ends("web-1")).record(ended(status));
        while sender.waiting() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        while sender.lines_waiting() > 0 {
            std::thread::yield_now();
        }
    };
    ask(200).await;
    let mut logged = world();
    logged.put(policy("shop/log", AccessLogMode::All));
    let _before = tables_in.send_replace(table(logged));
    ask(201).await;
    let moved = directory.path().join("access.log.1");
    fs::rename(&path, &moved).unwrap();
    ask(202).await;
    ask(203).await;
    drop(sender);
    hub.await.unwrap();
    writer.join().unwrap();

    let lines = |path: &Path| -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let (old, new) = (lines(&moved), lines(&path));
    assert_eq!((old.len(), new.len()), (1, 2));
    assert_eq!(old[0]["http"]["status"], 201);
    assert_eq!(old[0]["source"]["pod"], "web-1");
    assert_eq!(new[1]["http"]["status"], 203);
    assert!(!old[0].to_string().contains("4111"));
    assert_eq!(counted(&metrics), (3, 0));
}

#[test]
fn what_cannot_be_written_is_counted() {
    let mut logged = world();
    logged.put(policy("shop/log", AccessLogMode::All));
    let (_keep, tables) = watch::channel(table(logged));
    let metrics = FlowMetrics::default();
    let (mut log, lines) = AccessLog::queued(tables, &metrics, 2);
    let (sender, mut records) = queue(64, metrics.clone());
    for _ in 0..3 {
        sender.requests(ends("web-1")).record(ended(200));
        log.offer(&records.try_take().unwrap());
    }
    assert_eq!((counted(&metrics), sender.lines_waiting()), ((0, 1), 2));
    let full = AccessLogTo::File("/dev/full".into());
    let writer = AccessLogWriter::open(lines, &full, metrics.access.clone()).unwrap();
    drop(log);
    writer.run();
    assert_eq!((counted(&metrics), sender.lines_waiting()), ((0, 3), 0));
}

/// Lines written and lost.
fn counted(metrics: &FlowMetrics) -> (u64, u64) {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let value = |name: &str| {
        let row = text.lines().find_map(|row| row.strip_prefix(name)).unwrap();
        row.trim().parse().unwrap()
    };
    (
        value("fairlead_agent_access_log_lines_total "),
        value("fairlead_agent_access_log_drops_total "),
    )
}

#[test]
fn the_example_of_the_page_logs_errors_and_one_workload_in_full() {
    use crate::cluster::convert::{Converter, NetnsFrom};
    use serde::Deserialize as _;

    let (_, text) = PAGE.split_once("\n## Access log\n").unwrap();
    let (_, yaml) = text.split_once("```yaml\n").unwrap();
    let (yaml, _) = yaml.split_once("```\n").unwrap();
    let converter = || Converter::new(TrustDomain("cluster.local".into()), NetnsFrom::Annotation);
    let policies = |of_mesh_only: bool| {
        let mut converter = converter();
        let documents = serde_yaml_ng::Deserializer::from_str(yaml);
        let policies = documents.map(move |document| {
            let read = converter.value(&Value::deserialize(document).unwrap());
            assert!(read.problems.is_empty(), "{:?}", read.problems);
            read.object.unwrap()
        });
        policies.take(if of_mesh_only { 1 } else { 2 })
    };
    let errors = ["/cart/7 503", "/cart/7 0", "/cart/7 200", "tcp denied"];
    assert_eq!(written(policies(true), &happened()), errors);
    assert_eq!(written(policies(false), &happened()).len(), 7);
}
