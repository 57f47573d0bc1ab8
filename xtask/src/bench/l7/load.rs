//! The load of requests: so many connections, each with so many requests at a time, whose
//! paths go through all routes in turn. Every answer is checked.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use h2::client::SendRequest;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;

use super::server::{SIZE, WINDOW, message};
use crate::bench::peer::percentile;
use crate::bench::process;

/// An answer that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1 with connections that are kept.
    #[value(name = "http1")]
    Http1,
    /// Unary calls of gRPC.
    Grpc,
}

/// What to ask, of whom and how fast.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadOptions {
    server: SocketAddr,
    protocol: Protocol,
    /// Bytes of an answer.
    #[arg(long)]
    size: usize,
    #[arg(long)]
    connections: usize,
    /// Requests at a time on one connection.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// The paths are of so many routes.
    #[arg(long)]
    routes: usize,
    /// Before anything is measured.
    #[arg(long)]
    warm_up: f64,
    #[arg(long)]
    seconds: f64,
    /// Requests a second of each stream, where not as many as can be had.
    #[arg(long)]
    rate: Option<f64>,
    /// Processes whose processor time and memory are measured meanwhile.
    #[arg(long)]
    pid: Vec<u32>,
}

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Requests {
    /// Answered in full and as expected.
    pub(in crate::bench) answered: u64,
    /// Not so, also before the measurement.
    pub(super) errors: u64,
    pub(in crate::bench) first_error: Option<String>,
    pub(in crate::bench) seconds: f64,
    pub(in crate::bench) p50_seconds: f64,
    pub(in crate::bench) p99_seconds: f64,
    /// Processor time of the processes.
    pub(super) cpu_seconds: f64,
    /// Memory of the processes at the end, with all connections open.
    pub(super) resident_bytes: u64,
}

/// What all streams share.
struct Shared {
    options: LoadOptions,
    next_route: Cell<usize>,
    begin: Instant,
    end: Instant,
}

/// Of one stream: seconds of each request, and what went wrong.
#[derive(Default)]
struct Tally {
    times: Vec<f64>,
    errors: Vec<String>,
}

/// Makes requests until the time is over.
pub(crate) fn load(options: &LoadOptions) -> Result<Requests> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(options.clone()))
}

async fn run(options: LoadOptions) -> Result<Requests> {
    let begin = Instant::now() + Duration::from_secs_f64(options.warm_up);
    let end = begin + Duration::from_secs_f64(options.seconds);
    let shared = Rc::new(Shared {
        options,
        next_route: Cell::new(0),
        begin,
        end,
    });
    let mut streams = JoinSet::new();
    let mut drivers = JoinSet::new();
    for _ in 0..shared.options.connections {
        connect(&shared, &mut streams, &mut drivers).await?;
    }
    let pids = &shared.options.pid;
    tokio::time::sleep_until(begin.into()).await;
    let before = process::cpu_time(pids)?;
    tokio::time::sleep_until(end.into()).await;
    let cpu = process::cpu_time(pids)?.saturating_sub(before);
    let resident_bytes = process::resident_bytes(pids)?;
    let mut all = Tally::default();
    while let Some(tally) = streams.join_next().await {
        let tally = tally?;
        all.times.extend(tally.times);
        all.errors.extend(tally.errors);
    }
    drivers.abort_all();
    all.times.sort_by(f64::total_cmp);
    Ok(Requests {
        answered: all.times.len() as u64,
        errors: all.errors.len() as u64,
        first_error: all.errors.into_iter().next(),
        seconds: shared.options.seconds,
        p50_seconds: percentile(&all.times, 50),
        p99_seconds: percentile(&all.times, 99),
        cpu_seconds: cpu.as_secs_f64(),
        resident_bytes,
    })
}

/// Opens one connection and starts its streams.
async fn connect(
    shared: &Rc<Shared>,
    streams: &mut JoinSet<Tally>,
    drivers: &mut JoinSet<()>,
) -> Result<()> {
    let server = shared.options.server;
    let stream = timeout(PATIENCE, TcpStream::connect(server)).await?;
    let stream = stream.with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    match shared.options.protocol {
        Protocol::Http1 => {
            let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let _driver = drivers.spawn_local(async move { drop(connection.await) });
            let shared = Rc::clone(shared);
            let _stream = streams.spawn_local(async move {
                let mut tally = Tally::default();
                shared
                    .repeat(&mut tally, async |request| http(&mut send, request).await)
                    .await;
                tally
            });
        }
        Protocol::Grpc => {
            let mut builder = h2::client::Builder::new();
            let builder = builder
                .initial_window_size(WINDOW)
                .initial_connection_window_size(WINDOW);
            let (send, connection) = builder.handshake::<_, Bytes>(stream).await?;
            let _driver = drivers.spawn_local(async move { drop(connection.await) });
            for _ in 0..shared.options.streams {
                let (shared, mut send) = (Rc::clone(shared), send.clone());
                let _stream = streams.spawn_local(async move {
                    let mut tally = Tally::default();
                    shared
                        .repeat(&mut tally, async |request| grpc(&mut send, request).await)
                        .await;
                    tally
                });
            }
        }
    }
    Ok(())
}

impl Shared {
    /// Asks again and again, until the time is over or the connection has ended.
    async fn repeat(
        &self,
        tally: &mut Tally,
        mut ask: impl AsyncFnMut(Request<()>) -> Result<usize>,
    ) {
        let mut next = Instant::now();
        while Instant::now() < self.end {
            let mut start = Instant::now();
            if let Some(rate) = self.options.rate {
                tokio::time::sleep_until(next.into()).await;
                // Also the wait for an answer that holds up the next request counts.
                start = next;
                next += Duration::from_secs_f64(1.0 / rate);
            }
            match self.check(timeout(PATIENCE, ask(self.request())).await) {
                Ok(()) if start >= self.begin => tally.times.push(start.elapsed().as_secs_f64()),
                Ok(()) => {}
                Err(error) => {
                    tally.errors.push(format!("{error:#}"));
                    return;
                }
            }
        }
    }

    fn check<E>(&self, answer: Result<Result<usize>, E>) -> Result<()> {
        let Ok(answer) = answer else {
            bail!("no answer within {PATIENCE:?}");
        };
        let (size, expected) = (answer?, self.options.size);
        if size != expected {
            bail!("{size} bytes instead of {expected}");
        }
        Ok(())
    }

    fn request(&self) -> Request<()> {
        let route = self.next_route.get();
        self.next_route.set((route + 1) % self.options.routes);
        let mut request = Request::new(());
        let (method, path) = match self.options.protocol {
            Protocol::Http1 => (Method::GET, format!("/r/{route}")),
            Protocol::Grpc => (Method::POST, format!("http://bench/bench.Echo{route}/Get")),
        };
        *request.method_mut() = method;
        // The paths above are valid.
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        let headers = request.headers_mut();
        let _none = headers.insert(SIZE, self.options.size.into());
        if self.options.protocol == Protocol::Grpc {
            let kind = http::HeaderValue::from_static("application/grpc");
            let _none = headers.insert(http::header::CONTENT_TYPE, kind);
            let trailers = http::HeaderValue::from_static("trailers");
            let _none = headers.insert(http::header::TE, trailers);
        } else {
            let host = http::HeaderValue::from_static("bench");
            let _none = headers.insert(http::header::HOST, host);
        }
        request
    }
}

fn check_status<T>(response: &Response<T>) -> Result<()> {
    if response.status() != StatusCode::OK {
        let reason = response.headers().get("fairlead-reason");
        bail!("answered {} {reason:?}", response.status());
    }
    Ok(())
}

/// The length of the answer's body.
async fn http(send: &mut http1::SendRequest<Empty<Bytes>>, request: Request<()>) -> Result<usize> {
    let response = send.send_request(request.map(|()| Empty::new())).await?;
    check_status(&response)?;
    let mut body = response.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(size)
}

/// The length of the answer's message.
async fn grpc(send: &mut SendRequest<Bytes>, request: Request<()>) -> Result<usize> {
    std::future::poll_fn(|cx| send.poll_ready(cx)).await?;
    let (response, mut body) = send.send_request(request, false)?;
    body.send_data(message(&[]), true)?;
    let response = response.await?;
    check_status(&response)?;
    let (head, mut body) = response.into_parts();
    let mut size: usize = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        size += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    if trailers.get("grpc-status").is_none_or(|it| it != "0") {
        // An answer without a message has its status in the head.
        bail!("the call failed: {:?} {trailers:?}", head.headers);
    }
    Ok(size.saturating_sub(5))
}
