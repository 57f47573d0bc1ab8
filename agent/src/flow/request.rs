//! What the proxy says of a request when it has ended, in the form that costs the least.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use jiff::Timestamp;

use super::event::{
    Destination, Direction, FlowEvent, FlowProtocol, HttpFlow, Source, TlsState, Verdict,
};
use super::metrics::OpenLabels;
use super::requests::RequestSeries;
use super::sender::FlowSender;
use super::tap::Tapped;
use super::text;
use crate::policy::Ended;

/// What all requests of one connection to one server have in common.
#[derive(Clone, Debug)]
pub struct RequestEnds {
    /// The node that reports.
    pub node: Arc<str>,
    /// Which side.
    pub direction: Direction,
    /// The client.
    pub source: Source,
    /// The server that the request went to; without a pod where none was chosen.
    pub destination: Destination,
    /// How it crossed the network.
    pub tls: TlsState,
    /// Of the connection that the client made.
    pub connection_id: Arc<str>,
}

/// One request that has ended. Borrows what is copied only once it is recorded.
#[derive(Debug)]
pub struct EndedRequest<'a> {
    /// `http`, `http2` or `grpc`.
    pub protocol: FlowProtocol,
    /// As the client sent it.
    pub method: &'a Method,
    /// As the client sent it. From `?` on it is not recorded: queries carry secrets.
    pub path: &'a str,
    /// Without its port.
    pub host: &'a str,
    /// Of the answer that the client got; 0 where it got none.
    pub status: u16,
    /// Of the trailers or the head of a gRPC answer.
    pub grpc_status: Option<u16>,
    /// How often it was sent again.
    pub retries: u32,
    /// The label of the rule that matched.
    pub route: Option<Arc<str>>,
    /// The endpoint that gave the answer, or was asked last.
    pub upstream: Option<SocketAddr>,
    /// How it ended.
    pub verdict: Verdict,
    /// Why, in a fixed word; a longer text may follow after `: `.
    pub reason: Cow<'static, str>,
    /// The policy that decided, with its rule.
    pub policy: Option<Arc<str>>,
    /// Dry-run and AUDIT policies that matched.
    pub audit: Vec<Arc<str>>,
    /// Bytes of the request's body.
    pub bytes_sent: u64,
    /// Bytes of the answer's body.
    pub bytes_received: u64,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// What [`FlowSender::tap`] noted at its start.
    pub tap: Option<Box<Tapped>>,
}

/// Takes the requests between two ends. Kept for as long as the ends are the same: then a
/// request costs two atomic additions and one short copy.
#[derive(Clone, Debug)]
pub struct RequestFlow {
    sender: FlowSender,
    ends: Arc<RequestEnds>,
    /// Of HTTP/1.1, HTTP/2 and gRPC, each made with its first request.
    series: [OnceLock<Arc<RequestSeries>>; 3],
}

impl RequestFlow {
    pub(super) fn new(sender: FlowSender, ends: RequestEnds) -> Self {
        Self {
            sender,
            ends: Arc::new(ends),
            series: Default::default(),
        }
    }

    /// The ends that it was made with.
    pub fn ends(&self) -> &RequestEnds {
        &self.ends
    }

    /// Shows that a request begins to those who look on, if anybody does: `tap` is what was
    /// noted for them. It is recorded when it ends.
    pub fn begun(
        &self,
        protocol: FlowProtocol,
        method: &Method,
        asked: (&str, &str),
        tap: &Tapped,
    ) {
        let (host, path) = asked;
        self.sender.show_begun(|| RequestRecord {
            ends: Arc::clone(&self.ends),
            time: Timestamp::now(),
            protocol,
            method: text::method(method),
            path: text::path(path),
            host: text::host(host),
            status: 0,
            grpc_status: None,
            retries: 0,
            route: None,
            upstream: None,
            verdict: Verdict::Forwarded,
            reason: "begun".into(),
            policy: None,
            audit: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
            tap: Some(Box::new(tap.clone())),
        });
    }

    /// Counts the request and records it. Never waits: where the queue is full, the record
    /// is lost and counted as such, and the metrics stay exact.
    pub fn record(&self, request: EndedRequest<'_>) {
        let series = self.series(request.protocol);
        series.observe(request.status, request.grpc_status, request.duration);
        self.sender.enqueue_request(RequestRecord {
            ends: Arc::clone(&self.ends),
            time: Timestamp::now(),
            protocol: request.protocol,
            method: text::method(request.method),
            path: text::path(request.path),
            host: text::host(request.host),
            status: request.status,
            grpc_status: request.grpc_status,
            retries: request.retries,
            route: request.route,
            upstream: request.upstream,
            verdict: request.verdict,
            reason: request.reason,
            policy: request.policy,
            audit: request.audit,
            bytes_sent: request.bytes_sent,
            bytes_received: request.bytes_received,
            duration: request.duration,
            tap: request.tap,
        });
    }

    fn series(&self, protocol: FlowProtocol) -> &Arc<RequestSeries> {
        let slot = match protocol {
            FlowProtocol::Http2 => 1,
            FlowProtocol::Grpc => 2,
            FlowProtocol::Http | FlowProtocol::Tcp | FlowProtocol::Tls => 0,
        };
        self.series[slot].get_or_init(|| {
            self.sender.request_series(&OpenLabels {
                direction: self.ends.direction,
                source: &self.ends.source,
                destination: &self.ends.destination,
                protocol,
                tls: self.ends.tls,
            })
        })
    }
}

/// A request as it is kept: a [`FlowEvent`] is made of it only for who asks.
#[derive(Debug)]
pub(super) struct RequestRecord {
    pub(super) ends: Arc<RequestEnds>,
    pub(super) time: Timestamp,
    protocol: FlowProtocol,
    method: Method,
    path: Box<str>,
    host: Box<str>,
    status: u16,
    grpc_status: Option<u16>,
    retries: u32,
    route: Option<Arc<str>>,
    upstream: Option<SocketAddr>,
    verdict: Verdict,
    reason: Cow<'static, str>,
    policy: Option<Arc<str>>,
    pub(super) audit: Vec<Arc<str>>,
    bytes_sent: u64,
    bytes_received: u64,
    duration: Duration,
    /// Goes before it is kept.
    pub(super) tap: Option<Box<Tapped>>,
}

impl RequestRecord {
    /// How it ended, as far as it matters to the access log.
    pub(super) fn ended(&self) -> Ended {
        Ended {
            forwarded: self.verdict == Verdict::Forwarded,
            status: Some(self.status),
            grpc_status: self.grpc_status,
        }
    }

    pub(super) fn event(&self) -> FlowEvent {
        let ends = &*self.ends;
        FlowEvent {
            time: self.time,
            node: Arc::clone(&ends.node),
            direction: ends.direction,
            source: ends.source.clone(),
            destination: ends.destination.clone(),
            protocol: self.protocol,
            tls: ends.tls,
            verdict: self.verdict,
            reason: self.reason.clone().into_owned(),
            policy: self.policy.clone(),
            audit: self.audit.clone(),
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            duration_ms: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            connection_id: ends.connection_id.to_string(),
            kernel: None,
            http: Some(HttpFlow {
                method: self.method.as_str().into(),
                path: (*self.path).into(),
                host: (*self.host).into(),
                status: self.status,
                grpc_status: self.grpc_status,
                retries: self.retries,
                route: self.route.clone(),
                upstream: self.upstream,
            }),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::flow::tests::event;
    use crate::flow::{FlowMetrics, queue};

    pub(in crate::flow) fn ends(pod: &str) -> RequestEnds {
        let event = event();
        RequestEnds {
            node: event.node,
            direction: event.direction,
            source: Source {
                pod: Some(pod.into()),
                ..event.source
            },
            destination: event.destination,
            tls: event.tls,
            connection_id: "1".into(),
        }
    }

    pub(crate) fn ended(status: u16) -> EndedRequest<'static> {
        EndedRequest {
            protocol: FlowProtocol::Http2,
            method: &Method::GET,
            path: "/cart/7?card=4111",
            host: "ledger.bank",
            status,
            grpc_status: None,
            retries: 1,
            route: Some("HTTPRoute bank/ledger#0".into()),
            upstream: Some(([10, 1, 1, 5], 8080).into()),
            verdict: Verdict::Forwarded,
            reason: "answered".into(),
            policy: None,
            audit: Vec::new(),
            bytes_sent: 10,
            bytes_received: 20,
            duration: Duration::from_micros(1500),
            tap: None,
        }
    }

    /// A record of one pod, with a number for its bytes.
    pub(in crate::flow) fn record(pod: &str, number: u64) -> RequestRecord {
        let (sender, mut receiver) = queue(1, FlowMetrics::default());
        sender.requests(ends(pod)).record(EndedRequest {
            bytes_sent: number,
            ..ended(200)
        });
        match receiver.try_take() {
            Some(crate::flow::sender::Recorded::Request(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_a_record_with_its_ends() {
        let event = record("web-1", 10).event();
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json["http"],
            serde_json::json!({
                "method": "GET", "path": "/cart/7", "host": "ledger.bank", "status": 200,
                "retries": 1, "route": "HTTPRoute bank/ledger#0", "upstream": "10.1.1.5:8080",
            })
        );
        assert_eq!(json["protocol"], "http2");
        assert_eq!(json["source"]["pod"], "web-1");
        assert_eq!(json["duration_ms"], 1);
        assert_eq!(serde_json::from_value::<FlowEvent>(json).unwrap(), event);
    }

    #[test]
    fn what_the_queue_cannot_take_is_counted() {
        let (sender, _receiver) = queue(1, FlowMetrics::default());
        let requests = sender.requests(ends("web-1"));
        for _ in 0..3 {
            requests.record(ended(200));
        }
        assert_eq!(sender.dropped(), 2);
    }
}
