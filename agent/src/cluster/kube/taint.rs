//! Taints of the agent's own node.

use std::time::Duration;

use ::kube::Client;
use http::{Method, Request};
use serde_json::{Value, json};

use super::failure::{ApiFailure, within};
use crate::model::NodeName;

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Others change the node at the same time, in a row.
const RACES: usize = 5;

/// Removes every taint of this key from a node. Returns whether there was one.
pub async fn remove_taint(client: &Client, node: &NodeName, key: &str) -> Result<bool, ApiFailure> {
    let mut race = 0;
    loop {
        let get = request(Method::GET, node, Vec::new());
        let object: Value = within(TIMEOUT, client.request(get)).await?;
        let Some(patch) = without(&object["spec"]["taints"], key) else {
            return Ok(false);
        };
        let patch = request(Method::PATCH, node, patch.to_string().into_bytes());
        race += 1;
        match within(TIMEOUT, client.request::<Value>(patch)).await {
            Ok(_) => return Ok(true),
            // The list is not any more as it was read.
            Err(ApiFailure::Conflict { .. } | ApiFailure::Refused { code: 422, .. })
                if race < RACES => {}
            Err(error) => return Err(error),
        }
    }
}

fn request(method: Method, node: &NodeName, body: Vec<u8>) -> Request<Vec<u8>> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    let path = format!("/api/v1/nodes/{node}");
    // A name that makes no path is no node's; the API server says so.
    *request.uri_mut() = path.parse().unwrap_or_default();
    let kind = http::HeaderValue::from_static("application/json-patch+json");
    let _before = request
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    request
}

/// A patch that holds only while the list is as it was read; `None` where the taint is
/// not in it.
fn without(taints: &Value, key: &str) -> Option<Value> {
    let list = taints.as_array()?;
    let others = list.iter().filter(|taint| taint["key"] != key);
    let others: Vec<&Value> = others.collect();
    (others.len() < list.len()).then(|| {
        json!([
            {"op": "test", "path": "/spec/taints", "value": list},
            {"op": "replace", "path": "/spec/taints", "value": others},
        ])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::without;

    #[test]
    fn only_this_taint_goes_and_only_from_the_list_that_was_read() {
        let other = json!({"key": "other", "effect": "NoExecute"});
        let own = json!({"key": "fairlead.dev/agent-not-ready", "effect": "NoSchedule"});
        let list = json!([other, own]);
        let patch = without(&list, "fairlead.dev/agent-not-ready").unwrap();
        assert_eq!(patch[0]["op"], "test");
        assert_eq!(patch[0]["value"], list);
        assert_eq!(patch[1]["value"], json!([other]));
    }

    #[test]
    fn nothing_is_written_where_it_is_not_there() {
        assert_eq!(without(&Value::Null, "k"), None);
        assert_eq!(without(&json!([{"key": "other"}]), "k"), None);
    }
}
