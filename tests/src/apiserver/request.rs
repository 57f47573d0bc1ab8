//! What a request asks for, as far as its path and query tell.

use std::collections::BTreeMap;

use http::{Method, Uri};

use super::failure::Failure;
use super::kind::qualified;

/// A request to an object, to objects, or to neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) verb: &'static str,
    /// `None`: a path such as `/version` or discovery.
    pub(super) resource: Option<ResourcePath>,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
}

/// Where in the API's tree a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResourcePath {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    /// Empty: all, or the kind has none.
    pub(super) namespace: String,
    /// Empty: many objects, or one that is to be created.
    pub(super) name: String,
    /// Such as `status`; empty for the object itself.
    pub(super) subresource: String,
}

impl Target {
    pub(super) fn parse(method: &Method, uri: &Uri) -> Result<Self, Failure> {
        let query = parse_query(uri.query().unwrap_or_default());
        let segments: Vec<&str> = uri.path().split('/').filter(|s| !s.is_empty()).collect();
        let resource = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                Some(ResourcePath::parse("", version, rest)?)
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                Some(ResourcePath::parse(group, version, rest)?)
            }
            _ => None,
        };
        let named = resource.as_ref().is_some_and(|path| !path.name.is_empty());
        let watch = query.get("watch").is_some_and(|v| v == "true" || v == "1");
        let verb = match (method.as_str(), named) {
            _ if resource.is_none() => "get",
            ("GET" | "HEAD", _) if watch => "watch",
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            (other, _) => {
                let message = format!("the server does not allow {other}");
                return Err(Failure::new(405, "MethodNotAllowed", message));
            }
        };
        Ok(Self {
            verb,
            resource,
            path: uri.path().to_owned(),
            query,
        })
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.query
            .get(key)
            .is_some_and(|value| value == "true" || value == "1")
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let number = text.parse().ok();
        let invalid = || Failure::bad_request(format!("invalid value for {key}: \"{text}\""));
        number.map(Some).ok_or_else(invalid)
    }
}

impl ResourcePath {
    fn parse(group: &str, version: &str, rest: &[&str]) -> Result<Self, Failure> {
        let (namespace, rest) = match rest {
            // Namespaces are objects too, with subresources of their own.
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, inner @ ..] if !inner.is_empty() => (*namespace, inner),
            _ => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, "", ""),
            [plural, name] => (plural, *name, ""),
            [plural, name, subresource] => (plural, *name, *subresource),
            _ => return Err(Failure::new(404, "NotFound", "404 page not found")),
        };
        Ok(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: (*plural).to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        })
    }

    /// `plural` or `plural/subresource`, as rules name it.
    pub(super) fn with_subresource(&self) -> String {
        if self.subresource.is_empty() {
            self.plural.clone()
        } else {
            format!("{}/{}", self.plural, self.subresource)
        }
    }

    /// `plural.group`, as messages name it.
    pub(super) fn qualified(&self) -> String {
        qualified(&self.group, &self.plural)
    }
}

fn parse_query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|b| char::from(b.unwrap_or(b'0')));
                let digits: String = digits.iter().collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::Target;

    #[track_caller]
    fn check(method: &Method, uri: &str, verb: &str, expected: [&str; 5]) {
        let target = Target::parse(method, &uri.parse().unwrap()).unwrap();
        assert_eq!(target.verb, verb);
        let path = target.resource.unwrap();
        let found = [
            &path.group,
            &path.plural,
            &path.namespace,
            &path.name,
            &path.subresource,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_are_the_apis_tree() {
        let get = &Method::GET;
        check(get, "/api/v1/pods", "list", ["", "pods", "", "", ""]);
        check(
            get,
            "/api/v1/pods?watch=true",
            "watch",
            ["", "pods", "", "", ""],
        );
        let path = "/api/v1/namespaces/shop/pods/web/status";
        check(
            &Method::PATCH,
            path,
            "patch",
            ["", "pods", "shop", "web", "status"],
        );
        let path = "/api/v1/namespaces/shop";
        check(get, path, "get", ["", "namespaces", "", "shop", ""]);
        let path = "/apis/fairlead.dev/v1alpha1/namespaces/shop/meshpolicies";
        let expected = ["fairlead.dev", "meshpolicies", "shop", "", ""];
        check(&Method::POST, path, "create", expected);
    }

    #[test]
    fn discovery_is_no_resource() {
        for path in ["/api", "/apis", "/api/v1", "/apis/apps/v1", "/version"] {
            let target = Target::parse(&Method::GET, &path.parse().unwrap()).unwrap();
            assert_eq!(target.resource, None, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let uri = "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=5";
        let target = Target::parse(&Method::GET, &uri.parse().unwrap()).unwrap();
        assert_eq!(target.text("fieldSelector"), "spec.nodeName=n1");
        assert_eq!(target.number("limit"), Ok(Some(5)));
        assert!(!target.flag("watch"));
    }
}
