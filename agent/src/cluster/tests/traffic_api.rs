//! The definition of traffic policies, beside what the conversion makes of them.

use serde_json::{Value, json};

use super::api::{found_later, refused, taken};

/// The spec of a traffic policy with a section.
#[expect(
    clippy::needless_pass_by_value,
    reason = "values are made where they are handed in"
)]
fn section(name: &str, value: Value) -> Value {
    json!({"targetRefs": [{"kind": "Service", "name": "web"}], name: value})
}

#[test]
fn what_both_say_of_traffic() {
    let kind = "TrafficPolicy";
    let targets = |target: Value| json!({"targetRefs": [target]});
    taken(kind, targets(json!({"kind": "Service", "name": "web"})));
    let target = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
    taken(kind, targets(target));
    taken(
        kind,
        targets(json!({"kind": "Service", "name": "web", "port": 80})),
    );
    let named = json!({"kind": "Service", "name": "web", "sectionName": "http"});
    taken(kind, targets(named));
    for target in [
        json!({"kind": "Gateway", "name": "x"}),
        json!({"name": "web"}),
        json!({"kind": "Service"}),
        json!({"kind": "Service", "name": ""}),
        json!({"kind": "Service", "name": "web", "port": 0}),
        json!({"kind": "Service", "name": "web", "port": "80"}),
        json!({"kind": "Service", "name": "web", "port": 80, "sectionName": "http"}),
    ] {
        refused(kind, targets(target));
    }
    found_later(kind, Value::Null);
    refused(kind, json!({}));
    refused(kind, json!({"targetRefs": []}));
    let many = vec![json!({"kind": "Service", "name": "web"}); 65];
    refused(kind, json!({"targetRefs": many}));
    let elsewhere = json!({"kind": "Service", "name": "web", "namespace": "bank"});
    found_later(kind, targets(elsewhere));
    for (name, good, bad) in traffic_sections() {
        for value in good {
            taken(kind, section(name, value));
        }
        for value in bad {
            refused(kind, section(name, value));
        }
    }
    found_later(kind, section("timeouts", json!({"connect": "0s"})));
    found_later(kind, section("timeouts", json!({"conect": "1s"})));
}

/// Of each section what both take, and what both refuse.
#[expect(clippy::too_many_lines, reason = "one table")]
fn traffic_sections() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    let limit = |local: Value| json!([{"local": local}]);
    let global = |descriptors: Value| {
        let service = json!({"name": "limits", "port": 8081});
        json!([{"global": {"service": service, "domain": "d", "descriptors": descriptors}}])
    };
    let entry = |entry: Value| json!([{"entries": [entry]}]);
    let matching = |matches: Value| json!([{"match": matches, "abort": {"status": 500}}]);
    vec![
        (
            "loadBalancing",
            vec![
                json!({}),
                json!({"algorithm": "PEAK_EWMA", "locality": {}, "slowStart": {}}),
                json!({"consistentHash": {"source": true}}),
                json!({"algorithm": "CONSISTENT_HASH", "consistentHash": {"query": "q"}}),
            ],
            vec![
                json!([]),
                json!({"algorithm": "peak_ewma"}),
                json!({"algorithm": "CONSISTENT_HASH"}),
                json!({"algorithm": "RANDOM", "consistentHash": {"source": true}}),
                json!({"consistentHash": {}}),
                json!({"consistentHash": {"source": false}}),
                json!({"consistentHash": {"header": "a b"}}),
                json!({"consistentHash": {"cookie": ""}}),
                json!({"consistentHash": {"source": true, "boundedLoad": 99}}),
                json!({"locality": {"overprovisioning": 99}}),
                json!({"slowStart": {"window": "1 minute"}}),
                json!({"slowStart": {"minimumPercent": 0}}),
            ],
        ),
        (
            "outlierDetection",
            vec![json!({"consecutive5xxErrors": 0, "successRate": {}, "latency": {}})],
            vec![
                json!({"maxEjectionPercent": 101}),
                json!({"panicThreshold": -1}),
                json!({"consecutive5xxErrors": 1.5}),
                json!({"successRate": {"stdevFactor": 0}}),
                json!({"latency": {"percentOfMedian": 100}}),
            ],
        ),
        (
            "retries",
            vec![
                json!({"attempts": 0, "budget": {}, "backoff": {}}),
                json!({"retryOn": ["5xx", "retriable-4xx", "connect-failure"], "codes": [429]}),
            ],
            vec![
                json!({"attempts": 11}),
                json!({"retryOn": []}),
                json!({"retryOn": ["4xx"]}),
                json!({"codes": [399]}),
                json!({"methods": ["get"]}),
                json!({"budget": {"percent": 101}}),
            ],
        ),
        (
            "rateLimits",
            vec![
                limit(json!({"requests": 1, "per": "1s", "by": "ROUTE"})),
                limit(json!({"requests": 1, "per": "1s", "by": "HEADER", "header": "a"})),
                global(entry(json!({"key": "k", "from": "CLIENT"}))),
            ],
            vec![
                json!([]),
                json!([{}]),
                limit(json!({})),
                limit(json!({"requests": 0, "per": "1s"})),
                limit(json!({"requests": 1, "per": "1s", "by": "HEADER"})),
                limit(json!({"requests": 1, "per": "1s", "header": "a"})),
                global(json!([])),
                global(json!([{}])),
                global(entry(json!({"key": "k"}))),
                global(entry(json!({"key": "k", "value": "v", "header": "h"}))),
                global(entry(json!({"value": "v"}))),
                global(entry(json!({"key": "k", "from": "BODY"}))),
            ],
        ),
        (
            "faults",
            vec![
                json!([{"delay": {"percent": 0.01, "duration": "1s"}}]),
                matching(json!({"methods": ["GET"], "paths": ["/a", "/b*", "*c", "*"]})),
            ],
            vec![
                json!([{}]),
                json!([{"delay": {}}]),
                json!([{"abort": {}}]),
                json!([{"abort": {"status": 200}}]),
                json!([{"abort": {"status": 500, "grpcStatus": 13}}]),
                json!([{"abort": {"grpcStatus": 0}}]),
                json!([{"abort": {"percent": "1", "status": 500}}]),
                matching(json!({})),
                matching(json!({"paths": ["a"]})),
                matching(json!({"headers": [{"name": "a"}]})),
                matching(json!({"headers": [{"name": "a", "value": ""}]})),
            ],
        ),
        (
            "adaptiveConcurrency",
            vec![json!({}), json!({"initial": 1, "min": 1, "max": 1_000_000})],
            vec![json!({"min": 0}), json!({"tolerance": 99})],
        ),
    ]
}
