//! Serving HTTP to a client: one task for a connection, whatever comes on it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::detect::Speaks;
use super::interim::Hints;
use super::io::{Io, Meter};
use super::owed::Owed;
use super::pump::{Of, Pump, Stopped};
use super::record::Exchange;
use super::reply::is_grpc;
use super::strict::Strict;
use super::switched::Switched;
use crate::flow::FlowProtocol;
use crate::proxy::config::{Config, HttpConfig, KNOWN_RESETS, PEER_ERRORS, frame_budget};
use crate::proxy::cork::Cork;
use crate::proxy::lock::lock;
use crate::proxy::network::PodNetwork;
use crate::proxy::outcome::Outcome;
use crate::proxy::reach::Stream;
use crate::proxy::record::{Near, Record};

/// From one look at a long connection to the next, for its metrics.
const TICK: Duration = Duration::from_secs(15);
/// For a client that has still to read why it was refused.
const LINGER: Duration = Duration::from_secs(1);

/// What a client hears that speaks no HTTP.
const NOT_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nfairlead-reason: not_http\r\n\
content-length: 0\r\nconnection: close\r\n\r\n";

/// What is done with a client's requests.
pub(in crate::proxy) trait Handler: Send + Sync + 'static {
    /// Answers one. Dropped when the client gives it up.
    fn handle(&self, request: Request<Body>) -> impl Future<Output = Answer> + Send;
}

/// An answer, after which the connection may be another's.
#[derive(Debug)]
pub(in crate::proxy) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) upgrade: Option<Box<Upgrade>>,
}

/// Both ends have agreed to speak something else on their connections.
#[derive(Debug)]
pub(in crate::proxy) struct Upgrade {
    /// The connection to the server.
    pub(super) io: Io,
    /// Read of it already.
    pub(super) read: Bytes,
    /// The request that has led there.
    pub(super) exchange: Box<Exchange>,
}

/// A client's connection.
pub(in crate::proxy) struct Client<'a> {
    pub(in crate::proxy) stream: Stream,
    /// What its first bytes were.
    pub(in crate::proxy) speaks: Speaks,
    /// Cancelled when it is to end after the requests that it has.
    pub(in crate::proxy) leaving: &'a CancellationToken,
    pub(in crate::proxy) config: &'a Config,
    /// That of the pod at this node's end.
    pub(in crate::proxy) network: &'a dyn PodNetwork,
}

/// How HTTP has ended on a connection.
pub(super) enum Served {
    /// With it.
    Over(Outcome),
    /// It carries something else from here on.
    Switched(Box<Switched>),
}

/// Serves a client until it has ended, or `revoked` says why it must.
pub(in crate::proxy) async fn serve(
    client: Client<'_>,
    handler: Arc<impl Handler>,
    revoked: impl Future<Output = Outcome> + Send,
    record: &mut Record,
) -> Outcome {
    let meter = Arc::new(Meter::default());
    let Client {
        stream,
        speaks,
        leaving,
        config,
        network,
    } = client;
    let limits = &config.http;
    let io = Io::metered(stream, Arc::clone(&meter));
    let protocol = match speaks {
        Speaks::Http2 => FlowProtocol::Http2,
        Speaks::Http1 | Speaks::Other => FlowProtocol::Http,
    };
    record.carries(protocol);
    record.connected(Near::Client);
    let mut serving = pin!(async {
        match speaks {
            Speaks::Http2 => Served::Over(Box::pin(http2(io, handler, leaving, limits)).await),
            Speaks::Http1 | Speaks::Other => Box::pin(http1(io, handler, leaving, limits)).await,
        }
    });
    let mut revoked = pin!(revoked);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let served = loop {
        let counted = poll_fn(|cx| {
            let served = serving.as_mut().poll(cx);
            record.moved = meter.moved();
            record.account();
            served
        });
        tokio::select! {
            biased;
            outcome = &mut revoked => break Served::Over(outcome),
            served = counted => break served,
            _now = tick.tick() => {
                record.progress();
            }
        }
    };
    match served {
        Served::Over(outcome) => outcome,
        Served::Switched(switched) => switched.relay(revoked, (network, config), record).await,
    }
}

/// Refuses a client that speaks no HTTP where that is declared.
pub(in crate::proxy) async fn not_http(stream: Stream) -> Outcome {
    let mut io = Io::new(stream);
    if io.write_all(NOT_HTTP).await.is_ok() && io.shutdown().await.is_ok() {
        linger(&mut io).await;
    }
    Outcome::BadRequest("not HTTP, where that is declared")
}

/// Ends the connection of a client that has said nothing.
pub(in crate::proxy) async fn let_go(stream: Stream) -> Outcome {
    match Io::new(stream).shutdown().await {
        Ok(()) => Outcome::Closed,
        Err(_reset) => Outcome::ClientReset,
    }
}

/// HTTP/1.1, and what it turns into.
pub(super) async fn http1(
    io: Io,
    handler: Arc<impl Handler>,
    leaving: &CancellationToken,
    config: &HttpConfig,
) -> Served {
    let upgraded = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&upgraded);
    let owed = Owed::default();
    let debts = owed.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (handler, slot) = (Arc::clone(&handler), Arc::clone(&slot));
        let debt = debts.begin();
        async move {
            let answer = handler.handle(request.map(Body::http1)).await;
            if answer.upgrade.is_some() {
                *lock(&slot) = answer.upgrade;
            }
            Ok::<_, Infallible>(answer.response.map(|body| debt.pay(body)))
        }
    });
    let mut builder = http1::Builder::new();
    let _same = builder
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_header_size(config.head_bytes);
    let strict = Strict::new(io, config, owed);
    let mut connection = builder.serve_connection(TokioIo::new(strict), service);
    let ended = {
        let mut leave = pin!(leaving.cancelled());
        let mut left = false;
        poll_fn(|cx| {
            // Read first: told to end before it has, a connection ends with its first request
            // unanswered.
            let polled = Pin::new(&mut connection).poll(cx);
            if polled.is_ready() || left || leave.as_mut().poll(cx).is_pending() {
                return polled;
            }
            left = true;
            Pin::new(&mut connection).graceful_shutdown();
            Pin::new(&mut connection).poll(cx)
        })
        .await
    };
    let parts = connection.into_parts();
    let strict = parts.io.into_inner();
    let (spoiled, stalled) = (strict.is_spoiled(), strict.is_stalled());
    let mut io = strict.into_inner();
    let upgrade = lock(&upgraded).take();
    Served::Over(match (ended, upgrade) {
        // What was sent before the server agreed was read as if it were another request.
        (Ok(()), Some(_)) if spoiled => Outcome::BadRequest("bytes ahead of an upgrade"),
        (Ok(()), Some(upgrade)) => {
            return Served::Switched(Box::new(Switched {
                near: io,
                said: parts.read_buf,
                upgrade,
            }));
        }
        (Ok(()), None) => {
            linger(&mut io).await;
            Outcome::Closed
        }
        (Err(_), _) if stalled => Outcome::IdleTimeout,
        (Err(error), _) if error.is_parse() => {
            // The refusal was written; a reset would take it back.
            if io.shutdown().await.is_ok() {
                linger(&mut io).await;
            }
            Outcome::BadRequest("not a request of HTTP/1.1")
        }
        (Err(error), _) if error.is_user() => Outcome::ServerReset,
        (Err(_), _) => Outcome::ClientReset,
    })
}

/// After our end: a client that still sends would be answered with a reset, and could lose
/// what it has not read yet.
async fn linger(io: &mut Io) {
    let drained = async {
        let mut scratch = [0; 1024];
        while matches!(io.read(&mut scratch).await, Ok(count) if count > 0) {}
    };
    let _over = tokio::time::timeout(LINGER, drained).await.is_ok();
}

/// HTTP/2.
pub(super) async fn http2(
    io: Io,
    handler: Arc<impl Handler>,
    leaving: &CancellationToken,
    config: &HttpConfig,
) -> Outcome {
    let mut builder = h2::server::Builder::new();
    let _same = builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(config.frame_size)
        .data_frame_budget(frame_budget(config.connection_window))
        .max_concurrent_reset_streams(KNOWN_RESETS)
        .max_local_error_reset_streams(Some(PEER_ERRORS))
        .max_header_list_size(config.header_list)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_pending_accept_reset_streams(config.pending_resets)
        .max_send_buffer_size(config.send_buffer)
        .enable_connect_protocol();
    let (cork, corked) = Cork::new(io);
    let handshake = tokio::time::timeout(config.head_timeout, builder.handshake(corked));
    let mut connection = match handshake.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if error.is_io() => return Outcome::ClientReset,
        Ok(Err(_)) => return Outcome::BadRequest("not HTTP/2"),
        Err(_elapsed) => return Outcome::BadRequest("no settings of HTTP/2 in time"),
    };
    let mut streams = FuturesUnordered::new();
    let mut left = false;
    let mut resets = 0;
    let mut idle_since = Instant::now();
    let mut idle = pin!(tokio::time::sleep(config.client_idle));
    loop {
        tokio::select! {
            biased;
            () = leaving.cancelled(), if !left => {
                left = true;
                connection.graceful_shutdown();
            }
            Some(ended) = streams.next(), if !streams.is_empty() => {
                idle_since = Instant::now();
                match ended {
                    Ended::Answered => resets = u32::saturating_sub(resets, 1),
                    Ended::Reset => {
                        resets += 1;
                        if resets > config.max_resets {
                            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                        }
                    }
                }
            },
            request = cork.drive(connection.accept()) => match request {
                Some(Ok((request, respond))) => {
                    let limit = config.body_idle;
                    streams.push(stream(Arc::clone(&handler), request, respond, limit));
                }
                Some(Err(error)) if error.is_io() => return Outcome::ClientReset,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's connection ended");
                    return Outcome::BadRequest("a connection error of HTTP/2");
                }
                None => return Outcome::Closed,
            },
            () = &mut idle, if streams.is_empty() => {
                let end = idle_since + config.client_idle;
                if Instant::now() < end {
                    idle.as_mut().reset(end);
                } else if left {
                    return Outcome::Closed;
                } else {
                    left = true;
                    connection.graceful_shutdown();
                    idle.as_mut().reset(Instant::now() + config.head_timeout);
                }
            }
        }
    }
}

/// How one request of HTTP/2 ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// With an answer, or the beginning of one.
    Answered,
    /// The client gave it up before.
    Reset,
}

/// One request of HTTP/2, to the end of its answer.
async fn stream(
    handler: Arc<impl Handler>,
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    limit: Duration,
) -> Ended {
    let is_head = request.method() == Method::HEAD;
    let silence = (!may_be_silent(&request)).then_some(limit);
    let hints = Hints::of(&mut request);
    let request = request.map(|body| Body::http2(body, silence));
    let mut answer = pin!(handler.handle(request));
    let answer = loop {
        tokio::select! {
            biased;
            _reset = poll_fn(|cx| respond.poll_reset(cx)) => return Ended::Reset,
            hint = hints.next() => if let Err(error) = respond.send_informational(hint) {
                tracing::debug!(%error, "a hint was not delivered");
            },
            answer = &mut answer => break answer,
        }
    };
    let (parts, mut body) = answer.response.into_parts();
    if is_head {
        body = Body::empty();
    }
    let head = Response::from_parts(parts, ());
    let at_end = body.is_end_stream();
    let send = match respond.send_response(head, at_end) {
        Ok(send) => send,
        Err(error) => {
            tracing::debug!(%error, "an answer was not delivered");
            return Ended::Reset;
        }
    };
    if at_end {
        return Ended::Answered;
    }
    let mut pump = Pump::new(Of::Answer, body, send).within(limit);
    match poll_fn(|cx| pump.poll(cx)).await {
        Ok(()) => {}
        Err(Stopped::Source(error)) => tracing::debug!(%error, "an answer broke off"),
        Err(Stopped::Sink(error)) => tracing::debug!(%error, "an answer was not taken"),
    }
    Ended::Answered
}

/// What its client has to say may come at any time: there are calls that wait for hours.
fn may_be_silent<B>(request: &Request<B>) -> bool {
    let streams = |kind: &[u8]| kind.starts_with(b"application/connect+");
    request.method() == Method::CONNECT
        || is_grpc(request.headers())
        || request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| streams(kind.as_bytes()))
}
