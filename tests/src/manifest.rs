//! The directory of manifests that the agents of a world read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A directory of Kubernetes objects, one file each, replaced atomically.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// Makes the directory.
    pub(crate) fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes an object, or replaces the one of its kind, namespace and name.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(object)?;
        self.write(&file_name(object), &text)
    }

    /// Removes an object; it is enough to give kind, namespace and name.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.remove(&file_name(&json!({
            "kind": kind,
            "metadata": {"namespace": namespace, "name": name},
        })))
    }

    /// Writes a file as it is, also one that is no valid manifest.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .tempfile_in(&self.directory)?;
        std::io::Write::write_all(&mut temporary, text.as_bytes())?;
        let path = self.directory.join(file);
        let written = temporary.persist(&path);
        written
            .map(drop)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// A namespace, in the mesh or not.
    pub fn namespace(&self, name: &str, meshed: bool) -> Result<()> {
        let mesh = if meshed { "enabled" } else { "disabled" };
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"fairlead.dev/mesh": mesh}},
        }))
    }

    /// A Service that selects pods by their label `app`, with one TCP port.
    pub fn service(&self, name: (&str, &str), cluster_ips: &[&str], port: u16) -> Result<()> {
        let (namespace, name) = name;
        let first = cluster_ips.first().copied().unwrap_or("None");
        let all = if cluster_ips.is_empty() {
            &["None"]
        } else {
            cluster_ips
        };
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "clusterIP": first, "clusterIPs": all,
                "selector": {"app": name},
                "ports": [{"name": "tcp", "port": port, "protocol": "TCP"}],
            },
        }))
    }

    /// A `MeshPolicy` with an mTLS mode, for pods with the label `app: <app>` or the whole namespace.
    pub fn mtls(&self, namespace: &str, app: Option<&str>, mode: &str) -> Result<()> {
        let mut spec = json!({"mtls": {"mode": mode}});
        if let Some(app) = app {
            spec["selector"] = json!({"matchLabels": {"app": app}});
        }
        self.apply(&json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": {"namespace": namespace, "name": app.unwrap_or("default")},
            "spec": spec,
        }))
    }

    /// An `AuthorizationPolicy` for pods with the label `app: <app>`.
    pub fn authorization(
        &self,
        name: (&str, &str),
        app: &str,
        action: &str,
        rules: &Value,
    ) -> Result<()> {
        let (namespace, name) = name;
        self.apply(&json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "selector": {"matchLabels": {"app": app}},
                "action": action,
                "rules": rules,
            },
        }))
    }
}

fn file_name(object: &Value) -> String {
    let field = |path: &str| {
        let value = object.pointer(path).and_then(Value::as_str);
        value.unwrap_or("cluster").to_lowercase()
    };
    let (kind, namespace) = (field("/kind"), field("/metadata/namespace"));
    format!("{kind}.{namespace}.{}.json", field("/metadata/name"))
}
