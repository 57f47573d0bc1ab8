//! One request: who asks, what goes wrong, may he, and then what he asked for.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Collected, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::fault::Effect;
use super::kind::Kind;
use super::object::{Name, Stored};
use super::record::{self, Progress};
use super::request::{ResourcePath, Target};
use super::shared::Shared;
use super::write::Write;
use super::{discovery, list, review, watch, write};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// An answer before it is sent.
struct Answer {
    status: u16,
    content_type: &'static str,
    retry_after: Option<u32>,
    /// Where it is known beforehand.
    length: Option<usize>,
    pieces: Pieces,
}

/// Answers one request of a connection.
pub(super) async fn handle(
    shared: Arc<Shared>,
    connection: CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let text = |name: header::HeaderName| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let (authorization, agent) = (text(header::AUTHORIZATION), text(header::USER_AGENT));
    let user = shared.access.authenticate(authorization.as_deref());
    let target = match Target::parse(&head.method, &head.uri) {
        Ok(target) => target,
        Err(failure) => return Ok(Answer::failed(&failure).sent(&Progress::default())),
    };
    let progress = shared.records.begin(record(
        &target,
        user.as_deref().unwrap_or_default(),
        (
            head.uri.query().unwrap_or_default(),
            agent.unwrap_or_default(),
        ),
    ));
    let effects = shared.faults.take(&target);
    let answer = if let Some(answer) = before(&effects, &connection).await {
        answer
    } else {
        let body = body.collect().await;
        let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
        let ask = Ask {
            shared: &shared,
            target: &target,
            content_type: &content_type,
            body: body.map(Collected::to_bytes).unwrap_or_default(),
            effects: &effects,
        };
        user.and_then(|user| ask.answer(&user))
            .unwrap_or_else(|failure| Answer::failed(&failure))
    };
    Ok(answer.shaped(&effects).sent(&progress))
}

fn record(target: &Target, user: &str, (query, agent): (&str, String)) -> record::Request {
    let path = target.resource.as_ref();
    let of = |part: fn(&ResourcePath) -> &str| path.map(part).unwrap_or_default().to_owned();
    record::Request {
        user: user.to_owned(),
        verb: target.verb,
        group: of(|path| &path.group),
        resource: path.map_or_else(|| target.path.clone(), ResourcePath::with_subresource),
        namespace: of(|path| &path.namespace),
        name: of(|path| &path.name),
        query: query.to_owned(),
        user_agent: agent,
        status: 0,
        sent_bytes: 0,
        open: true,
    }
}

/// What goes wrong before the request is looked at.
async fn before(effects: &[Effect], connection: &CancellationToken) -> Option<Answer> {
    for effect in effects {
        match *effect {
            Effect::Answer {
                status,
                retry_after,
            } => {
                let reason = match status {
                    429 => "TooManyRequests",
                    _ => "InternalError",
                };
                let failure = Failure {
                    retry_after,
                    ..Failure::new(status, reason, "a fault of the test")
                };
                return Some(Answer::failed(&failure));
            }
            Effect::Garbage => return Some(Answer::text(200, "{\"kind\": \"PodLi")),
            Effect::ExpiredStatus => return Some(Answer::failed(&Failure::expired(1, 2))),
            Effect::Drop => {
                connection.cancel();
                std::future::pending::<()>().await;
            }
            Effect::Hang => std::future::pending().await,
            Effect::Delay(time) => tokio::time::sleep(time).await,
            Effect::Truncate(_)
            | Effect::Slow(_)
            | Effect::Duplicate
            | Effect::Reorder
            | Effect::ExpiredEvent => {}
        }
    }
    None
}

/// A request that nothing is wrong with so far.
struct Ask<'a> {
    shared: &'a Arc<Shared>,
    target: &'a Target,
    content_type: &'a str,
    body: Bytes,
    effects: &'a [Effect],
}

impl Ask<'_> {
    fn answer(&self, user: &str) -> Result<Answer, Failure> {
        let shared = self.shared;
        shared.access.check(user, self.target)?;
        let Some(path) = &self.target.resource else {
            return match discovery::answer(&shared.store, &self.target.path) {
                Some(Value::String(text)) => Ok(Answer::text(200, &text)),
                Some(value) => Ok(Answer::json(200, value.to_string().into())),
                None => Ok(Answer::text(404, "404 page not found\n")),
            };
        };
        if self.target.verb == "create" {
            let context = (&shared.access, &shared.store);
            if let Some(answer) = review::answer(context, user, path, &self.body) {
                return answer.map(|answer| Answer::json(201, answer.to_string().into()));
            }
        }
        let kind = shared.store.kind(&path.group, &path.plural);
        let Some(kind) = kind.filter(|kind| *kind.version == *path.version) else {
            return Ok(Answer::text(404, "404 page not found\n"));
        };
        self.of_kind(&kind, path)
    }

    fn of_kind(&self, kind: &Arc<Kind>, path: &ResourcePath) -> Result<Answer, Failure> {
        let (shared, target) = (self.shared, self.target);
        let status = path.subresource == "status" && kind.status;
        if !path.subresource.is_empty() && !status {
            let message = "the server could not find the requested resource";
            return Err(Failure::new(404, "NotFound", message));
        }
        let write = Write {
            store: &shared.store,
            managers: &shared.managers,
            kind,
            path,
            target,
            content_type: self.content_type,
            body: &self.body,
        };
        let object = |object: &Stored| Answer::json(200, object.text().clone());
        match target.verb {
            "list" => {
                let pieces = list::list(&shared.store, kind, path, target)?;
                Ok(Answer::pieces(pieces))
            }
            "watch" => {
                let pieces = watch::watch(shared, kind, (path, target), self.effects)?;
                Ok(Answer::pieces(pieces))
            }
            "get" => {
                let name = Name::new(&path.namespace, &path.name);
                let found = shared.store.get(kind, &name);
                let missing = || Failure::not_found(&kind.qualified(), &path.name);
                found.map(|it| object(&it)).ok_or_else(missing)
            }
            "create" => {
                let created = write.create()?;
                self.define(kind, &created)?;
                Ok(Answer::json(201, created.text().clone()))
            }
            "update" => write.update().map(|it| object(&it)),
            "patch" => {
                let written = write.patch()?;
                self.define(kind, &written)?;
                Ok(object(&written))
            }
            "delete" => {
                let deleted = write.delete()?;
                shared.forget_definition(kind, &deleted);
                Ok(object(&deleted))
            }
            verb => {
                let message = format!("the server does not allow {verb} here");
                Err(Failure::new(405, "MethodNotAllowed", message))
            }
        }
    }

    fn define(&self, kind: &Kind, object: &Stored) -> Result<(), Failure> {
        if &*kind.kind == "CustomResourceDefinition" {
            self.shared.define(&object.value())?;
        }
        Ok(())
    }
}

impl Shared {
    /// Serves the kind that a definition defines, and says so in its status.
    pub(super) fn define(&self, definition: &Value) -> Result<(), Failure> {
        let custom = Kind::defined_by(definition)?;
        self.store.define(custom);
        let Some(kind) = self
            .store
            .kind("apiextensions.k8s.io", "customresourcedefinitions")
        else {
            return Ok(());
        };
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let condition = |of: &str| {
            serde_json::json!({
                "type": of, "status": "True", "reason": "Accepted", "message": "",
                "lastTransitionTime": review::now(),
            })
        };
        self.store.write(&kind, &Name::new("", name), |old| {
            let mut object = old.map_or_else(|| definition.clone(), Stored::value);
            if object["status"]["conditions"].is_null() {
                object["status"]["acceptedNames"] = object["spec"]["names"].clone();
                object["status"]["conditions"] =
                    vec![condition("NamesAccepted"), condition("Established")].into();
            }
            Ok(Some(object))
        })?;
        Ok(())
    }

    /// With a definition its kind goes.
    pub(super) fn forget_definition(&self, kind: &Kind, deleted: &Stored) {
        let definition = (&*kind.kind == "CustomResourceDefinition").then(|| deleted.value());
        let held = |definition: &Value| {
            let finalizers = definition["metadata"]["finalizers"].as_array();
            finalizers.is_some_and(|list| !list.is_empty())
        };
        if let Some(definition) = definition.filter(|it| !held(it))
            && let Ok(custom) = Kind::defined_by(&definition)
        {
            self.store.undefine(&custom);
        }
    }

    /// Puts an object in place whatever was there; what it does not say of its status
    /// and its metadata is made up. `CustomResourceDefinition`s take effect.
    pub(super) fn put(&self, object: Value) -> Result<Value, Failure> {
        let kind = self.store.kind_of(&object).ok_or_else(|| {
            Failure::bad_request(format!(
                "no kind {} in {}",
                object["kind"], object["apiVersion"]
            ))
        })?;
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        let namespace = match (kind.namespaced, text("namespace")) {
            (true, "") => "default",
            (true, namespace) => namespace,
            (false, _) => "",
        };
        let name = Name::new(namespace, text("name"));
        let stored = self.store.write(&kind, &name, |old| {
            let old = old.map(Stored::value);
            Ok(Some(write::stamp(&kind, &name, old.as_ref(), object)))
        })?;
        let stored = stored.ok_or_else(|| Failure::not_found(&kind.qualified(), &name.name))?;
        let value = stored.value();
        if &*kind.kind == "CustomResourceDefinition" {
            self.define(&value)?;
        }
        Ok(value)
    }
}

impl Answer {
    fn json(status: u16, body: Bytes) -> Self {
        Self {
            status,
            content_type: "application/json",
            retry_after: None,
            length: Some(body.len()),
            pieces: stream::iter([Ok(body)]).boxed(),
        }
    }

    fn text(status: u16, body: &str) -> Self {
        Self {
            content_type: "text/plain; charset=utf-8",
            ..Self::json(status, Bytes::from(body.to_owned()))
        }
    }

    fn failed(failure: &Failure) -> Self {
        Self {
            retry_after: failure.retry_after,
            ..Self::json(failure.code, failure.status().to_string().into())
        }
    }

    fn pieces(pieces: Pieces) -> Self {
        Self {
            status: 200,
            content_type: "application/json",
            retry_after: None,
            length: None,
            pieces,
        }
    }

    /// With what goes wrong while it is sent.
    fn shaped(mut self, effects: &[Effect]) -> Self {
        for effect in effects {
            match *effect {
                Effect::Truncate(bytes) => self.pieces = truncated(self.pieces, bytes),
                Effect::Slow(pause) => self.pieces = slow(self.pieces, pause),
                _ => {}
            }
        }
        self
    }

    fn sent(self, progress: &Progress) -> Response<Body> {
        progress.answered(self.status);
        let sending = Sending(progress.clone());
        let frames = self.pieces.map(move |piece| {
            let piece = piece?;
            sending.0.sent(piece.len());
            Ok(Frame::data(piece))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        *response.status_mut() =
            http::StatusCode::from_u16(self.status).unwrap_or(http::StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        if let Some(length) = self.length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Notes the end of an answer, however it ends.
struct Sending(Progress);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.closed();
    }
}

fn truncated(pieces: Pieces, bytes: usize) -> Pieces {
    let rest = stream::unfold((pieces, Some(bytes)), |(mut pieces, left)| async move {
        let left = left?;
        let mut piece = match pieces.next().await? {
            Ok(piece) => piece,
            Err(error) => return Some((Err(error), (pieces, None))),
        };
        if left == 0 {
            let error = io::Error::from(io::ErrorKind::ConnectionAborted);
            return Some((Err(error), (pieces, None)));
        }
        piece.truncate(left);
        let left = left - piece.len();
        Some((Ok(piece), (pieces, Some(left))))
    });
    rest.boxed()
}

fn slow(pieces: Pieces, pause: Duration) -> Pieces {
    let paused = pieces.then(move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    });
    paused.boxed()
}
