//! The roots of the mesh in a ConfigMap, where agents mount them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, ObjectMeta};
use k8s_openapi::api::core::v1::ConfigMap;

use super::failure::{ApiFailure, post, within};
use crate::model::NamespacedName;

/// The key with the roots, PEM.
pub const BUNDLE_KEY: &str = "root-cert.pem";

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A ConfigMap on the API server.
#[derive(Clone)]
pub struct BundleStore {
    api: Api<ConfigMap>,
    name: NamespacedName,
}

/// What publishing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It was there already.
    Unchanged,
    /// There was no ConfigMap.
    Created,
    /// It said something else.
    Replaced,
}

impl BundleStore {
    /// The ConfigMap of this name.
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

    /// Sees to it that the ConfigMap has these roots. What else it has stays.
    pub async fn publish(&self, roots: &str) -> Result<Published, ApiFailure> {
        let params = post();
        let name = &self.name.name;
        let Some(mut object) = within(TIMEOUT, self.api.get_opt(name)).await? else {
            within(TIMEOUT, self.api.create(&params, &self.object(roots))).await?;
            return Ok(Published::Created);
        };
        let data = object.data.get_or_insert_default();
        if data.get(BUNDLE_KEY).is_some_and(|there| there == roots) {
            return Ok(Published::Unchanged);
        }
        data.insert(BUNDLE_KEY.to_owned(), roots.to_owned());
        within(TIMEOUT, self.api.replace(name, &params, &object)).await?;
        Ok(Published::Replaced)
    }

    fn object(&self, roots: &str) -> ConfigMap {
        let labels = BTreeMap::from([(
            "app.kubernetes.io/managed-by".to_owned(),
            "fairlead-ca".to_owned(),
        )]);
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.name.to_string()),
                namespace: Some(self.name.namespace.to_string()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(BUNDLE_KEY.to_owned(), roots.to_owned())])),
            ..ConfigMap::default()
        }
    }
}

impl fmt::Debug for BundleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BundleStore").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::kube::fake::FakeApi;

    const PATH: &str = "/api/v1/namespaces/fairlead-system/configmaps/roots";

    #[tokio::test]
    async fn roots_are_published_and_put_back() {
        let api = FakeApi::new();
        let name = NamespacedName::new("fairlead-system", "roots");
        let bundle = BundleStore::new(api.client(), name);
        assert_eq!(bundle.publish("one").await, Ok(Published::Created));
        assert_eq!(bundle.publish("one").await, Ok(Published::Unchanged));
        assert_eq!(bundle.publish("two").await, Ok(Published::Replaced));

        let mut object = api.get(PATH).unwrap();
        object["data"] = json!({"root-cert.pem": "of a stranger", "other": "kept"});
        object["metadata"]["labels"]["team"] = "kept".into();
        api.put(PATH, object);
        assert_eq!(bundle.publish("two").await, Ok(Published::Replaced));
        let object = api.get(PATH).unwrap();
        assert_eq!(
            object["data"],
            json!({"root-cert.pem": "two", "other": "kept"})
        );
        assert_eq!(object["metadata"]["labels"]["team"], "kept");
    }

    #[tokio::test]
    async fn what_is_not_permitted_names_verb_and_resource() {
        let api = FakeApi::new();
        api.forbid(Some("/api/v1/namespaces/fairlead-system/configmaps"));
        let name = NamespacedName::new("fairlead-system", "roots");
        let bundle = BundleStore::new(api.client(), name);
        let error = bundle.publish("one").await.unwrap_err();
        assert!(matches!(error, ApiFailure::Forbidden { .. }), "{error}");
        assert!(error.to_string().contains("cannot GET"), "{error}");
    }
}
