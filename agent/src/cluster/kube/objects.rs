//! Objects as one would give them to `kubectl apply`: put into the cluster, looked at and
//! taken out again.

use std::fmt;

use ::kube::Client;
use ::kube::core::Status;
use ::kube::core::gvk::GroupVersionKind;
use ::kube::discovery::ApiResource;
use http::{Method, Request};
use serde_json::{Value, json};

/// Who the API server says wrote the fields that these commands write.
const FIELD_MANAGER: &str = "fairlead";

/// Why the API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Something in a manifest is missing that every object has.
    #[error("an object without {field}: {text}")]
    Malformed {
        /// What is missing.
        field: &'static str,
        /// The object.
        text: String,
    },
    /// The API server refuses; its words name the verb and the resource.
    #[error("cannot {action} {subject}: {message}")]
    Refused {
        /// Such as `apply`.
        action: &'static str,
        /// The object.
        subject: String,
        /// The code of the answer.
        code: u16,
        /// What it said.
        message: String,
    },
    /// There was no answer.
    #[error("cannot {action} {subject}")]
    Failed {
        /// Such as `apply`.
        action: &'static str,
        /// The object.
        subject: String,
        /// Why.
        source: Box<::kube::Error>,
    },
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was not there.
    Created,
    /// It was otherwise.
    Configured,
    /// It was just so.
    Unchanged,
    /// It was there and is going.
    Deleted,
    /// It was not there.
    Absent,
}

/// Where an object is in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    resource: ApiResource,
    namespace: Option<String>,
    name: String,
}

impl Place {
    /// The place of an object of this kind.
    pub fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            resource: ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    /// The place that a manifest names.
    pub fn of(manifest: &Value) -> Result<Self, RequestError> {
        let text = |field: &'static str, pointer: &str| {
            let found = manifest.pointer(pointer).and_then(Value::as_str);
            found.ok_or_else(|| RequestError::Malformed {
                field,
                text: manifest.to_string(),
            })
        };
        Ok(Self::new(
            text("apiVersion", "/apiVersion")?,
            text("kind", "/kind")?,
            manifest
                .pointer("/metadata/namespace")
                .and_then(Value::as_str),
            text("metadata.name", "/metadata/name")?,
        ))
    }

    /// Such as `DaemonSet`.
    pub fn kind(&self) -> &str {
        &self.resource.kind
    }

    /// Its namespace, where it has one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn collection(&self) -> String {
        let ApiResource {
            group,
            api_version,
            plural,
            ..
        } = &self.resource;
        let root = if group.is_empty() { "api" } else { "apis" };
        match &self.namespace {
            Some(namespace) => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
            None => format!("/{root}/{api_version}/{plural}"),
        }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name),
            None => write!(f, "{} {}", self.kind(), self.name),
        }
    }
}

/// Makes the object as the manifest says, whoever wrote it before. Fields that the
/// manifest does not have stay.
pub async fn apply(client: &Client, manifest: &Value) -> Result<Change, RequestError> {
    let place = Place::of(manifest)?;
    let before = find(client, &place).await?;
    let path = format!("{}?fieldManager={FIELD_MANAGER}&force=true", place.path());
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(manifest.to_string().into_bytes());
    let after = send(client, "apply", &place, request).await?;
    Ok(match before.map(wanted) {
        None => Change::Created,
        Some(before) if before == wanted(after) => Change::Unchanged,
        Some(_) => Change::Configured,
    })
}

/// What of an object people write: controllers write the rest, also between two looks.
fn wanted(mut object: Value) -> Value {
    object["status"] = Value::Null;
    for field in ["generation", "managedFields", "resourceVersion"] {
        object["metadata"][field] = Value::Null;
    }
    object
}

/// The object, if it is there.
pub async fn find(client: &Client, place: &Place) -> Result<Option<Value>, RequestError> {
    let request = Request::get(place.path()).body(Vec::new());
    match send(client, "get", place, request).await {
        Ok(object) => Ok(Some(object)),
        Err(RequestError::Refused { code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All objects of the kind and namespace that `place` has, its name aside; none where the
/// API server does not know the kind.
pub async fn list(client: &Client, place: &Place) -> Result<Vec<Value>, RequestError> {
    let request = Request::get(place.collection()).body(Vec::new());
    match send(client, "list", place, request).await {
        Ok(mut list) => Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }),
        Err(RequestError::Refused { code: 404, .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Has the object deleted, after what belongs to it. It may be there for a while yet.
pub async fn delete(client: &Client, place: &Place) -> Result<Change, RequestError> {
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground",
    });
    let request = Request::delete(place.path())
        .header("content-type", "application/json")
        .body(options.to_string().into_bytes());
    match send(client, "delete", place, request).await {
        Ok(_) => Ok(Change::Deleted),
        Err(RequestError::Refused { code: 404, .. }) => Ok(Change::Absent),
        Err(error) => Err(error),
    }
}

/// Asks whether this user may do something.
pub async fn may(
    client: &Client,
    group: &str,
    resource: &str,
    verb: &str,
) -> Result<bool, RequestError> {
    let place = Place::new(
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        None,
        "",
    );
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "group": group, "resource": resource, "subresource": subresource, "verb": verb,
        } },
    });
    let request = Request::post(place.collection())
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes());
    let answer = send(client, "create", &place, request).await?;
    Ok(answer.pointer("/status/allowed") == Some(&Value::Bool(true)))
}

/// Such as `v1.33.2`, and its major and minor number.
pub async fn version(client: &Client) -> Result<(String, (u32, u32)), RequestError> {
    let place = Place::new("v1", "Version", None, "of the API server");
    let request = Request::get("/version").body(Vec::new());
    let answer = send(client, "ask for", &place, request).await?;
    let number = |field: &str| {
        // Some providers write `27+`.
        let text = answer[field].as_str().unwrap_or_default();
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    let name = answer["gitVersion"].as_str().unwrap_or_default().to_owned();
    Ok((name, (number("major"), number("minor"))))
}

async fn send(
    client: &Client,
    action: &'static str,
    place: &Place,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, RequestError> {
    let failed = |source| RequestError::Failed {
        action,
        subject: place.to_string(),
        source: Box::new(source),
    };
    let request = request.map_err(|error| failed(::kube::Error::HttpError(error)))?;
    match client.request(request).await {
        Ok(value) => Ok(value),
        Err(::kube::Error::Api(status)) => Err(refused(action, place, *status)),
        Err(error) => Err(failed(error)),
    }
}

fn refused(action: &'static str, place: &Place, status: Status) -> RequestError {
    RequestError::Refused {
        action,
        subject: place.to_string(),
        code: status.code,
        message: status.message,
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, wanted};

    #[track_caller]
    fn check(api_version: &str, kind: &str, namespace: Option<&str>, path: &str) {
        assert_eq!(Place::new(api_version, kind, namespace, "x").path(), path);
    }

    #[test]
    fn every_kind_of_the_manifests_has_its_path() {
        check("v1", "Namespace", None, "/api/v1/namespaces/x");
        check(
            "v1",
            "ConfigMap",
            Some("n"),
            "/api/v1/namespaces/n/configmaps/x",
        );
        check(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            None,
            "/apis/scheduling.k8s.io/v1/priorityclasses/x",
        );
        check(
            "policy/v1",
            "PodDisruptionBudget",
            Some("n"),
            "/apis/policy/v1/namespaces/n/poddisruptionbudgets/x",
        );
        check(
            "fairlead.dev/v1alpha1",
            "MeshPolicy",
            None,
            "/apis/fairlead.dev/v1alpha1/meshpolicies/x",
        );
        check(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            None,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x",
        );
    }

    #[test]
    fn what_controllers_write_is_no_change() {
        let object = |image: &str, version: &str| {
            serde_json::json!({
                "metadata": {"resourceVersion": version, "generation": 1},
                "spec": {"image": image}, "status": {"seen": version},
            })
        };
        assert_eq!(wanted(object("a", "1")), wanted(object("a", "2")));
        assert_ne!(wanted(object("a", "1")), wanted(object("b", "1")));
    }

    #[test]
    fn a_manifest_without_a_name_is_refused() {
        let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}});
        let error = Place::of(&manifest).unwrap_err();
        assert!(error.to_string().contains("metadata.name"), "{error}");
    }
}
