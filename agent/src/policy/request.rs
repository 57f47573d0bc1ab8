//! One request of HTTP, as rules see it.

use http::{HeaderMap, Method};

use super::jwt::Claims;

/// What is known of a request besides its connection.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path without the query, in the form of [`crate::model::normal_path`]; `None`
    /// for CONNECT, which has none.
    pub path: Option<&'a str>,
    /// The host that it is for, with its port where it names one.
    pub host: &'a str,
    /// Its headers, as the client sent them.
    pub headers: &'a HeaderMap,
    /// What its verified token says.
    pub claims: Option<&'a Claims>,
}

/// A host without its port and the dot of the root.
pub(super) fn bare_host(host: &str) -> &str {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // Colons of an IPv6 address stand between brackets.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    };
    without_port.strip_suffix('.').unwrap_or(without_port)
}

#[cfg(test)]
mod tests {
    use super::bare_host;

    #[test]
    fn hosts_without_ports() {
        for (host, bare) in [
            ("web", "web"),
            ("web:8080", "web"),
            ("web.shop.:80", "web.shop"),
            ("web.", "web"),
            ("web:", "web"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(bare_host(host), bare, "{host}");
        }
    }
}
