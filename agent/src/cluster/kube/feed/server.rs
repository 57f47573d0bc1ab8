//! Requests to the API server, and what comes back piece by piece.

use std::time::Duration;

use ::kube::Client;
use ::kube::client::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::failure::{Failure, Verb};
use super::kind::Kind;
use super::wire::{self, Garbage, Refusal};

/// The API server answers with a status within this time; its own limit for a request
/// that is not a watch is a minute.
const ANSWER: Duration = Duration::from_secs(75);
/// A page comes without a longer pause.
const PAUSE: Duration = Duration::from_secs(30);
/// Neither a page nor a line is longer; an object of etcd has at most a few MiB.
const MAX_BYTES: usize = 256 << 20;
/// What is read of a refusal.
const REFUSAL_BYTES: usize = 64 << 10;

/// The API server.
#[derive(Clone)]
pub(super) struct Server(pub(super) Client);

impl Server {
    /// Asks, and gives the body of the answer.
    pub(super) async fn open(&self, verb: Verb, path: &str) -> Result<Body, Failure> {
        let request = Request::get(path)
            .header(http::header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| Failure::unreachable(&error))?;
        let response = timeout(ANSWER, self.0.send(request)).await;
        let response = response.map_err(|_elapsed| Failure::Silent(ANSWER))?;
        let response = response.map_err(|error| Failure::unreachable(&error))?;
        if response.status() == StatusCode::OK {
            return Ok(response.into_body());
        }
        Err(refused(verb, response).await)
    }

    /// Asks, and gives the whole answer.
    pub(super) async fn text(&self, verb: Verb, path: &str) -> Result<String, Failure> {
        let mut body = self.open(verb, path).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = piece(&mut body, PAUSE).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_BYTES {
                return Err(too_long().into());
            }
        }
        String::from_utf8(bytes).map_err(|error| Garbage(error.to_string()).into())
    }

    /// The API server is ready and has no such kind.
    pub(super) async fn lacks(&self, kind: &Kind) -> Result<bool, Failure> {
        match self.text(Verb::Get, "/readyz").await {
            Ok(_) => {}
            // It is there, and does not tell everybody how it is.
            Err(failure) if matches!(failure.code(), Some(401 | 403 | 404)) => {}
            Err(Failure::Refused { .. }) => return Ok(false),
            Err(failure) => return Err(failure),
        }
        for version in kind.versions() {
            match self.text(Verb::Get, &kind.group_path(version)).await {
                Ok(text) => {
                    let served = wire::resources(&text)?;
                    if served.iter().any(|plural| plural == kind.plural) {
                        return Ok(false);
                    }
                }
                Err(failure) if failure.code() == Some(404) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    }
}

async fn refused(verb: Verb, response: Response<Body>) -> Failure {
    let code = response.status().as_u16();
    let header = response.headers().get(http::header::RETRY_AFTER);
    let header = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    // The code says enough where the rest does not come.
    while let Ok(Some(piece)) = piece(&mut body, PAUSE).await
        && bytes.len() < REFUSAL_BYTES
    {
        bytes.extend_from_slice(&piece);
    }
    let refusal = Refusal::of(code, &String::from_utf8_lossy(&bytes));
    let seconds = header.or(refusal.retry_after_seconds());
    Failure::Refused {
        verb,
        refusal,
        midway: false,
        retry_after: seconds.map(Duration::from_secs),
    }
}

/// The next piece of a body; `None` at its end.
async fn piece(body: &mut Body, patience: Duration) -> Result<Option<bytes::Bytes>, Failure> {
    loop {
        let frame = timeout(patience, body.frame()).await;
        match frame.map_err(|_elapsed| Failure::Silent(patience))? {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(Failure::unreachable(&error)),
            None => return Ok(None),
        }
    }
}

/// A body of lines.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Up to here there is no end of a line in the buffer.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// Waits for more, at most for as long as `patience`. False at the end.
    pub(super) async fn more(&mut self, patience: Duration) -> Result<bool, Failure> {
        let Some(piece) = piece(&mut self.body, patience).await? else {
            if self.buffer.is_empty() {
                return Ok(false);
            }
            return Err(Failure::Unreachable("the answer was cut off".to_owned()));
        };
        self.buffer.extend_from_slice(&piece);
        if self.buffer.len() > MAX_BYTES {
            return Err(too_long().into());
        }
        Ok(true)
    }

    /// Hands over the lines that are complete, up to the first error.
    pub(super) fn each(
        &mut self,
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let new = &self.buffer[self.searched..];
        let Some(end) = new.iter().rposition(|&byte| byte == b'\n') else {
            self.searched = self.buffer.len();
            return Ok(());
        };
        let end = self.searched + end + 1;
        let text = std::str::from_utf8(&self.buffer[..end]);
        let text = text.map_err(|error| Garbage(error.to_string()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let outcome = lines.into_iter().try_for_each(&mut take);
        self.buffer.drain(..end);
        self.searched = self.buffer.len();
        // One that was very long does not stay.
        self.buffer.shrink_to(SPARE);
        outcome
    }
}

/// What a quiet watch keeps of its buffer.
const SPARE: usize = 64 << 10;

fn too_long() -> Garbage {
    Garbage(format!("more than {} MiB in one piece", MAX_BYTES >> 20))
}

/// Text as a value of a query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let escape = |byte: u8| {
        if plain(&byte) {
            return char::from(byte).to_string();
        }
        format!("%{byte:02X}")
    };
    text.bytes().map(escape).collect()
}
