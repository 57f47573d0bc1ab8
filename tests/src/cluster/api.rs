//! Requests to an API server, as one of its users.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::pki::Pair;
use crate::place::Place;
use crate::process::{self, Output};

/// Who owns the fields that the harness applies.
const MANAGER: &str = "fairlead-tests";

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How a user proves who they are.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    Certificate(Pair),
    /// A file with a bearer token, read for each request.
    Token(PathBuf),
}

/// An API server, spoken to as one user.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) place: Place,
    pub(super) url: String,
    pub(super) root: PathBuf,
    pub(super) credentials: Credentials,
    pub(super) kubectl: PathBuf,
    pub(super) directory: PathBuf,
}

impl Api {
    /// Reads an object or a list by its path, such as `/api/v1/nodes`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)
    }

    /// Creates an object and returns it as the server keeps it.
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.request("POST", &collection(object)?, Some(object))
    }

    /// Creates or changes an object by server-side apply, taking over its fields.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager={MANAGER}&force=true", path_of(object)?);
        self.request("APPLY", &path, Some(object))
    }

    /// Changes an object by a merge patch: `null` removes a field.
    pub fn merge(&self, object: &Value, subresource: &str, patch: &Value) -> Result<Value> {
        let target = format!("{}{subresource}", path_of(object)?);
        self.request("MERGE", &target, Some(patch))
    }

    /// Sets the status of an object.
    pub fn set_status(&self, object: &Value, status: &Value) -> Result<Value> {
        self.merge(object, "/status", &json!({ "status": status }))
    }

    /// Deletes an object at once. One that is gone already is no error.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.delete_with(object, &now)
    }

    /// Deletes an object with a grace period: it stays, marked, until it is deleted again.
    pub fn delete_gracefully(&self, object: &Value, seconds: u32) -> Result<()> {
        let options =
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": seconds});
        self.delete_with(object, &options)
    }

    fn delete_with(&self, object: &Value, options: &Value) -> Result<()> {
        let (code, answer) = self.send("DELETE", &path_of(object)?, Some(options))?;
        match code {
            200..=299 | 404 => Ok(()),
            _ => Err(refusal("DELETE", &path_of(object)?, code, &answer)),
        }
    }

    /// Sends a request that has to succeed. The methods `APPLY` and `MERGE` are patches
    /// of those kinds.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (code, answer) = self.send(method, path, body)?;
        if !(200..300).contains(&code) {
            return Err(refusal(method, path, code, &answer));
        }
        serde_json::from_str(&answer).with_context(|| format!("{method} {path} said: {answer}"))
    }

    /// Sends a request; returns the status code and the body of the answer.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        self.send_with(method, path, body, &[])
    }

    fn send_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        more: &[&str],
    ) -> Result<(u16, String)> {
        let (verb, content) = match method {
            "APPLY" => ("PATCH", "application/apply-patch+yaml"),
            "MERGE" => ("PATCH", "application/merge-patch+json"),
            other => (other, "application/json"),
        };
        let mut command = self.place.command("curl");
        let _: &mut Command = command
            .args([
                "-sS",
                "--max-time",
                "20",
                "-w",
                "\n%{http_code}",
                "-X",
                verb,
            ])
            .arg("--cacert")
            .arg(&self.root)
            .args(more);
        match &self.credentials {
            Credentials::Certificate(pair) => {
                let _: &mut Command = command
                    .arg("--cert")
                    .arg(&pair.certificate)
                    .arg("--key")
                    .arg(&pair.key);
            }
            Credentials::Token(file) => {
                let token = fs::read_to_string(file)?;
                let _: &mut Command =
                    command.args(["-H", &format!("Authorization: Bearer {}", token.trim())]);
            }
        }
        // Too long for the command line, if it is a list.
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        if let Some(body) = body {
            file.write_all(body.to_string().as_bytes())?;
            let _: &mut Command = command
                .args(["-H", &format!("Content-Type: {content}")])
                .arg("--data-binary")
                .arg(format!("@{}", file.path().display()));
        }
        let output = process::run(command.arg(format!("{}{path}", self.url)), LIMIT)?
            .ok()
            .with_context(|| format!("{method} {path}"))?;
        let (answer, code) = output
            .stdout
            .rsplit_once('\n')
            .ok_or_else(|| anyhow!("{method} {path}: curl printed nothing"))?;
        Ok((code.parse()?, answer.to_owned()))
    }

    /// Runs kubectl as this user.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.place.command(&self.kubectl);
        let _: &mut Command = command
            .arg("--kubeconfig")
            .arg(self.kubeconfig("kubectl")?)
            .arg("--cache-dir")
            .arg(self.directory.join("kubectl-cache"))
            .args(arguments)
            .env("HOME", &self.directory);
        process::run(&mut command, LIMIT)
    }

    /// Writes a kubeconfig of this name for this user.
    pub fn kubeconfig(&self, name: &str) -> Result<PathBuf> {
        let user = match &self.credentials {
            Credentials::Certificate(pair) => json!({
                "client-certificate": pair.certificate,
                "client-key": pair.key,
            }),
            Credentials::Token(file) => json!({ "tokenFile": file }),
        };
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url, "certificate-authority": self.root,
            }}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = self.directory.join(format!("{name}.kubeconfig"));
        fs::write(&path, text.to_string())?;
        Ok(path)
    }

    /// The same server, spoken to with the token in a file.
    #[must_use]
    pub fn with_token(&self, file: &Path) -> Self {
        Self {
            credentials: Credentials::Token(file.to_owned()),
            ..self.clone()
        }
    }

    /// Whether `user` may do this to resources of these attributes, such as
    /// `{"verb": "get", "resource": "secrets"}`; as `kubectl auth can-i --as` asks.
    pub fn may(&self, user: &str, attributes: &Value) -> Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let header = format!("Impersonate-User: {user}");
        let (code, answer) = self.send_with("POST", path, Some(&review), &["-H", &header])?;
        let value: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        let allowed = value["status"]["allowed"].as_bool();
        allowed.with_context(|| format!("a review of {attributes}: {code}: {answer}"))
    }
}

fn refusal(method: &str, path: &str, code: u16, answer: &str) -> anyhow::Error {
    anyhow!("{method} {path}: {code}: {answer}")
}

/// The path of an object's collection.
fn collection(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let version = text("/apiVersion").context("an object has an apiVersion")?;
    let kind = text("/kind")
        .context("an object has a kind")?
        .to_lowercase();
    let mut path = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    if let Some(namespace) = text("/metadata/namespace") {
        write!(path, "/namespaces/{namespace}")?;
    }
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    };
    write!(path, "/{plural}")?;
    Ok(path)
}

/// The path of an object.
pub(super) fn path_of(object: &Value) -> Result<String> {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .context("an object has a name")?;
    Ok(format!("{}/{name}", collection(object)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::path_of;

    #[track_caller]
    fn check(version: &str, kind: &str, namespace: Option<&str>, expected: &str) {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = namespace.into();
        }
        assert_eq!(path_of(&object).unwrap(), expected);
    }

    #[test]
    fn kinds_have_their_paths() {
        check("v1", "Node", None, "/api/v1/nodes/x");
        check("v1", "Pod", Some("shop"), "/api/v1/namespaces/shop/pods/x");
        check(
            "fairlead.dev/v1alpha1",
            "MeshPolicy",
            Some("shop"),
            "/apis/fairlead.dev/v1alpha1/namespaces/shop/meshpolicies/x",
        );
        check(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            None,
            "/apis/scheduling.k8s.io/v1/priorityclasses/x",
        );
    }
}
