use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri};

use super::{TapEvent, TapLoss, TapWish};
use crate::flow::request::tests::{ended, ends};
use crate::flow::{
    EndedRequest, Filter, FlowHub, FlowMetrics, FlowProtocol, FlowSender, Flows, queue,
};

fn hub() -> (FlowSender, FlowHub, Flows) {
    let (sender, receiver) = queue(4096, FlowMetrics::default());
    let (hub, flows) = FlowHub::new(receiver, 10);
    (sender, hub, flows)
}

/// Asks once, with a secret, and is answered.
fn ask(sender: &FlowSender, status: u16) {
    let uri = Uri::from_static("/cart/7?card=4111");
    let mut headers = HeaderMap::new();
    drop(headers.insert("cookie", HeaderValue::from_static("id=secret")));
    drop(headers.insert("x-request-id", HeaderValue::from_static("17")));
    let mut tap = sender.tap(&uri, &headers);
    let mut answer = HeaderMap::new();
    drop(answer.insert("server", HeaderValue::from_static("nginx")));
    if let Some(tap) = &mut tap {
        tap.answered(&answer);
    }
    let request = EndedRequest {
        tap,
        ..ended(status)
    };
    sender.requests(ends("web-1")).record(request);
}

#[tokio::test(start_paused = true)]
async fn nobody_taps_and_nothing_is_noted() {
    let (sender, _hub, flows) = hub();
    let noted = || {
        sender
            .tap(&Uri::from_static("/"), &HeaderMap::new())
            .is_some()
    };
    assert!(!noted());
    let tap = flows.taps().open(TapWish::default()).unwrap();
    assert!(noted());
    drop(tap);
    assert!(!noted());
}

#[tokio::test(start_paused = true)]
async fn headers_come_on_demand_and_without_secrets() {
    let (sender, hub, flows) = hub();
    let with = TapWish {
        headers: true,
        ..TapWish::default()
    };
    let mut with = flows.taps().open(with).unwrap();
    let mut without = flows.taps().open(TapWish::default()).unwrap();
    ask(&sender, 200);
    drop(sender);
    hub.run().await;
    let event = with.next().await.unwrap().unwrap();
    let json = serde_json::to_value(&event).unwrap();
    assert_eq!(json["http"]["path"], "/cart/7");
    assert_eq!(json["query"], "card=***");
    assert_eq!(
        json["request_headers"],
        serde_json::json!([
            {"name": "cookie", "value": "***"},
            {"name": "x-request-id", "value": "17"},
        ])
    );
    assert_eq!(
        json["response_headers"],
        serde_json::json!([{"name": "server", "value": "nginx"}])
    );
    assert_eq!(serde_json::from_value::<TapEvent>(json).unwrap(), *event);
    let event = without.next().await.unwrap().unwrap();
    assert!(event.request_headers.is_empty() && event.response_headers.is_empty());
    // What is kept has nothing of it.
    let kept = flows.recent(&Filter::default(), jiff::Timestamp::now());
    assert!(!format!("{kept:?}").contains("card"), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_are_shown_as_they_begin_to_those_who_want_that() {
    let (sender, hub, flows) = hub();
    let wish = |headers, status: &[&str]| TapWish {
        begin: true,
        headers,
        filter: Filter {
            status: status.iter().map(|it| it.parse().unwrap()).collect(),
            ..Filter::default()
        },
        ..TapWish::default()
    };
    let mut at_end = flows.taps().open(TapWish::default()).unwrap();
    let open = |uri: &'static str| {
        let uri = Uri::from_static(uri);
        let mut headers = HeaderMap::new();
        drop(headers.insert("cookie", HeaderValue::from_static("id=secret")));
        let tap = sender.tap(&uri, &headers).unwrap();
        let requests = sender.requests(ends("web-1"));
        let asked = ("ledger.bank", uri.path());
        requests.begun(FlowProtocol::Http2, &Method::GET, asked, &tap);
    };
    // Nobody wants it yet, which costs nothing.
    open("/early?x=1");
    assert_eq!(sender.waiting(), 0);
    let mut both = flows.taps().open(wish(true, &[])).unwrap();
    let mut errors = flows.taps().open(wish(false, &["5xx"])).unwrap();
    open("/chat?token=s3cret");
    ask(&sender, 500);
    drop(sender);
    hub.run().await;
    let begun = both.next().await.unwrap().unwrap();
    let json = serde_json::to_value(&begun).unwrap();
    assert_eq!(
        (&json["begun"], &json["http"]["status"]),
        (&true.into(), &0.into())
    );
    assert_eq!(
        (&json["http"]["path"], &json["query"]),
        (&"/chat".into(), &"token=***".into())
    );
    assert_eq!(begun.request_headers[0].value, "***");
    let ended = |event: TapEvent| !event.begun && event.flow.http.unwrap().status == 500;
    assert!(ended(*both.next().await.unwrap().unwrap()));
    // What only the end tells can't be waited for at the beginning.
    assert!(ended(*errors.next().await.unwrap().unwrap()));
    assert!(ended(*at_end.next().await.unwrap().unwrap()));
    // It is recorded once, when it ends.
    assert_eq!(
        flows
            .recent(&Filter::default(), jiff::Timestamp::now())
            .len(),
        1
    );
}

#[test]
fn requests_that_begin_leave_half_of_the_queue_to_records() {
    let (sender, receiver) = queue(4, FlowMetrics::default());
    let (_hub, flows) = FlowHub::new(receiver, 10);
    let wish = TapWish {
        begin: true,
        ..TapWish::default()
    };
    let _tap = flows.taps().open(wish).unwrap();
    let requests = sender.requests(ends("web-1"));
    for _ in 0..5 {
        let uri = Uri::from_static("/chat");
        let tap = sender.tap(&uri, &HeaderMap::new()).unwrap();
        requests.begun(FlowProtocol::Http2, &Method::GET, ("a", "/chat"), &tap);
    }
    assert_eq!((sender.waiting(), sender.dropped()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn only_what_was_asked_for_comes() {
    let (sender, hub, flows) = hub();
    let wish = |sample, rate| TapWish {
        filter: Filter {
            status: vec!["5xx".parse().unwrap()],
            ..Filter::default()
        },
        sample,
        rate,
        ..TapWish::default()
    };
    let mut sampled = flows.taps().open(wish(10, 100)).unwrap();
    let mut limited = flows.taps().open(wish(1, 3)).unwrap();
    for _ in 0..20 {
        ask(&sender, 200);
        ask(&sender, 503);
    }
    let task = tokio::task::JoinSet::from_iter([hub.run()]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    ask(&sender, 500);
    drop(sender);
    drop(task.join_all().await);
    for status in [503, 503, 500] {
        let event = sampled.next().await.unwrap().unwrap();
        assert_eq!(event.flow.http.map(|it| it.status), Some(status));
    }
    let loss = TapLoss {
        slow_reader: 0,
        over_rate: 17,
    };
    assert_eq!(limited.next().await, Some(Err(loss)));
    for _ in 0..4 {
        assert!(limited.next().await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_and_a_flood_are_counted_not_waited_for() {
    let (sender, hub, flows) = hub();
    let wish = TapWish {
        rate: u32::MAX,
        ..TapWish::default()
    };
    let headers = TapWish {
        headers: true,
        ..wish.clone()
    };
    let mut slow = flows.taps().open(wish).unwrap();
    let mut flooded = flows.taps().open(headers).unwrap();
    for _ in 0..2000 {
        ask(&sender, 200);
    }
    drop(sender);
    hub.run().await;
    let lost = |slow_reader, over_rate| TapLoss {
        slow_reader,
        over_rate,
    };
    assert_eq!(slow.next().await, Some(Err(lost(2000 - 1024, 0))));
    assert_eq!(flooded.next().await, Some(Err(lost(0, 2000 - 64))));
}

#[tokio::test]
async fn only_so_many_may_look() {
    let (_sender, _hub, flows) = hub();
    let open = || flows.taps().open(TapWish::default());
    let held: Vec<_> = (0..16).map(|_| open().unwrap()).collect();
    assert!(open().is_err());
    drop(held);
    assert!(open().is_ok());
}
