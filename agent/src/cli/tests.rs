use std::io;

use clap::{CommandFactory as _, Parser as _};
use jiff::tz::TimeZone;

use super::flows::View;
use super::output::{Colour, Format, Paint, Printer, Styles, bytes, harmless, span};
use super::{Cli, Outcome, exit_code, explain, get, status, tap};
use crate::admin::{
    ClientError, FlowLine, Kind, Object, ServiceEndpoint, ServicePortRow, ServiceRow, TapLine,
    WorkloadRow,
};
use crate::flow::{
    FlowEvent, FlowProtocol, Source, TapEvent, TapHeader, TapLoss, TlsState, Verdict,
};

fn printer() -> Printer<Vec<u8>> {
    Printer::new(Vec::new(), Styles::PLAIN)
}

fn text(printer: Printer<Vec<u8>>) -> String {
    String::from_utf8(printer.into_inner()).unwrap()
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(text.trim(), expected.trim(), "\n{text}");
}

fn line(event: FlowEvent) -> FlowLine {
    let json = serde_json::to_string(&event).unwrap();
    FlowLine::Flow(Box::new(event), json)
}

fn lines() -> Vec<FlowLine> {
    let event = crate::flow::tests::event();
    let denied = FlowEvent {
        verdict: Verdict::Denied,
        tls: TlsState::None,
        reason: "denied_by_rule".into(),
        policy: Some("bank/no-web#0".into()),
        audit: vec!["bank/watch#1".into()],
        source: Source {
            ip: event.source.ip,
            ..Source::default()
        },
        duration_ms: 3,
        ..event.clone()
    };
    let mut grpc = crate::flow::tests::request_event();
    grpc.protocol = FlowProtocol::Grpc;
    if let Some(http) = &mut grpc.http {
        http.grpc_status = Some(14);
    }
    vec![line(event), line(denied), line(grpc)]
}

fn show(format: Format) -> String {
    let mut view = View::new(printer(), format, TimeZone::UTC);
    for line in lines() {
        view.add(&line).unwrap();
    }
    text(view.finish().unwrap())
}

#[test]
fn flows_line_up() {
    check(&show(Format::Table), include_str!("tests/flows.txt"));
}

#[test]
fn flows_are_one_json_object_a_line() {
    let text = show(Format::Json);
    let events = text
        .lines()
        .map(|line| serde_json::from_str::<FlowEvent>(line).unwrap());
    let verdicts: Vec<Verdict> = events.map(|event| event.verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::Forwarded, Verdict::Denied, Verdict::Forwarded]
    );
}

#[test]
fn lost_records_are_told_in_every_format() {
    for (format, expected) in [
        (
            Format::Table,
            "7 records went by unseen: this side read too slowly\nno connection or request matches",
        ),
        (Format::Json, "{\"missed\":7}"),
        (Format::Yaml, "---\nmissed: 7"),
    ] {
        let mut view = View::new(printer(), format, TimeZone::UTC);
        view.add(&FlowLine::Missed(7)).unwrap();
        check(&text(view.finish().unwrap()), expected);
    }
}

/// What `fairlead tap` prints of a request and of what was lost.
fn tapped(format: Format) -> String {
    let header = |name: &str, value: &str| TapHeader {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let event = TapEvent {
        flow: crate::flow::tests::request_event(),
        begun: false,
        query: Some("card=***".to_owned()),
        request_headers: vec![header("cookie", "***"), header("x-a", "1\u{1b}[2J")],
        response_headers: vec![header("server", "nginx")],
    };
    let json = serde_json::to_string(&event).unwrap();
    let begun = TapEvent {
        begun: true,
        response_headers: Vec::new(),
        ..event.clone()
    };
    let begun_json = serde_json::to_string(&begun).unwrap();
    let lost = TapLoss {
        slow_reader: 2,
        over_rate: 5,
    };
    let mut view = tap::View::new(printer(), format, TimeZone::UTC, Some(1));
    view.add(&TapLine::Lost(lost)).unwrap();
    let begun = Box::new(begun);
    view.add(&TapLine::Request(begun, begun_json)).unwrap();
    assert!(!view.has_enough());
    view.add(&TapLine::Request(Box::new(event), json)).unwrap();
    assert!(view.has_enough());
    text(view.into_printer())
}

#[test]
fn a_tapped_request_is_shown_with_its_headers() {
    check(&tapped(Format::Table), include_str!("tests/tap.txt"));
    let json = tapped(Format::Json);
    let mut lines = json.lines();
    let lost = lines.next().unwrap();
    assert_eq!(lost, "{\"lost\":{\"slow_reader\":2,\"over_rate\":5}}");
    let begun: TapEvent = serde_json::from_str(lines.next().unwrap()).unwrap();
    let event: TapEvent = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert!(begun.begun && !event.begun);
    assert_eq!(event.query.as_deref(), Some("card=***"));
}

#[test]
fn a_request_is_explained_step_by_step() {
    let explanation = serde_json::from_str(include_str!("tests/explain.json")).unwrap();
    let mut printer = printer();
    explain::print(&explanation, &mut printer).unwrap();
    check(&text(printer), include_str!("tests/explain.txt"));
    assert_eq!(explain::ended(&explanation), Outcome::Problem);
    let ended = |verdict: &str, status: Option<u16>| {
        let mut json = serde_json::to_value(&explanation).unwrap();
        json["outcome"]["verdict"] = verdict.into();
        json["outcome"]["status"] = status.into();
        explain::ended(&serde_json::from_value(json).unwrap())
    };
    assert_eq!(ended("permitted", None), Outcome::Done);
    assert_eq!(ended("answered", Some(302)), Outcome::Done);
    assert_eq!(ended("answered", Some(404)), Outcome::Problem);
}

#[test]
fn status_is_one_page() {
    let mut printer = printer();
    status::print(&crate::admin::tests::status(), &mut printer).unwrap();
    check(&text(printer), include_str!("tests/status.txt"));
}

#[test]
fn objects_line_up() {
    let workload = Object::Workload(WorkloadRow {
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        workload: "web".to_owned(),
        node: Some("node-a".to_owned()),
        ips: vec!["10.1.0.5".parse().unwrap()],
        identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        ready: true,
        meshed: false,
    });
    let service = Object::Service(ServiceRow {
        namespace: "bank".to_owned(),
        name: "ledger".to_owned(),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        ports: vec![ServicePortRow {
            name: String::new(),
            port: 80,
            endpoints: vec![ServiceEndpoint {
                ip: "10.1.1.5".parse().unwrap(),
                port: 8080,
                ready: false,
                pod: Some("bank/ledger-0".to_owned()),
            }],
        }],
    });
    let show = |kind, objects: &[Object]| {
        let mut printer = printer();
        get::print(kind, objects, jiff::Timestamp::UNIX_EPOCH, &mut printer).unwrap();
        text(printer)
    };
    check(
        &show(Kind::Workloads, &[workload]),
        "\
POD         WORKLOAD  NODE    IPS       READY  MESHED  IDENTITY
shop/web-1  web       node-a  10.1.0.5  yes    no      spiffe://cluster.local/ns/shop/sa/web",
    );
    check(
        &show(Kind::Services, &[service]),
        "\
SERVICE      IPS        PORT  ENDPOINTS
bank/ledger  10.96.0.7  80    bank/ledger-0:8080 (not ready)",
    );
    check(&show(Kind::Policies, &[]), "no policies");
}

/// What `fairlead get` prints of objects.
fn listed(kind: Kind, objects: serde_json::Value) -> String {
    let objects: Vec<Object> = serde_json::from_value(objects).unwrap();
    let mut printer = printer();
    get::print(kind, &objects, jiff::Timestamp::UNIX_EPOCH, &mut printer).unwrap();
    text(printer)
}

#[test]
fn routes_have_a_line_for_each_rule() {
    let routes = serde_json::json!([{
        "kind": "Route", "route": "HTTPRoute", "namespace": "shop", "name": "web",
        "parents": ["shop/web:80"],
        "rules": [
            {
                "rule": "0", "matches": ["path /api and below"], "filters": ["CORS"],
                "backends": [
                    {"backend": "shop/web:80", "weight": 9},
                    {"backend": "shop/gone:80", "weight": 1, "invalid": "there is no Service"},
                ],
            },
            {"rule": "all", "matches": ["any path"], "backends": []},
        ],
        "problems": [],
    }]);
    check(
        &listed(Kind::Routes, routes),
        "\
ROUTE               OF           RULE  MATCHES              BACK ENDS                                                           PROBLEMS
HTTPRoute shop/web  shop/web:80  0     path /api and below  CORS, shop/web:80 90%, shop/gone:80 10% (500: there is no Service)  -
HTTPRoute shop/web  shop/web:80  all   any path             -                                                                   -",
    );
}

#[test]
fn endpoints_have_their_load_where_it_is_known() {
    let endpoints = serde_json::json!([
        {
            "kind": "Endpoint", "namespace": "shop", "service": "web", "port": 80,
            "address": "10.1.0.5:8080", "pod": "shop/web-1", "node": "b", "ready": true,
            "seen_by": "a", "health": "ejected", "ejected_for_ms": 12000, "ejections": 2,
            "in_flight": 3, "latency_us": 1500, "requests": 100, "failures": 7,
        },
        {
            "kind": "Endpoint", "namespace": "shop", "service": "web", "port": 80,
            "address": "10.1.0.6:8080", "ready": false,
        },
    ]);
    check(
        &listed(Kind::Endpoints, endpoints),
        "\
SERVICE      ENDPOINT       POD         NODE  READY  HEALTH           IN FLIGHT  LATENCY  REQUESTS  FAILED  EJECTIONS  SEEN BY
shop/web:80  10.1.0.5:8080  shop/web-1  b     yes    ejected for 12s  3          1.5ms    100       7       2          a
shop/web:80  10.1.0.6:8080  -           -     no     -                -          -        -         -       -          -",
    );
}

#[track_caller]
fn exits(result: anyhow::Result<Outcome>, expected: u8) {
    let code = exit_code(result, Colour::Never);
    let expected = std::process::ExitCode::from(expected);
    assert_eq!(format!("{code:?}"), format!("{expected:?}"));
}

#[test]
fn exit_codes_tell_how_it_ended() {
    let unreachable = ClientError::Unreachable {
        path: "/run/fairlead/agent.sock".into(),
        source: io::ErrorKind::NotFound.into(),
    };
    exits(Ok(Outcome::Done), 0);
    exits(Ok(Outcome::Problem), 1);
    exits(Err(unreachable.into()), 3);
    exits(Err(ClientError::Gone("reset".into()).into()), 3);
    exits(Err(ClientError::Refused("no such pod".into()).into()), 1);
    exits(Err(io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
    exits(Err(anyhow::anyhow!("whatever else")), 1);
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        vec!["fairlead"],
        vec!["fairlead", "flows", "--verdict", "maybe"],
        vec!["fairlead", "flows", "--since", "yesterday"],
        vec!["fairlead", "flows", "--status", "6x"],
        vec!["fairlead", "flows", "--path", "cart"],
        vec!["fairlead", "tap", "--sample", "0"],
        vec!["fairlead", "get", "everything"],
        vec![
            "fairlead",
            "agent",
            "--node",
            "n",
            "--source",
            "somewhere",
            "--ca",
            "dir:ca",
        ],
        vec!["fairlead", "explain", "a/b"],
        vec!["fairlead", "explain", "a/b", "c/d:80", "--header", "x"],
    ] {
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{arguments:?}");
    }
}

#[test]
fn every_flag_is_an_environment_variable() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands() {
        let flags = command.get_arguments().filter(|it| it.get_long().is_some());
        for flag in flags {
            let long = flag.get_long().unwrap_or_default();
            let name = format!("FAIRLEAD_{}", long.to_uppercase().replace('-', "_"));
            let env = flag.get_env().and_then(|it| it.to_str());
            assert_eq!(env, Some(&*name), "{} --{long}", command.get_name());
        }
    }
}

#[test]
fn colours_only_where_asked() {
    let always = Styles::of_stdout(Colour::Always);
    assert_eq!(always.paint(Paint::Bad, "x"), "\x1b[31mx\x1b[0m");
    assert_eq!(Styles::of_stdout(Colour::Never).paint(Paint::Bad, "x"), "x");
}

#[test]
fn names_cannot_move_the_cursor() {
    assert_eq!(harmless("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
}

#[test]
fn sizes_and_spans_are_short() {
    for (count, expected) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (u64::MAX, "16383.9 PiB"),
    ] {
        assert_eq!(bytes(count), expected);
    }
    for (milliseconds, expected) in [
        (0, "0ms"),
        (999, "999ms"),
        (1234, "1.2s"),
        (59_000, "59s"),
        (61_000, "1m1s"),
        (3_660_000, "1h1m"),
        (90_000_000, "1d1h"),
    ] {
        assert_eq!(span(milliseconds), expected);
    }
}
