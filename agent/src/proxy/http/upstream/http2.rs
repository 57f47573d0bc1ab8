//! One connection of HTTP/2 to a server, shared by the requests of one client.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::{Exit, Failed, Sent, Why, websocket};
use crate::proxy::config::{HttpConfig, KNOWN_RESETS, PEER_ERRORS, frame_budget};
use crate::proxy::cork::Cork;
use crate::proxy::http::body::Body;
use crate::proxy::http::headers;
use crate::proxy::http::interim::Interim;
use crate::proxy::http::io::Io;
use crate::proxy::http::pump::{Of, Pump, Stopped};
use crate::proxy::lock::lock;
use crate::proxy::tasks::Tasks;
use crate::proxy::tunnel::Under;

/// For a server to say what it can do.
const PATIENCE: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
pub(in crate::proxy::http) struct Http2 {
    sender: SendRequest<Bytes>,
    /// For as long as it is not known what the server can do.
    ping: tokio::sync::Mutex<Option<PingPong>>,
    /// Its driver runs, and it takes new requests.
    open: Arc<AtomicBool>,
    load: AtomicUsize,
    limit: usize,
    idle_since: Mutex<Instant>,
    under: Option<Under>,
    /// How long it is kept, where its Service says so.
    idle: Option<Duration>,
}

/// The place of one request on it.
#[derive(Debug)]
pub(super) struct Place(Arc<Http2>);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.load.fetch_sub(1, Ordering::Relaxed) == 1 {
            *lock(&self.0.idle_since) = Instant::now();
        }
    }
}

/// Tells that the connection takes no more, when its driver ends.
struct Closes(Arc<AtomicBool>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Http2 {
    /// On a stream that nothing was said on yet. A task drives it until it has ended.
    pub(super) async fn open(
        io: Io,
        config: &HttpConfig,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, h2::Error> {
        let (under, idle) = (io.under(), io.idle());
        io.give_up_after(config.upstream_unacknowledged);
        let mut builder = Builder::new();
        let _same = builder
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .max_frame_size(config.frame_size)
            .data_frame_budget(frame_budget(config.connection_window))
            .max_concurrent_reset_streams(KNOWN_RESETS)
            .max_local_error_reset_streams(Some(PEER_ERRORS))
            .max_header_list_size(config.header_list)
            .enable_push(false);
        let (cork, corked) = Cork::new(io);
        let (sender, mut connection) = builder.handshake::<_, Bytes>(corked).await?;
        let ping = tokio::sync::Mutex::new(connection.ping_pong());
        let open = Arc::new(AtomicBool::new(true));
        let closes = Closes(Arc::clone(&open));
        tasks.spawn(async move {
            if let Err(error) = cork.drive(connection).await {
                tracing::debug!(%error, "an upstream connection ended");
            }
            drop(closes);
        });
        Ok(Arc::new(Self {
            sender,
            ping,
            open,
            load: AtomicUsize::new(0),
            limit: config.streams_per_connection,
            idle_since: Mutex::new(Instant::now()),
            under,
            idle,
        }))
    }

    pub(super) fn is_open(&self) -> bool {
        let current = self.under.as_ref().is_none_or(Under::is_current);
        current && self.open.load(Ordering::Relaxed)
    }

    /// The server takes an extended CONNECT (RFC 8441).
    async fn takes_extended(&self) -> bool {
        if self.sender.is_extended_connect_protocol_enabled() {
            return true;
        }
        // Its settings come before whatever else it says.
        let mut ping = self.ping.lock().await;
        if let Some(pinging) = &mut *ping
            && let Ok(Ok(_pong)) = timeout(PATIENCE, pinging.ping(Ping::opaque())).await
        {
            *ping = None;
        }
        self.sender.is_extended_connect_protocol_enabled()
    }

    pub(super) fn is_idle_for(&self, now: Instant, limit: Duration) -> bool {
        let idle_since = *lock(&self.idle_since);
        let limit = self.idle.unwrap_or(limit);
        self.load.load(Ordering::Relaxed) == 0 && now.duration_since(idle_since) >= limit
    }

    /// A place for one more request.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit.min(self.sender.current_max_send_streams());
        if !self.is_open() || self.load.load(Ordering::Relaxed) >= limit.max(1) {
            return None;
        }
        Some(self.first_place())
    }

    /// The place of the one who opened it.
    pub(super) fn first_place(self: &Arc<Self>) -> Place {
        let _before = self.load.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(self))
    }
}

impl Place {
    /// Sends the request and waits for the head of its answer.
    pub(super) async fn send(
        self,
        mut request: Request<Body>,
        exit: &Exit<'_>,
    ) -> Result<Sent, Failed> {
        let is_extended = headers::is_extended(request.extensions());
        if is_extended && !self.0.takes_extended().await {
            return Err(Failed::unsent(Why::Unsupported, request));
        }
        let mut sender = match self.0.sender.clone().ready().await {
            Ok(sender) => sender,
            Err(error) => {
                // It is closing: nobody is to find it again.
                self.0.open.store(false, Ordering::Relaxed);
                return Err(Failed::unsent(Why::Reset(error.into()), request));
            }
        };
        // Not before: what comes back unsent is what rules look at again.
        if is_extended {
            websocket::to_http2(&mut request);
        }
        let (mut parts, body) = request.into_parts();
        let interim = parts.extensions.remove::<Interim>();
        let at_end = body.is_end_stream();
        let head = Request::from_parts(parts, ());
        let (mut answer, send) = match sender.send_request(head, at_end) {
            Ok(sent) => sent,
            Err(error) => return Err(Failed::of(error)),
        };
        drop(sender);
        let mut upload = (!at_end).then(|| Pump::new(Of::Request, body, send));
        let answered = poll_fn(|cx| {
            if let Some(pump) = &mut upload
                && let Poll::Ready(ended) = pump.poll(cx)
            {
                upload = None;
                if let Err(Stopped::Source(error)) = ended {
                    return Poll::Ready(Err(Why::of_body(&error)));
                }
            }
            if let Some(interim) = &interim {
                while let Poll::Ready(Some(Ok(head))) = answer.poll_informational(cx) {
                    interim.pass(head.status(), head.headers());
                }
            }
            Pin::new(&mut answer)
                .poll(cx)
                .map_err(|error| Why::Reset(error.into()))
        });
        let response = match answered.await {
            Ok(response) => response,
            Err(why) => return Err(Failed { why, request: None }),
        };
        let upload = upload.map(|pump| detach(pump, exit));
        let response = response.map(|receive| {
            Body::answer2(Answer2 {
                receive,
                _upload: upload,
                _place: self,
            })
        });
        let upgrade = None;
        Ok(Sent { response, upgrade })
    }
}

impl Failed {
    fn of(error: h2::Error) -> Self {
        Self {
            why: Why::Reset(error.into()),
            request: None,
        }
    }
}

/// The answer has begun before the request's body has ended: both go on, whichever is
/// waited for.
fn detach(mut pump: Pump, exit: &Exit<'_>) -> oneshot::Sender<Infallible> {
    let (guard, mut dropped) = oneshot::channel();
    exit.tasks.spawn(async move {
        tokio::select! {
            biased;
            _dropped = &mut dropped => {}
            ended = poll_fn(|cx| pump.poll(cx)) => {
                if let Err(stopped) = ended {
                    tracing::debug!(?stopped, "an upload ended");
                }
            }
        }
    });
    guard
}

/// The body of an answer.
#[derive(Debug)]
pub(in crate::proxy::http) struct Answer2 {
    receive: RecvStream,
    /// Its drop ends what is left of the request.
    _upload: Option<oneshot::Sender<Infallible>>,
    _place: Place,
}

impl Answer2 {
    pub(in crate::proxy::http) fn receive(&mut self) -> &mut RecvStream {
        &mut self.receive
    }

    pub(in crate::proxy::http) fn is_end_stream(&self) -> bool {
        self.receive.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};

    use super::Http2;
    use crate::model::NodeName;
    use crate::proxy::config::Config;
    use crate::proxy::http::io::Io;
    use crate::proxy::reach::Stream;
    use crate::proxy::tasks::Tasks;

    #[tokio::test]
    async fn a_server_that_acknowledges_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (_server, _) = listener.accept().await.unwrap();
        let same = SockRef::from(&stream).try_clone().unwrap();
        let config = Config::recommended(NodeName("a".into())).http;
        let io = Io::new(Stream::Tcp(stream));
        let opened = Http2::open(io, &config, &Tasks::default()).await;
        let limit = same.tcp_user_timeout().unwrap();
        assert_eq!(limit, Some(config.upstream_unacknowledged));
        drop(opened);
    }
}
