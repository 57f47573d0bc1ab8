//! The request that is asked about, and what a rule does to it, in sentences.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::authorization::{Permission, Request};
use super::explain_traffic::Seen;
use super::explanation::RequestQuestion;
use super::http::{BackendTarget, CompiledRule, Filter, RequestHead};
use super::inbound::InboundPolicy;
use super::request::HttpRequest;
use super::target::{ExplainError, Target};
use crate::model::NamespacedName;
use crate::state::{HeaderChange, PathChange, Redirect, Rewrite, Scheme, Snapshot};

/// A request that makes sense.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) host: String,
    pub(super) headers: HeaderMap,
    /// That the client dials.
    port: u16,
    /// The Service that is there.
    pub(super) dialled: Option<(NamespacedName, u16)>,
}

impl Asked {
    /// A request to the target; whose host it has if it names none.
    pub(super) fn new(question: &RequestQuestion, to: &Target) -> Result<Self, ExplainError> {
        let bad = |text: String| ExplainError::BadRequest(text);
        let method = question.method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_invalid| bad(format!("\"{method}\" is not a method")))?;
        let target = question.path.as_deref().unwrap_or("/");
        if !target.starts_with('/') && target != "*" {
            return Err(bad(format!("the path \"{target}\" does not begin with /")));
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes());
            let parsed =
                parsed.map_err(|_invalid| bad(format!("\"{name}\" is not a header's name")))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_invalid| bad(format!("the value of header {name} is not one")))?;
            let _more = headers.append(parsed, value);
        }
        let named = headers.remove(http::header::HOST);
        let named = named.and_then(|it| it.to_str().ok().map(str::to_owned));
        Ok(Self {
            method,
            path: path.to_owned(),
            query,
            host: question.host.clone().or(named).unwrap_or_else(|| to.host()),
            headers,
            port: to.port(),
            dialled: None,
        })
    }

    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            host: &self.host,
            headers: &self.headers,
        }
    }

    pub(super) fn seen(&self) -> Seen<'_> {
        Seen {
            method: &self.method,
            path: &self.path,
            headers: &self.headers,
        }
    }
}

/// What a server asks of a request beside its rules: a token, somebody else's word.
pub(super) fn asks(
    snapshot: &Snapshot,
    policy: &InboundPolicy,
    request: &Request<'_>,
    http: &HttpRequest<'_>,
) -> Vec<String> {
    let issuers = policy.jwt().iter();
    let mut said: Vec<String> = issuers
        .map(|it| {
            format!(
                "tokens of {} are verified; the question has none",
                it.issuer
            )
        })
        .collect();
    if policy.lacks_token(request, http) {
        said.push("with the right token it would be permitted".to_owned());
    }
    if policy.authorize_request(request, http).verdict == Permission::Permitted {
        let external = policy.external(request, http).into_iter();
        said.extend(external.map(|(provider, rule)| {
            let otherwise = match (snapshot.has_provider(&provider), provider.fail_open) {
                (true, true) => "permitted",
                (true, false) => "refused",
                (false, _) => "refused; and there is no such Service",
            };
            format!(
                "as {rule} says, {}:{} is asked too and decides; without its answer the request \
                 is {otherwise}",
                provider.service, provider.port
            )
        }));
    }
    said
}

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
    let entries = change.set.iter().chain(&change.add);
    let hosts = entries.filter(|(name, _)| name == http::header::HOST);
    if let Some(Ok(host)) = hosts.last().map(|(_, host)| host.to_str()) {
        host.clone_into(&mut asked.host);
    }
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
    let (scheme, well_known) = match redirect.scheme {
        Some(Scheme::Https) => ("https", 443),
        Some(Scheme::Http) | None => ("http", 80),
    };
    let host = redirect.hostname.as_deref();
    let host = host.unwrap_or_else(|| without_port(&asked.host));
    let implied = redirect.scheme.map_or(asked.port, |_named| well_known);
    let port = match redirect.port.unwrap_or(implied) {
        port if port == well_known => String::new(),
        port => format!(":{port}"),
    };
    let path = match &redirect.path {
        Some(change) => changed(change, &asked.path, prefix),
        None => asked.path.clone(),
    };
    let query = match &asked.query {
        Some(query) if !path.contains('?') => format!("?{query}"),
        Some(_) | None => String::new(),
    };
    format!("{scheme}://{host}{port}{path}{query}")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    }
}

fn changed(change: &PathChange, path: &str, prefix: usize) -> String {
    match change {
        PathChange::Full(full) => full.to_string(),
        PathChange::Prefix(replacement) => {
            let covered = path.get(..prefix).unwrap_or(path).trim_end_matches('/');
            let (start, rest) = (replacement.trim_end_matches('/'), &path[covered.len()..]);
            match (start, rest) {
                ("", "") => "/".to_owned(),
                (start, rest) => format!("{start}{rest}"),
            }
        }
    }
}

/// Time limits, retries and sessions of a rule, in sentences.
pub(super) fn rule_limits(rule: &CompiledRule) -> Vec<String> {
    let mut said = Vec::new();
    let timeouts = [
        ("the request", rule.timeouts.request),
        ("each try", rule.timeouts.backend_request),
    ];
    for (what, limit) in timeouts {
        if let Some(limit) = limit.filter(|it| !it.is_zero()) {
            said.push(format!("{what} may take {limit:?}"));
        }
    }
    if let Some(retry) = &rule.retry {
        let attempts = retry
            .attempts
            .map_or(String::new(), |it| format!(" up to {it} times"));
        let codes: Vec<String> = retry.codes.iter().map(ToString::to_string).collect();
        let codes = if codes.is_empty() {
            String::new()
        } else {
            format!(" and answers {}", codes.join(", "))
        };
        said.push(format!(
            "it is tried again{attempts} after failures to connect{codes}"
        ));
    }
    if rule.session.is_some() {
        said.push("a client with a session stays with its endpoint".to_owned());
    }
    said
}
