//! Connections to servers, kept between requests.
//!
//! ```text
//!              take()                       the answer has ended
//!   idle ────────────────► one request ──────────────────────────► idle     HTTP/1.1
//!   shared by the requests of one pod, as many as the server takes          HTTP/2
//! ```
//! Invariant: a connection belongs to one pod of this node, or to one connection of a client
//! of another node. No request of anybody else is sent on it, and none whose server is
//! reached another way by now.

mod http1;
mod http2;
mod websocket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use tokio::time::Instant;

pub(super) use self::http1::{Answer1, Http1};
pub(super) use self::http2::{Answer2, Http2};
pub(super) use self::websocket::Socket;
use super::body::{Body, BodyError};
use super::headers;
use super::io::Io;
use crate::proxy::config::Config;
use crate::proxy::lock::lock;
use crate::proxy::outcome::Outcome;
use crate::proxy::reach::Reached;
use crate::proxy::tasks::Tasks;

/// Which HTTP is spoken with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The connections of one client.
#[derive(Debug)]
pub(in crate::proxy) struct Upstreams {
    config: Arc<Config>,
    servers: Mutex<HashMap<Reached, Server>>,
}

/// The connections to one server.
#[derive(Debug, Default)]
struct Server {
    /// The latest last: the first to be used again, so that those not needed grow old.
    #[expect(clippy::vec_box, reason = "it goes in and out as it is, and is large")]
    idle: Vec<Box<Http1>>,
    shared: Vec<Arc<Http2>>,
    /// Held by whoever opens a connection of HTTP/2 that others may share; the last one that
    /// failed.
    opening: Arc<tokio::sync::Mutex<Option<Missed>>>,
}

/// A connection that did not come about.
#[derive(Debug)]
struct Missed {
    at: Instant,
    outcome: Outcome,
}

/// An answer, or an upgrade of the connection.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) response: Response<Body>,
    /// The connection itself, with what was read of it beyond the answer: the server has
    /// agreed to speak something else on it.
    pub(super) upgrade: Option<(Io, bytes::Bytes)>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) why: Why,
    /// The request, where nothing of it was sent.
    pub(super) request: Option<Box<Request<Body>>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Why {
    /// The server was not reached.
    Connect(Outcome),
    /// The connection ended before the head of an answer.
    Closed {
        /// Not one byte of an answer had come.
        silent: bool,
    },
    /// What came is no answer, or the stream was reset.
    Reset(BodyError),
    /// The client's own body broke off.
    Client,
    /// Nothing more of it came for too long.
    Slow,
    /// The server does not speak what the client of HTTP/2 asks for.
    Unsupported,
}

impl Upstreams {
    pub(in crate::proxy) fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self {
            config,
            servers: Mutex::default(),
        })
    }

    /// An idle connection of HTTP/1.1, as far as it is known.
    fn take(&self, to: &Reached) -> Option<Box<Http1>> {
        let mut servers = self.servers();
        let idle = &mut servers.get_mut(to)?.idle;
        let now = Instant::now();
        while let Some(mut connection) = idle.pop() {
            if connection.is_usable(now, self.config.http.upstream_idle) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    fn put_back(&self, connection: Box<Http1>) {
        let mut servers = self.servers();
        let server = servers.entry(connection.to().clone()).or_default();
        if server.idle.len() < self.config.http.idle_per_server {
            server.idle.push(connection);
        }
    }

    /// A connection of HTTP/2 that takes one more request.
    fn share(&self, to: &Reached) -> Option<http2::Place> {
        let servers = self.servers();
        let shared = &servers.get(to)?.shared;
        shared.iter().find_map(Http2::place)
    }

    fn keep_shared(&self, to: &Reached, connection: &Arc<Http2>) {
        let mut servers = self.servers();
        let shared = &mut servers.entry(to.clone()).or_default().shared;
        shared.retain(|connection| connection.is_open());
        shared.push(Arc::clone(connection));
    }

    fn opening(&self, to: &Reached) -> Arc<tokio::sync::Mutex<Option<Missed>>> {
        Arc::clone(&self.servers().entry(to.clone()).or_default().opening)
    }

    /// Drops what was not used for long, or was closed by its server.
    pub(in crate::proxy) fn sweep(&self) {
        let now = Instant::now();
        let limit = self.config.http.upstream_idle;
        let mut servers = self.servers();
        servers.retain(|_to, server| {
            server.idle.retain_mut(|it| it.is_usable(now, limit));
            server
                .shared
                .retain(|it| it.is_open() && !it.is_idle_for(now, limit));
            let opening = Arc::strong_count(&server.opening) > 1;
            opening || !server.idle.is_empty() || !server.shared.is_empty()
        });
    }

    /// Closes all that are idle; the others after their last request.
    pub(in crate::proxy) fn close(&self) {
        self.servers().clear();
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<Reached, Server>> {
        lock(&self.servers)
    }
}

/// How a connection to the server of a request is opened.
pub(super) trait Dial: Sync {
    /// Opens one.
    fn dial(&self) -> impl Future<Output = Result<Io, Outcome>> + Send;
}

/// Where one request is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit<'a> {
    pub(super) upstreams: &'a Arc<Upstreams>,
    pub(super) tasks: &'a Tasks,
    pub(super) to: &'a Reached,
    pub(super) version: Version,
    /// A server that takes no WebSocket in HTTP/2 is asked in HTTP/1.1: nobody has declared
    /// that it speaks HTTP/2.
    pub(super) falls_back: bool,
}

impl Exit<'_> {
    /// Sends the request and waits for the head of its answer; `dial` opens a connection
    /// where none can be used. Where a kept connection turns out to be closed, the request
    /// goes once more, on a new one: if nothing of it was sent, or doing it twice is the
    /// same as doing it once. Cancel safe: the request ends with this.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        dial: &impl Dial,
    ) -> Result<Sent, Failed> {
        match self.version {
            Version::Http1 => self.send1(request, dial).await,
            Version::Http2 => match self.send2(request, dial).await {
                Err(Failed {
                    why: Why::Unsupported,
                    request: Some(request),
                }) if self.falls_back => self.fall_back(*request, dial).await,
                done => done,
            },
        }
    }

    async fn fall_back(&self, request: Request<Body>, dial: &impl Dial) -> Result<Sent, Failed> {
        let (mut parts, body) = request.into_parts();
        let sent = headers::send(&mut parts, Version::Http1, true);
        let request = Request::from_parts(parts, body);
        if sent.is_err() {
            return Err(Failed::unsent(Why::Unsupported, request));
        }
        self.send1(request, dial).await
    }

    async fn send1(&self, mut request: Request<Body>, dial: &impl Dial) -> Result<Sent, Failed> {
        if !headers::is_extended(request.extensions()) {
            return self.ask1(request, dial).await;
        }
        let client = websocket::Client::take(&mut request);
        match self.ask1(request, dial).await {
            Ok(sent) => client.join(sent, self.tasks),
            Err(mut failed) => {
                if let Some(request) = &mut failed.request {
                    client.give_back(request);
                }
                Err(failed)
            }
        }
    }

    async fn ask1(&self, mut request: Request<Body>, dial: &impl Dial) -> Result<Sent, Failed> {
        if let Some(kept) = self.upstreams.take(self.to) {
            let again = repeatable(&request);
            match kept.send(request, self).await {
                Err(Failed {
                    why: Why::Closed { silent },
                    request: unsent,
                }) => match (unsent, again) {
                    (Some(unsent), _) => request = *unsent,
                    (None, Some(again)) if silent => request = again,
                    (None, _) => {
                        let (why, request) = (Why::Closed { silent }, None);
                        return Err(Failed { why, request });
                    }
                },
                done => return done,
            }
        }
        let io = match dial.dial().await {
            Ok(io) => io,
            Err(outcome) => return Err(Failed::unsent(Why::Connect(outcome), request)),
        };
        match Http1::open(self.to.clone(), io).await {
            Ok(connection) => connection.send(request, self).await,
            Err(error) => Err(Failed::unsent(Why::Reset(error.into()), request)),
        }
    }

    async fn send2(&self, mut request: Request<Body>, dial: &impl Dial) -> Result<Sent, Failed> {
        let mut kept = self.upstreams.share(self.to);
        loop {
            let (place, is_new) = match kept.take() {
                Some(place) => (place, false),
                None => match self.open2(dial).await {
                    Ok(opened) => opened,
                    Err(why) => return Err(Failed::unsent(why, request)),
                },
            };
            match place.send(request, self).await {
                Err(Failed {
                    why: Why::Reset(_),
                    request: Some(unsent),
                }) if !is_new => request = *unsent,
                done => return done,
            }
        }
    }

    /// A place on a new connection, or on one that somebody else has opened meanwhile.
    async fn open2(&self, dial: &impl Dial) -> Result<(http2::Place, bool), Why> {
        let opening = self.upstreams.opening(self.to);
        let asked = Instant::now();
        let mut turn = opening.lock().await;
        if let Some(place) = self.upstreams.share(self.to) {
            return Ok((place, false));
        }
        // Those who waited for one that failed do not each wait for another in turn.
        if let Some(missed) = &*turn
            && missed.at > asked
        {
            return Err(Why::Connect(missed.outcome.clone()));
        }
        let io = match dial.dial().await {
            Ok(io) => io,
            Err(outcome) => {
                *turn = Some(Missed {
                    at: Instant::now(),
                    outcome: outcome.clone(),
                });
                return Err(Why::Connect(outcome));
            }
        };
        let config = &self.upstreams.config.http;
        let connection = Http2::open(io, config, self.tasks).await;
        let connection = connection.map_err(|error| Why::Reset(error.into()))?;
        self.upstreams.keep_shared(self.to, &connection);
        let place = connection.first_place();
        Ok((place, true))
    }
}

impl Why {
    /// The client's own body has ended before its end.
    fn of_body(error: &BodyError) -> Self {
        match error {
            BodyError::Late(_) => Self::Slow,
            _ => Self::Client,
        }
    }
}

impl Sent {
    /// An answer without an upgrade.
    pub(super) fn whole(response: Response<Body>) -> Self {
        let upgrade = None;
        Self { response, upgrade }
    }
}

impl Failed {
    /// The request may no longer be; the server may have seen it.
    pub(super) fn revoked(outcome: Outcome) -> Self {
        let why = match outcome {
            Outcome::Denied { .. } => Why::Connect(outcome),
            _ => Why::Closed { silent: false },
        };
        let request = None;
        Self { why, request }
    }

    pub(super) fn unsent(why: Why, request: Request<Body>) -> Self {
        Self {
            why,
            request: Some(Box::new(request)),
        }
    }
}

/// The request once more, where doing it twice is the same as doing it once.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    use http_body::Body as _;
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    Some(copy)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::Request;
    use tokio::time::{Instant, sleep};

    use super::{Dial, Exit, Upstreams, Version, Why};
    use crate::model::NodeName;
    use crate::proxy::config::Config;
    use crate::proxy::http::body::Body;
    use crate::proxy::http::io::Io;
    use crate::proxy::outcome::{ConnectError, Outcome};
    use crate::proxy::reach::Way;
    use crate::proxy::tasks::Tasks;

    const LONG: Duration = Duration::from_secs(5);

    /// A server that nobody reaches; how often it was tried.
    struct Away(AtomicUsize);

    impl Dial for Away {
        async fn dial(&self) -> Result<Io, Outcome> {
            let _before = self.0.fetch_add(1, Ordering::Relaxed);
            sleep(LONG).await;
            Err(ConnectError::TimedOut.into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_connection_fail_with_it() {
        let config = Arc::new(Config::recommended(NodeName("a".into())));
        let (upstreams, tasks) = (Upstreams::new(config), Tasks::default());
        let to = Way::Passthrough.reached(([127, 0, 0, 1], 1).into());
        let exit = Exit {
            upstreams: &upstreams,
            tasks: &tasks,
            to: &to,
            version: Version::Http2,
            falls_back: true,
        };
        let away = Away(AtomicUsize::new(0));
        let send = || async {
            let failed = exit.send(Request::new(Body::empty()), &away).await;
            let failed = failed.unwrap_err();
            assert!(failed.request.is_some());
            assert!(matches!(failed.why, Why::Connect(Outcome::Connect(_))));
        };
        let begun = Instant::now();
        let _all = tokio::join!(send(), send(), send());
        assert_eq!(begun.elapsed(), LONG);
        assert_eq!(away.0.load(Ordering::Relaxed), 1);
        // Who comes later finds out anew.
        send().await;
        assert_eq!(away.0.load(Ordering::Relaxed), 2);
    }
}
