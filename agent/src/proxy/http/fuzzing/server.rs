//! The server of HTTP/1.1, from a client's bytes to those that its own server gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http_body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::reading::{Reading, Whole};
use crate::model::NodeName;
use crate::proxy::config::Config;
use crate::proxy::http::body::Body;
use crate::proxy::http::io::Io;
use crate::proxy::http::reason::Reason;
use crate::proxy::http::reply::reply;
use crate::proxy::http::server::{Answer, Handler, http1};
use crate::proxy::http::strict::{Framing, Place};
use crate::proxy::http::upstream::{Dial, Exit, Upstreams, Version};
use crate::proxy::http::{headers, session};
use crate::proxy::outcome::{ConnectError, Outcome};
use crate::proxy::reach::{Reached, Stream, Way};
use crate::proxy::tasks::Tasks;

/// The longest line of a head that is looked at.
const LONGEST: usize = 64 << 10;
/// No bytes take longer.
const PATIENCE: Duration = Duration::from_secs(20);

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// What is passed on of a client's bytes does not depend on how they come, and ends where
/// another reading finds them ambiguous. The first byte says how they come.
pub(crate) fn framing(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let passed = |cut: usize| {
        let mut framing = Framing::new(LONGEST);
        let mut passed = bytes.to_vec();
        for piece in passed.chunks_mut(cut) {
            framing.follow(piece);
        }
        (passed, framing.place)
    };
    let (whole, place) = passed(bytes.len().max(1));
    let (pieces, end) = passed(usize::from(*cut) + 1);
    assert_eq!(place, end, "it depends on the cuts");
    let reading = Reading::of(bytes);
    if place != Place::Refused {
        assert_eq!(whole, bytes);
        assert_eq!(pieces, bytes);
    }
    // Chunks have lines of their own limit, which the other reading does not know.
    if reading.ambiguous {
        assert!(
            matches!(place, Place::Refused | Place::TooLong),
            "{place:?}"
        );
    }
    for passed in [whole, pieces] {
        let read = Reading::of(&passed);
        let same = read.requests.len().min(reading.requests.len());
        assert_eq!(read.requests[..same], reading.requests[..same]);
        assert!(
            read.requests.len() <= reading.requests.len(),
            "more than there were"
        );
    }
}

/// A server gets the requests that a strict reading finds in the client's bytes, in their
/// order and with their bodies, and never more.
pub(crate) fn server(data: &[u8]) {
    let reading = Reading::of(data);
    let received = within(serve(data));
    let mut asked = reading.requests.iter();
    for bytes in received {
        let got = Reading::of(&bytes);
        let text = bytes.escape_ascii();
        assert!(!got.ambiguous, "{text}");
        for request in &got.requests {
            let found = asked.any(|asked| is_same(asked, request));
            assert!(found, "{request:?} is not what was asked: {text}");
        }
    }
}

/// What comes of it, in time.
pub(super) fn within<T>(serving: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let served = runtime.block_on(async { tokio::time::timeout(PATIENCE, serving).await });
        served.expect("an end")
    })
}

/// Some methods and targets are written otherwise; bodies are not.
fn is_same(asked: &Whole, got: &Whole) -> bool {
    let method = |whole: &Whole| {
        whole
            .line
            .split(|byte| *byte == b' ')
            .next()
            .map(<[u8]>::to_vec)
    };
    method(asked) == method(got) && asked.body == got.body
}

/// What the server gets of each connection, in the order in which those were opened.
async fn serve(data: &[u8]) -> Vec<Vec<u8>> {
    let config = Arc::new(Config::recommended(NodeName("fuzz".into())));
    let (front, back) = (listen().await, listen().await);
    let address = back.local_addr().expect("an address");
    let received = Arc::new(Mutex::new(Vec::new()));
    let tasks = Tasks::default();
    let guard = tasks.stop_on_drop();
    tasks.spawn(record(back, tasks.clone(), Arc::clone(&received)));
    let handler = Forward {
        upstreams: Upstreams::new(Arc::clone(&config)),
        tasks,
        to: Way::Passthrough.reached(address),
        address,
    };
    let near = front.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(near), front.accept());
    let (mut client, (accepted, _)) = client.ok().zip(accepted.ok()).expect("a connection");
    let io = Io::new(Stream::Tcp(accepted));
    let leaving = CancellationToken::new();
    let serving = http1(io, Arc::new(handler), &leaving, &config.http);
    let asking = async move {
        let (mut read, mut write) = client.split();
        let mut heard = Vec::new();
        let say = async {
            // It may have heard enough.
            let _said = write.write_all(data).await;
            let _ended = write.shutdown().await;
        };
        let (_ended, ()) = tokio::join!(read.read_to_end(&mut heard), say);
    };
    let _outcome = tokio::join!(serving, asking);
    drop(guard);
    let received = received.lock().expect("nobody panicked");
    received.clone()
}

pub(super) async fn listen() -> TcpListener {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    TcpListener::bind(any).await.expect("a free port")
}

/// A server that answers each request once it has all of it.
async fn record(listener: TcpListener, tasks: Tasks, received: Arc<Mutex<Vec<Vec<u8>>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let received = Arc::clone(&received);
        let index = {
            let mut all = received.lock().expect("nobody panicked");
            all.push(Vec::new());
            all.len() - 1
        };
        tasks.spawn(async move {
            let mut bytes = Vec::new();
            let mut answered = 0;
            while stream
                .read_buf(&mut bytes)
                .await
                .is_ok_and(|count| count > 0)
            {
                received.lock().expect("nobody panicked")[index].clone_from(&bytes);
                let whole = Reading::of(&bytes).requests.len();
                for _ in answered..whole {
                    let _gone = stream.write_all(OK).await;
                }
                answered = whole;
            }
        });
    }
}

/// Sends every request on, as the proxy does.
struct Forward {
    upstreams: Arc<Upstreams>,
    tasks: Tasks,
    to: Reached,
    address: SocketAddr,
}

impl Forward {
    async fn forward(&self, request: Request<Body>) -> Result<http::Response<Body>, Reason> {
        let (mut parts, body) = request.into_parts();
        headers::receive(&mut parts)?;
        headers::send(&mut parts, Version::Http1, body.is_end_stream())?;
        let exit = Exit {
            upstreams: &self.upstreams,
            tasks: &self.tasks,
            to: &self.to,
            version: Version::Http1,
            falls_back: true,
        };
        let sent = exit.send(Request::from_parts(parts, body), self).await;
        let sent = sent.map_err(|failed| session::unanswered(&failed.why))?;
        let (mut parts, body) = sent.response.into_parts();
        headers::answer(&mut parts, http::Version::HTTP_11, false);
        Ok(http::Response::from_parts(parts, body))
    }
}

impl Dial for Forward {
    async fn dial(&self) -> Result<Io, Outcome> {
        let dialled = TcpStream::connect(self.address).await;
        let stream = dialled.map_err(|_refused| ConnectError::Refused)?;
        Ok(Io::new(Stream::Tcp(stream)))
    }
}

impl Handler for Forward {
    async fn handle(&self, request: Request<Body>) -> Answer {
        let answered = self.forward(request).await;
        let refused = |reason: Reason| reply(reason.kind.status(), &reason, false);
        Answer {
            response: answered.unwrap_or_else(refused),
            upgrade: None,
        }
    }
}
