//! One Secret, by name: read, made where there is none, and replaced as it was read.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, ObjectMeta};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::failure::{ApiFailure, post, within};
use crate::model::NamespacedName;

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A Secret's content, with what else the object has. `Debug` shows names alone.
#[derive(Clone, PartialEq)]
pub struct SecretObject(Secret);

impl SecretObject {
    /// One that is not on the API server yet.
    pub fn new(name: &NamespacedName) -> Self {
        let labels = BTreeMap::from([(
            "app.kubernetes.io/managed-by".to_owned(),
            "fairlead-ca".to_owned(),
        )]);
        Self(Secret {
            metadata: ObjectMeta {
                name: Some(name.name.to_string()),
                namespace: Some(name.namespace.to_string()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        })
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        let data = self.0.data.as_ref()?;
        data.get(key).map(|value| value.0.as_slice())
    }

    /// Sets the value of a key; `None` removes it.
    pub fn set_value(&mut self, key: &str, value: Option<Vec<u8>>) {
        let data = self.0.data.get_or_insert_default();
        match value {
            Some(value) => data.insert(key.to_owned(), ByteString(value)),
            None => data.remove(key),
        };
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let annotations = self.0.metadata.annotations.as_ref()?;
        annotations.get(key).map(String::as_str)
    }

    /// Sets an annotation; `None` removes it.
    pub fn set_annotation(&mut self, key: &str, value: Option<String>) {
        let annotations = self.0.metadata.annotations.get_or_insert_default();
        match value {
            Some(value) => annotations.insert(key.to_owned(), value),
            None => annotations.remove(key),
        };
    }

    /// Tells whether two readings are of the same content, without comparing it.
    pub fn version(&self) -> &str {
        let version = self.0.metadata.resource_version.as_deref();
        version.unwrap_or_default()
    }
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.0.data.as_ref();
        f.debug_struct("SecretObject")
            .field("name", &self.0.metadata.name)
            .field("version", &self.version())
            .field("keys", &data.map(|data| data.keys().collect::<Vec<_>>()))
            .finish_non_exhaustive()
    }
}

/// A Secret on the API server.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    name: NamespacedName,
}

impl SecretStore {
    /// The Secret of this name.
    pub fn new(client: Client, name: NamespacedName) -> Self {
        Self {
            api: Api::namespaced(client, &name.namespace),
            name,
        }
    }

    /// Its name.
    pub fn name(&self) -> &NamespacedName {
        &self.name
    }

    /// What is there now.
    pub async fn read(&self) -> Result<Option<SecretObject>, ApiFailure> {
        let found = within(TIMEOUT, self.api.get_opt(&self.name.name)).await?;
        Ok(found.map(SecretObject))
    }

    /// Makes it. [`ApiFailure::Conflict`] where there is one: nothing is overwritten.
    pub async fn create(&self, object: &SecretObject) -> Result<SecretObject, ApiFailure> {
        let params = post();
        let created = within(TIMEOUT, self.api.create(&params, &object.0)).await?;
        Ok(SecretObject(created))
    }

    /// Replaces it. [`ApiFailure::Conflict`] where it is not as `object` was read any more.
    pub async fn replace(&self, object: &SecretObject) -> Result<SecretObject, ApiFailure> {
        let params = post();
        let replacing = self.api.replace(&self.name.name, &params, &object.0);
        Ok(SecretObject(within(TIMEOUT, replacing).await?))
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretStore").field(&self.name).finish()
    }
}
