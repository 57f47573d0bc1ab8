//! Objects that are questions: `TokenReview`, `TokenRequest`, access reviews.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::access::{API_AUDIENCE, Access, Action, Credential, TokenOptions};
use super::failure::Failure;
use super::object::Name;
use super::request::ResourcePath;
use super::store::Store;
use super::write::timestamp;

/// The answer, where the path is that of a question.
pub(super) fn answer(
    (access, store): (&Access, &Store),
    user: &str,
    path: &ResourcePath,
    body: &[u8],
) -> Option<Result<Value, Failure>> {
    let question = || super::write::parse(body);
    let plural = path.plural.as_str();
    match (path.group.as_str(), plural, path.subresource.as_str()) {
        ("authentication.k8s.io", "tokenreviews", "") => {
            Some(question().map(|question| token_review(access, store, question)))
        }
        ("authorization.k8s.io", "selfsubjectaccessreviews", "") => {
            Some(question().map(|question| self_review(access, user, question)))
        }
        ("", "serviceaccounts", "token") => {
            let answer = question();
            Some(answer.and_then(|question| token_request(access, store, path, question)))
        }
        _ => None,
    }
}

fn token_review(access: &Access, store: &Store, mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let wanted: Vec<&str> = match review["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.iter().filter_map(Value::as_str).collect(),
        _ => vec![API_AUDIENCE],
    };
    let refused = |error: &str| json!({"user": {}, "error": error});
    let status = match access.proves(token) {
        None => refused("invalid bearer token"),
        Some(credential) if !is_in_use(&credential, store) => {
            refused("the pod that the token is bound to has gone")
        }
        Some(credential) => {
            let shared = wanted
                .iter()
                .filter(|audience| credential.audiences.iter().any(|own| own == *audience));
            let shared: Vec<&&str> = shared.collect();
            if shared.is_empty() {
                refused("token audiences do not match")
            } else {
                json!({
                    "authenticated": true, "audiences": shared, "user": user(&credential),
                })
            }
        }
    };
    review["status"] = status;
    review
}

/// A bound token ends with its pod.
fn is_in_use(credential: &Credential, store: &Store) -> bool {
    let Some((namespace, name, uid)) = &credential.pod else {
        return true;
    };
    let pod = store
        .kind("", "pods")
        .and_then(|kind| store.get(&kind, &Name::new(namespace, name)));
    pod.is_some_and(|pod| pod.value()["metadata"]["uid"] == uid.as_str())
}

fn user(credential: &Credential) -> Value {
    let mut extra = json!({});
    let mut add = |key: &str, value: &str| {
        extra[format!("authentication.kubernetes.io/{key}")] = json!([value]);
    };
    if let Some((_, name, uid)) = &credential.pod {
        add("pod-name", name);
        add("pod-uid", uid);
    }
    if let Some(node) = &credential.node {
        add("node-name", node);
    }
    json!({
        "username": credential.user, "uid": credential.uid, "groups": credential.groups,
        "extra": extra,
    })
}

fn self_review(access: &Access, user: &str, mut review: Value) -> Value {
    let attributes = &review["spec"]["resourceAttributes"];
    let text = |key: &str| attributes[key].as_str().unwrap_or_default();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        subresource => format!("{}/{subresource}", text("resource")),
    };
    let action = Action {
        verb: text("verb"),
        group: text("group"),
        resource: &resource,
        namespace: text("namespace"),
        name: text("name"),
    };
    let allowed = !attributes.is_object() || access.may(user, &action);
    review["status"] = json!({"allowed": allowed});
    review
}

fn token_request(
    access: &Access,
    store: &Store,
    path: &ResourcePath,
    mut request: Value,
) -> Result<Value, Failure> {
    let account = store
        .kind("", "serviceaccounts")
        .and_then(|kind| store.get(&kind, &Name::new(&path.namespace, &path.name)));
    if account.is_none() {
        return Err(Failure::not_found("serviceaccounts", &path.name));
    }
    let spec = &request["spec"];
    let audiences = spec["audiences"].as_array().into_iter().flatten();
    let bound = &spec["boundObjectRef"];
    let text = |key: &str| bound[key].as_str().unwrap_or_default().to_owned();
    let node = store
        .kind("", "pods")
        .and_then(|kind| store.get(&kind, &Name::new(&path.namespace, &text("name"))))
        .and_then(|pod| pod.value()["spec"]["nodeName"].as_str().map(str::to_owned));
    let options = TokenOptions {
        audiences: audiences
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect(),
        lifetime: Duration::from_secs(spec["expirationSeconds"].as_u64().unwrap_or(3600)),
        pod: (bound["kind"] == "Pod").then(|| (text("name"), text("uid"))),
        node: node.filter(|_| bound["kind"] == "Pod"),
    };
    let (token, expires) = access.issue(&path.namespace, &path.name, &options);
    request["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
    request["metadata"]["name"] = path.name.clone().into();
    request["metadata"]["namespace"] = path.namespace.clone().into();
    Ok(request)
}

/// Used by those who have no reason to ask for another time.
pub(super) fn now() -> String {
    timestamp(SystemTime::now())
}
