//! An API server in memory: it gives the answers that it was told, one after the other.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Response, Uri};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::{Notify, mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnboundedReceiverStream};

pub(super) type AnswerBody = UnsyncBoxBody<Bytes, io::Error>;

/// What the API server says to one request.
enum Answer {
    Whole(Response<String>),
    Pieces(mpsc::UnboundedReceiver<io::Result<Bytes>>),
    /// There is nobody.
    Refused,
}

/// The API server. A request for which there is no answer yet waits for one.
#[derive(Default)]
pub(super) struct Api {
    answers: Mutex<HashMap<String, VecDeque<Answer>>>,
    requests: Mutex<Vec<String>>,
    told: Notify,
}

/// The end of a watch at which events are put in.
pub(super) struct Sender(mpsc::UnboundedSender<io::Result<Bytes>>);

impl Sender {
    /// Sends whole lines.
    pub(super) fn lines(&self, lines: &[String]) {
        self.bytes(format!("{}\n", lines.join("\n")).as_bytes());
    }

    /// Sends a piece of whatever it is.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        drop(self.0.send(Ok(Bytes::copy_from_slice(bytes))));
    }

    /// The connection breaks.
    pub(super) fn cut(self) {
        drop(self.0.send(Err(io::Error::other("connection reset"))));
    }
}

impl Api {
    /// Will answer a request for a path, the last part of which is `name`, with a code.
    pub(super) fn say(&self, name: &str, code: u16, body: &str) {
        let mut response = Response::new(body.to_owned());
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
        self.tell(name, Answer::Whole(response));
    }

    /// Will refuse, and ask to wait.
    pub(super) fn ask_to_wait(&self, name: &str, code: u16, seconds: u64) {
        let response = Response::builder()
            .status(code)
            .header("retry-after", seconds.to_string())
            .body(String::new());
        self.tell(name, Answer::Whole(response.unwrap()));
    }

    /// Will refuse the connection.
    pub(super) fn refuse(&self, name: &str) {
        self.tell(name, Answer::Refused);
    }

    /// Will answer with what is sent.
    pub(super) fn stream(&self, name: &str) -> Sender {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.tell(name, Answer::Pieces(receiver));
        Sender(sender)
    }

    /// The requests so far, without what is random in them.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn tell(&self, name: &str, answer: Answer) {
        let mut answers = self.answers.lock().unwrap();
        answers
            .entry(name.to_owned())
            .or_default()
            .push_back(answer);
        self.told.notify_waiters();
    }

    pub(super) async fn answer(&self, uri: &Uri) -> Result<Response<AnswerBody>, io::Error> {
        let (path, query) = (uri.path(), uri.query().unwrap_or(""));
        let name = path.rsplit('/').next().unwrap().to_owned();
        let known = |part: &&str| !part.starts_with("timeoutSeconds=");
        let query: Vec<&str> = query.split('&').filter(known).collect();
        let request = format!("{path}?{}", query.join("&"));
        self.requests.lock().unwrap().push(request);
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let answer = self
                .answers
                .lock()
                .unwrap()
                .get_mut(&name)
                .and_then(VecDeque::pop_front);
            match answer {
                Some(Answer::Whole(response)) => {
                    return Ok(response.map(|body| boxed(tokio_stream::once(Ok(body.into())))));
                }
                Some(Answer::Pieces(pieces)) => {
                    return Ok(Response::new(boxed(UnboundedReceiverStream::new(pieces))));
                }
                Some(Answer::Refused) => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                None => told.await,
            }
        }
    }
}

fn boxed(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> AnswerBody {
    let frames = pieces.map(|piece| piece.map(hyper::body::Frame::data));
    UnsyncBoxBody::new(StreamBody::new(frames))
}
