//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::authority::{AuthorityFigures, AuthorityMetrics};
use super::health::Health;
use super::seats::{Seats, Source};
use super::view::View;
use crate::flow::FlowMetrics;

/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection, which is for one request, ends after this time: one that does not read
/// would keep its place.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The HTTP side, bound and ready to run.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    state: Arc<State>,
}

struct State {
    registry: Registry,
    not_ready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl HttpServer {
    /// Serves the metrics and the health of what the view shows.
    pub fn new(listener: TcpListener, metrics: &FlowMetrics, view: Arc<dyn View>) -> Self {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        registry.register_collector(Box::new(Health(Arc::clone(&view))));
        let not_ready = Box::new(move || view.status().not_ready);
        Self {
            listener,
            state: Arc::new(State {
                registry,
                not_ready,
            }),
        }
    }

    /// Serves the health and the metrics of a certificate authority, which has no view; it
    /// is ready where there is no reason why it is not.
    pub fn of_authority(
        listener: TcpListener,
        not_ready: impl Fn() -> Vec<String> + Send + Sync + 'static,
        figures: impl Fn() -> AuthorityFigures + Send + Sync + 'static,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(AuthorityMetrics::of(figures)));
        Self {
            listener,
            state: Arc::new(State {
                registry,
                not_ready: Box::new(not_ready),
            }),
        }
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        let mut seats = Seats::default();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let source = stream.local_addr().map(|local| Source::of(peer, local));
                        // One without an address has ended already.
                        if let Ok(source) = source
                            && seats.make_room(source)
                        {
                            let serve = serve(stream, Arc::clone(&self.state));
                            seats.take(source, connections.spawn(serve));
                        }
                    }
                    Err(error) => {
                        // Such as EMFILE: wait for descriptors, do not spin.
                        tracing::warn!(%error, "cannot accept on the metrics address");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&state, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection to the metrics address ended early");
        }
        Err(_elapsed) => tracing::debug!("a connection to the metrics address was cut off"),
    }
}

fn respond(state: &State, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match path {
        "/metrics" => metrics(state),
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => ready(&(state.not_ready)()),
        _ => {
            let known = "try /metrics, /healthz or /readyz\n";
            text(StatusCode::NOT_FOUND, known.to_owned())
        }
    }
}

fn metrics(state: &State) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match encode(&mut body, &state.registry) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, body);
            let kind = http::HeaderValue::from_static(OPEN_METRICS);
            drop(response.headers_mut().insert(CONTENT_TYPE, kind));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn ready(not_ready: &[String]) -> Response<Full<Bytes>> {
    if not_ready.is_empty() {
        return text(StatusCode::OK, "ok\n".to_owned());
    }
    let reasons = not_ready.iter().map(|reason| format!("{reason}\n"));
    text(StatusCode::SERVICE_UNAVAILABLE, reasons.collect())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    drop(response.headers_mut().insert(CONTENT_TYPE, kind));
    response
}
