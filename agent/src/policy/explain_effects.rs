//! What the filters of a rule do to a request that is asked about, in sentences.

use super::explain_request::Asked;
use super::http::{BackendTarget, Filter};
use crate::state::{HeaderChange, PathChange, Redirect, Rewrite, Scheme};

/// What filters made of a request.
pub(super) struct Effects {
    pub(super) said: Vec<String>,
    /// The request as the back end sees it.
    pub(super) asked: Asked,
    /// Status and reason of an answer in place of the back end's.
    pub(super) answer: Option<(u16, String)>,
}

/// Lets the filters have the request; `prefix` bytes of its path are what the rule matched.
pub(super) fn effects(filters: &[Filter], mut asked: Asked, prefix: usize) -> Effects {
    let mut said = Vec::new();
    let mut answer = None;
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => {
                said.push(format!("request headers: {}", changes(change)));
                apply(change, &mut asked);
            }
            Filter::ResponseHeaders(change) => {
                said.push(format!("response headers: {}", changes(change)));
            }
            Filter::Redirect(redirect) => {
                let to = location(redirect, &asked, prefix);
                said.push(format!("clients are sent to {to} with {}", redirect.status));
                answer = Some((redirect.status, format!("redirect to {to}")));
            }
            Filter::Rewrite(rewrite) => said.push(rewritten(rewrite, &mut asked, prefix)),
            Filter::Cors(cors) => {
                said.push(format!(
                    "browsers may call from {}",
                    cors.allow_origins.join(", ")
                ));
            }
            Filter::Mirror(mirror) => {
                let to = match &mirror.target {
                    BackendTarget::Service { service, port } => format!("{service}:{port}"),
                    BackendTarget::Invalid(why) => format!("nowhere, because {why}"),
                };
                let (part, of) = (mirror.numerator, mirror.denominator);
                said.push(format!("{part} of {of} requests are copied to {to}"));
            }
        }
    }
    Effects {
        said,
        asked,
        answer,
    }
}

fn changes(change: &HeaderChange) -> String {
    let mut parts = Vec::new();
    parts.extend(change.set.iter().map(|(name, _)| format!("{name} is set")));
    parts.extend(
        change
            .add
            .iter()
            .map(|(name, _)| format!("{name} is added")),
    );
    parts.extend(
        change
            .remove
            .iter()
            .map(|name| format!("{name} is removed")),
    );
    parts.join(", ")
}

fn apply(change: &HeaderChange, asked: &mut Asked) {
    for (name, value) in &change.set {
        let _before = asked.headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &change.add {
        let _more = asked.headers.append(name.clone(), value.clone());
    }
    for name in &change.remove {
        let _before = asked.headers.remove(name);
    }
}

fn rewritten(rewrite: &Rewrite, asked: &mut Asked, prefix: usize) -> String {
    let mut parts = Vec::new();
    if let Some(host) = &rewrite.hostname {
        parts.push(format!("the host becomes {host}"));
        asked.host = host.to_string();
    }
    if let Some(change) = &rewrite.path {
        asked.path = changed(change, &asked.path, prefix);
        parts.push(format!("the path becomes {}", asked.path));
    }
    parts.join(", ")
}

fn location(redirect: &Redirect, asked: &Asked, prefix: usize) -> String {
    let scheme = match redirect.scheme {
        Some(Scheme::Https) => "https",
        Some(Scheme::Http) | None => "http",
    };
    let host = redirect.hostname.as_deref().unwrap_or(&asked.host);
    let port = redirect
        .port
        .map_or(String::new(), |port| format!(":{port}"));
    let path = match &redirect.path {
        Some(change) => changed(change, &asked.path, prefix),
        None => asked.path.clone(),
    };
    format!("{scheme}://{host}{port}{path}")
}

fn changed(change: &PathChange, path: &str, prefix: usize) -> String {
    match change {
        PathChange::Full(full) => full.to_string(),
        PathChange::Prefix(replacement) => {
            let rest = path.get(prefix..).unwrap_or_default();
            let rest = rest.trim_start_matches('/');
            let start = replacement.trim_end_matches('/');
            match (start.is_empty(), rest.is_empty()) {
                (true, _) => format!("/{rest}"),
                (false, true) => start.to_owned(),
                (false, false) => format!("{start}/{rest}"),
            }
        }
    }
}
