//! An API server in memory for unit tests: objects by path, resource versions, and the
//! faults that a client must bear.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::kube::Client;
use ::kube::client::Body;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

/// Answers to what is posted to a path, in place of creating it there.
type Answer = Box<dyn Fn(&Value) -> Value + Send>;

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    version: u64,
    answers: BTreeMap<String, Answer>,
    forbidden: Option<String>,
    requests: Vec<(Method, String)>,
}

/// A way to the objects. Its clones share its faults.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    store: Arc<Mutex<Store>>,
    away: Arc<AtomicBool>,
    hanging: Arc<AtomicBool>,
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// To the same objects, with faults of its own.
    pub(crate) fn another_way(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            ..Self::default()
        }
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    pub(crate) fn set_hanging(&self, hanging: bool) {
        self.hanging.store(hanging, Ordering::Relaxed);
    }

    /// Requests whose path begins so are forbidden from now on.
    pub(crate) fn forbid(&self, path: Option<&str>) {
        self.store.lock().unwrap().forbidden = path.map(str::to_owned);
    }

    pub(crate) fn answer(&self, path: &str, answer: impl Fn(&Value) -> Value + Send + 'static) {
        let mut store = self.store.lock().unwrap();
        store.answers.insert(path.to_owned(), Box::new(answer));
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.store.lock().unwrap().objects.get(path).cloned()
    }

    /// All objects of a namespace, by path.
    pub(crate) fn below(&self, path: &str) -> BTreeMap<String, Value> {
        let store = self.store.lock().unwrap();
        let objects = store.objects.iter().filter(|(at, _)| at.starts_with(path));
        objects
            .map(|(at, object)| (at.clone(), object.clone()))
            .collect()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.store.lock().unwrap().write(path, object);
    }

    pub(crate) fn delete(&self, path: &str) {
        self.store.lock().unwrap().objects.remove(path);
    }

    /// How many requests with this method were made to this path.
    pub(crate) fn requests(&self, method: &Method, path: &str) -> usize {
        let store = self.store.lock().unwrap();
        let same = |(one, other): &&(Method, String)| one == method && other == path;
        store.requests.iter().filter(same).count()
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| api.clone().serve(request));
        Client::new(service, "default")
    }

    async fn serve(self, request: Request<Body>) -> Result<Response<Body>, std::io::Error> {
        if self.hanging.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::MAX).await;
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("connection refused"));
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let (code, answer) =
            self.store
                .lock()
                .unwrap()
                .respond(&head.method, head.uri.path(), body);
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = code;
        Ok(response)
    }
}

impl Store {
    fn write(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// The objects of a kind, in all namespaces.
    fn list(&self, path: &str) -> (StatusCode, Value) {
        let of_kind = |key: &&String| {
            let (before, name) = key.rsplit_once('/').unwrap();
            let (before, plural) = before.rsplit_once('/').unwrap();
            let (version, _namespace) = before.split_once("/namespaces/").unwrap_or((before, ""));
            !name.is_empty() && format!("{version}/{plural}") == path
        };
        let keys: Vec<&String> = self.objects.keys().filter(of_kind).collect();
        if keys.is_empty() {
            return failure(StatusCode::NOT_FOUND, &format!("{path} not found"));
        }
        let items: Vec<&Value> = keys.into_iter().map(|key| &self.objects[key]).collect();
        (StatusCode::OK, json!({"metadata": {}, "items": items}))
    }

    /// A server-side apply of a status by its only writer.
    fn patch_status(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let object = path.strip_suffix("/status");
        let Some(current) = object.and_then(|path| self.objects.get(path)) else {
            return failure(StatusCode::NOT_FOUND, &format!("{path} not found"));
        };
        let (now, then) = (&current["metadata"], &body["metadata"]);
        if now["resourceVersion"] != then["resourceVersion"] || now["uid"] != then["uid"] {
            return failure(StatusCode::CONFLICT, &format!("{path} was modified"));
        }
        let mut written = current.clone();
        written["status"] = body["status"].clone();
        let path = path.trim_end_matches("/status").to_owned();
        (StatusCode::OK, self.write(&path, written))
    }

    /// A merge patch of whole fields.
    fn merge(&mut self, path: &str, mut body: Value) -> (StatusCode, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else {
            return failure(StatusCode::NOT_FOUND, &format!("{path} not found"));
        };
        let fields = object.as_object_mut().unwrap();
        for (field, value) in body.as_object_mut().unwrap() {
            fields.insert(field.clone(), value.take());
        }
        (StatusCode::OK, self.write(path, object))
    }

    fn respond(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.requests.push((method.clone(), path.to_owned()));
        if let Some(forbidden) = &self.forbidden
            && path.starts_with(forbidden)
        {
            let message = format!("User \"x\" cannot {method} {path}");
            return failure(StatusCode::FORBIDDEN, &message);
        }
        if let Some(answer) = self.answers.get(path) {
            return (StatusCode::CREATED, answer(&body));
        }
        match *method {
            Method::GET => match self.objects.get(path.trim_end_matches("/status")) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => self.list(path),
            },
            Method::PATCH if path.ends_with("/status") => self.patch_status(path, &body),
            Method::PATCH => self.merge(path, body),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return failure(StatusCode::CONFLICT, &format!("{path} already exists"));
                }
                (StatusCode::CREATED, self.write(&path, body))
            }
            Method::PUT => {
                let Some(current) = self.objects.get(path) else {
                    return failure(StatusCode::NOT_FOUND, &format!("{path} not found"));
                };
                let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
                if version(current) != version(&body) {
                    return failure(StatusCode::CONFLICT, &format!("{path} was modified"));
                }
                (StatusCode::OK, self.write(path, body))
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "not here"),
        }
    }
}

fn failure(code: StatusCode, message: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": code.canonical_reason().unwrap().replace(' ', ""),
        "code": code.as_u16(),
    });
    (code, status)
}
