//! `TrafficPolicy` objects.

use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use serde_json::{Value, json};

use super::trust_domain;
use crate::cluster::FieldProblem;
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::state::traffic::*;
use crate::state::{Object, StringMatch};

/// The policy, and what is said against it.
fn convert(spec: &Value) -> (TrafficPolicy, Vec<String>) {
    let object = json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {
            "name": "web", "namespace": "shop", "generation": 3,
            "creationTimestamp": "2026-11-20T12:00:00Z",
        },
        "spec": spec,
    });
    let converted = Converter::new(trust_domain(), NetnsFrom::Annotation).value(&object);
    let problem = |problem: FieldProblem| format!("{}: {}", problem.field, problem.message);
    let problems = converted.problems.into_iter().map(problem).collect();
    match converted.object {
        Some(Object::TrafficPolicy(policy)) => (policy, problems),
        other => panic!("{other:?}"),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "values are made where they are handed in"
)]
fn with(section: &str, value: Value) -> Value {
    json!({"targetRefs": [{"kind": "Service", "name": "web"}], section: value})
}

#[track_caller]
fn read(section: &str, value: Value) -> TrafficSpec {
    let (policy, problems) = convert(&with(section, value));
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(policy.invalid, None);
    policy.spec
}

/// The first thing that is said against it.
#[track_caller]
fn check(section: &str, value: Value, expected: &str) {
    let (policy, problems) = convert(&with(section, value));
    assert_eq!(problems[0], expected);
    assert_eq!(policy.invalid.as_deref(), Some(expected));
}

#[test]
fn targets_are_services_and_their_ports() {
    let (policy, problems) = convert(&json!({"targetRefs": [
        {"kind": "Service", "name": "web"},
        {"group": "", "kind": "Service", "name": "api", "namespace": "shop", "port": 80},
        {"kind": "Service", "name": "db", "sectionName": "sql"},
    ]}));
    assert_eq!(problems, Vec::<String>::new());
    let target = |service: &str, port| TrafficTarget {
        service: service.into(),
        port,
    };
    let expected = [
        target("web", None),
        target("api", Some(TargetedPort::Number(80))),
        target("db", Some(TargetedPort::Name("sql".into()))),
    ];
    assert_eq!(policy.targets, expected);
    assert_eq!((policy.generation, policy.created), (3, 1_795_176_000));
    assert_eq!(policy.spec, TrafficSpec::default());
}

#[test]
fn load_balancing_is_read() {
    let spec = read(
        "loadBalancing",
        json!({
            "algorithm": "CONSISTENT_HASH",
            "consistentHash": {"table": "MAGLEV", "header": "X-User", "boundedLoad": 125},
            "locality": {"node": true, "zone": false, "overprovisioning": 200},
            "slowStart": {"window": "1m30s", "minimumPercent": 5},
        }),
    );
    let expected = LoadBalancingSpec {
        algorithm: Some(Algorithm::ConsistentHash),
        consistent_hash: Some(ConsistentHash {
            table: Some(HashTableKind::Maglev),
            key: HashKey::Header(HeaderName::from_static("x-user")),
            bounded_load: Some(125),
        }),
        locality: Some(LocalitySpec {
            node: Some(true),
            zone: Some(false),
            overprovisioning: Some(200),
        }),
        slow_start: Some(SlowStartSpec {
            window: Some(Duration::from_secs(90)),
            minimum_percent: Some(5),
        }),
    };
    assert_eq!(spec.load_balancing, Some(expected));
    for (key, expected) in [
        (json!({"source": true}), HashKey::Source),
        (json!({"cookie": "id"}), HashKey::Cookie("id".into())),
        (json!({"query": "user"}), HashKey::Query("user".into())),
    ] {
        let spec = read("loadBalancing", json!({"consistentHash": key}));
        let hash = spec.load_balancing.unwrap().consistent_hash.unwrap();
        assert_eq!(hash.key, expected);
    }
}

#[test]
fn limits_and_detection_are_read() {
    let limits = json!({"max": 10, "perClient": 2, "pending": 0, "idleTimeout": "500ms"});
    let expected = ConnectionsSpec {
        max: Some(10),
        per_client: Some(2),
        pending: Some(0),
        idle_timeout: Some(Duration::from_millis(500)),
    };
    assert_eq!(read("connections", limits).connections, Some(expected));
    let limits = json!({"max": 10, "perClient": 2, "retries": 1});
    let expected = RequestsSpec {
        max: Some(10),
        per_client: Some(2),
        retries: Some(1),
    };
    assert_eq!(read("requests", limits).requests, Some(expected));
    let detection = json!({
        "consecutive5xxErrors": 7, "consecutiveGatewayErrors": 3,
        "successRate": {"minimumHosts": 2, "requestVolume": 50, "stdevFactor": 2000},
        "latency": {
            "minimumHosts": 3, "requestVolume": 60, "percentOfMedian": 250, "minimum": "10ms",
        },
        "interval": "5s", "baseEjectionTime": "10s", "maxEjectionTime": "1h",
        "maxEjectionPercent": 30, "panicThreshold": 0,
    });
    let expected = OutlierDetectionSpec {
        consecutive_5xx: Some(7),
        consecutive_gateway_errors: Some(3),
        success_rate: Some(SuccessRateSpec {
            minimum_hosts: Some(2),
            request_volume: Some(50),
            stdev_factor: Some(2_000),
        }),
        latency: Some(LatencyOutlierSpec {
            minimum_hosts: Some(3),
            request_volume: Some(60),
            percent_of_median: Some(250),
            minimum: Some(Duration::from_millis(10)),
        }),
        interval: Some(Duration::from_secs(5)),
        base_ejection_time: Some(Duration::from_secs(10)),
        max_ejection_time: Some(Duration::from_hours(1)),
        max_ejection_percent: Some(30),
        panic_threshold: Some(0),
    };
    let spec = read("outlierDetection", detection);
    assert_eq!(spec.outlier_detection, Some(expected));
    let adaptive = json!({"initial": 30, "min": 5, "max": 400, "tolerance": 200});
    let expected = AdaptiveConcurrencySpec {
        initial: Some(30),
        min: Some(5),
        max: Some(400),
        tolerance: Some(200),
    };
    let spec = read("adaptiveConcurrency", adaptive);
    assert_eq!(spec.adaptive_concurrency, Some(expected));
}

#[test]
fn retries_and_timeouts_are_read() {
    let names = RetryOn::ALL.map(RetryOn::as_str);
    let retries = json!({
        "attempts": 4, "backoff": {"base": "10ms", "max": "1s"}, "retryOn": names,
        "codes": [409, 503], "methods": ["GET", "POST"],
        "budget": {"percent": 30, "minPerSecond": 0},
    });
    let expected = RetriesSpec {
        attempts: Some(4),
        backoff: Some(BackoffSpec {
            base: Some(Duration::from_millis(10)),
            max: Some(Duration::from_secs(1)),
        }),
        on: Some(RetryOn::ALL.to_vec()),
        codes: Some(vec![StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE]),
        methods: Some(vec![Method::GET, Method::POST]),
        budget: Some(BudgetSpec {
            percent: Some(30),
            min_per_second: Some(0),
        }),
    };
    assert_eq!(read("retries", retries).retries, Some(expected));
    let timeouts = json!({
        "request": "10s", "perTry": "0s", "connect": "250ms", "idle": "1m", "stream": "2h",
    });
    let expected = TimeoutsSpec {
        request: Some(Duration::from_secs(10)),
        per_try: Some(Duration::ZERO),
        connect: Some(Duration::from_millis(250)),
        idle: Some(Duration::from_mins(1)),
        stream: Some(Duration::from_hours(2)),
    };
    assert_eq!(read("timeouts", timeouts).timeouts, Some(expected));
}

#[test]
fn rate_limits_are_read() {
    let limits = json!([
        {
            "name": "writes",
            "match": {
                "methods": ["POST"], "paths": ["/api/*"],
                "headers": [{"name": "X-Tier", "value": "free"}],
            },
            "local": {"requests": 10, "per": "1m", "burst": 3, "by": "CLIENT"},
        },
        {"local": {"requests": 1, "per": "1s", "by": "HEADER", "header": "x-user"}},
        {"global": {
            "service": {"name": "limits", "namespace": "infra", "port": 8081},
            "domain": "shop", "timeout": "50ms", "onFailure": "DENY",
            "descriptors": [{"entries": [
                {"key": "tier", "value": "free"}, {"key": "user", "header": "x-user"},
                {"key": "who", "from": "CLIENT"}, {"key": "path", "from": "PATH"},
            ]}],
        }},
    ]);
    let spec = read("rateLimits", limits);
    let [first, second, third] = &spec.rate_limits[..] else {
        panic!("{:?}", spec.rate_limits);
    };
    assert_eq!(&*first.name, "writes");
    assert_eq!(first.matches.methods, [Method::POST]);
    assert_eq!(
        first.matches.paths,
        [StringMatch::Prefix("/api/".to_owned())]
    );
    assert_eq!(first.matches.headers[0].name.as_str(), "x-tier");
    let local = |requests, per, burst, by| {
        LimitKind::Local(LocalLimit {
            requests,
            per: Duration::from_secs(per),
            burst,
            by,
        })
    };
    assert_eq!(first.limit, local(10, 60, Some(3), LimitKey::Client));
    let header = LimitKey::Header(HeaderName::from_static("x-user"));
    assert_eq!(second.limit, local(1, 1, None, header));
    let LimitKind::Global(global) = &third.limit else {
        panic!("{third:?}");
    };
    assert_eq!(global.service.to_string(), "infra/limits");
    assert_eq!((global.port, &*global.domain), (8081, "shop"));
    assert_eq!(global.deny_on_failure, Some(true));
    let values: Vec<&DescriptorValue> = global.descriptors[0].iter().map(|it| &it.value).collect();
    let expected = [
        &DescriptorValue::Literal("free".into()),
        &DescriptorValue::Header(HeaderName::from_static("x-user")),
        &DescriptorValue::Client,
        &DescriptorValue::Path,
    ];
    assert_eq!(values, expected);
}

#[test]
fn paths_that_can_not_be_compared_are_refused() {
    for (path, why) in [
        ("api", "the path does not begin with a slash"),
        (
            "/%61*",
            "paths are compared in their normal form, such as /ax",
        ),
        ("/a%2Fb", "the path has an encoded slash or a backslash"),
    ] {
        check(
            "faults",
            json!([{"match": {"paths": [path]}, "abort": {"status": 503}}]),
            &format!(
                "spec.faults[0].match.paths[0]: {:?} can never match: {why}",
                path.trim_end_matches('*')
            ),
        );
    }
}

#[test]
fn faults_are_read() {
    let faults = json!([
        {"delay": {"percent": 0.1, "duration": "3s"}, "abort": {"status": 503}},
        {"match": {"paths": ["/x"]}, "abort": {"percent": 50, "grpcStatus": 14}},
    ]);
    let spec = read("faults", faults);
    let delay = Delay {
        share: Share(1_000),
        duration: Duration::from_secs(3),
    };
    assert_eq!(spec.faults[0].delay, Some(delay));
    let abort = |share, with| Some(Abort { share, with });
    let status = AbortWith::Status(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(spec.faults[0].abort, abort(Share::ALL, status));
    let grpc = AbortWith::Grpc(14);
    assert_eq!(spec.faults[1].abort, abort(Share(500_000), grpc));
}

#[test]
fn what_is_wrong_is_named() {
    check(
        "requests",
        json!({"max": "10"}),
        "spec.requests.max: \"10\" is no whole number from 0 to 4294967295",
    );
    check(
        "requests",
        json!({"maximum": 10}),
        "spec.requests.maximum: is not known here; known are: max, perClient, retries",
    );
    check(
        "timeouts",
        json!({"request": "10"}),
        "spec.timeouts.request: \"10\" is no duration: such as 1h30m, 10s or 500ms",
    );
    check(
        "timeouts",
        json!({"connect": "0s"}),
        "spec.timeouts.connect: must be more than nothing",
    );
    check(
        "loadBalancing",
        json!({"algorithm": "FASTEST"}),
        "spec.loadBalancing.algorithm: \"FASTEST\" is none of PEAK_EWMA, ROUND_ROBIN, \
         LEAST_REQUEST, RANDOM, CONSISTENT_HASH",
    );
    check(
        "loadBalancing",
        json!({"consistentHash": {"header": "a", "cookie": "b"}}),
        "spec.loadBalancing.consistentHash: must have one of header, cookie, source and query",
    );
    check(
        "rateLimits",
        json!([{"local": {"requests": 1}}]),
        "spec.rateLimits[0].local.per: is missing",
    );
    check(
        "rateLimits",
        json!([{"name": "x"}]),
        "spec.rateLimits[0]: must have one of local and global",
    );
    check(
        "faults",
        json!([{"abort": {"percent": 101, "status": 500}}]),
        "spec.faults[0].abort.percent: 101 is no percentage: 0 to 100",
    );
    check(
        "retries",
        json!({"codes": [200]}),
        "spec.retries.codes[0]: 200 is no status of a failure: 400 to 599",
    );
}

#[test]
fn durations_are_those_of_the_gateway_api() {
    for text in [
        "",
        "s",
        "1",
        "1.5s",
        "-1s",
        "1s ",
        "123456s",
        "1d",
        "1s1s1s1s1s",
    ] {
        let (_, problems) = convert(&with("timeouts", json!({"request": text})));
        assert_eq!(problems.len(), 1, "{text}");
    }
    let spec = read("timeouts", json!({"request": "1h2m3s4ms"}));
    let expected = Duration::from_millis(3_723_004);
    assert_eq!(spec.timeouts.unwrap().request, Some(expected));
}

#[test]
fn of_a_policy_that_is_not_understood_only_limits_hold() {
    let (policy, problems) = convert(&json!({
        "targetRefs": [{"kind": "Service", "name": "web"}],
        "requests": {"max": 10, "perCleint": 2},
        "connections": {"max": 5},
        "retries": {"attempts": 5},
        "faults": [{"abort": {"status": 503}}],
        "outlierDetection": {},
        "loadBalancing": {"algorithm": "RANDOM"},
        "rateLimits": [
            {"local": {"requests": 1, "per": "1s"}, "match": {"path": ["/x"]}},
            {"local": {"requests": "many", "per": "1s"}},
        ],
    }));
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(policy.invalid.is_some());
    let spec = policy.spec;
    assert_eq!(spec.requests.unwrap().max, Some(10));
    assert_eq!(spec.connections.unwrap().max, Some(5));
    // What its match was to be is not known: it holds for all.
    assert_eq!(spec.rate_limits.len(), 1);
    assert_eq!(spec.rate_limits[0].matches, TrafficMatch::default());
    assert!(spec.retries.is_none() && spec.faults.is_empty());
    assert!(spec.outlier_detection.is_none() && spec.load_balancing.is_none());
}

#[test]
fn targets_that_make_no_sense_are_named() {
    let problem = |target: Value| {
        let (policy, problems) = convert(&json!({"targetRefs": [target]}));
        assert!(policy.targets.is_empty());
        problems[0].clone()
    };
    assert_eq!(
        problem(json!({"kind": "Gateway", "name": "x"})),
        "spec.targetRefs[0].kind: \"Gateway\" can't be a target: only Services can"
    );
    assert_eq!(
        problem(json!({"kind": "Service", "name": "x", "namespace": "bank"})),
        "spec.targetRefs[0].namespace: must be the policy's own, shop"
    );
    assert_eq!(
        problem(json!({"kind": "Service", "name": "x", "port": 1, "sectionName": "y"})),
        "spec.targetRefs[0].sectionName: can't be given together with a port: both name one"
    );
    assert_eq!(
        convert(&json!({})).1,
        ["spec.targetRefs: is missing: it says which Services"]
    );
}

/// The examples of the documentation; sections alone are taken for those of a policy.
#[test]
fn the_examples_of_the_documentation_are_understood() {
    let text = include_str!("../../../../docs/traffic.md");
    let blocks: Vec<&str> = text
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(blocks.len() >= 3);
    for block in blocks {
        let value: Value = serde_yaml_ng::from_str(block).unwrap();
        let spec = value.get("spec").cloned().unwrap_or_else(|| {
            let (section, value) = value.as_object().unwrap().iter().next().unwrap();
            with(section, value.clone())
        });
        let (_, problems) = convert(&spec);
        assert_eq!(problems, Vec::<String>::new(), "{block}");
    }
}
