//! The routes of the Gateway API whose parents are Services, and `ReferenceGrant`s.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, Method};

use super::change::{ObjectKey, ObjectKind};
use super::pattern::Pattern;
use crate::model::NamespacedName;

/// The kinds of routes, the most specific first: where several are of one port of a
/// Service, only the first kind is in force there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// `GRPCRoute`.
    Grpc,
    /// `HTTPRoute`.
    Http,
    /// `TLSRoute`.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp];

    /// The kind of its objects.
    pub fn object(self) -> ObjectKind {
        match self {
            Self::Grpc => ObjectKind::GrpcRoute,
            Self::Http => ObjectKind::HttpRoute,
            Self::Tls => ObjectKind::TlsRoute,
            Self::Tcp => ObjectKind::TcpRoute,
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which kind.
    pub kind: RouteKind,
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.generation`; 0 where the source gives none.
    pub generation: i64,
    /// `metadata.creationTimestamp`, in seconds of Unix time; 0 where the source gives
    /// none. Of two routes that match as well the older one is in force.
    pub created: i64,
    /// Those of `spec.parentRefs` that are Services.
    pub parents: Vec<ParentRef>,
    /// `spec.hostnames` of a `TLSRoute`: names that clients ask for, `*.` for any below.
    /// Other routes have none: for parents that are Services theirs mean nothing.
    pub hostnames: Vec<Arc<str>>,
    /// `spec.rules`.
    pub rules: Vec<RouteRule>,
}

/// A Service that a route is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParentRef {
    /// The Service.
    pub service: NamespacedName,
    /// The namespace was written out.
    pub with_namespace: bool,
    /// `port`; all of the Service's where there is none.
    pub port: Option<u16>,
    /// `sectionName`: a port of the Service by its name.
    pub section: Option<Arc<str>>,
    /// Its place in `spec.parentRefs`.
    pub index: usize,
    /// What of it was not understood: the route is not of this parent.
    pub invalid: Option<Arc<str>>,
}

/// A rule of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// What it matches: any of these. One that was not understood is not among them, so
    /// that a rule without any matches nothing. Not used by `TLSRoute` and `TCPRoute`.
    pub matches: Vec<RequestMatch>,
    /// `filters`.
    pub filters: Vec<RouteFilter>,
    /// `backendRefs`.
    pub backends: Vec<BackendRef>,
    /// `timeouts`.
    pub timeouts: RouteTimeouts,
    /// `retry`.
    pub retry: Option<RouteRetry>,
    /// `sessionPersistence`.
    pub session: Option<SessionPersistence>,
    /// What of it was not understood beside its matches: it answers 500.
    pub invalid: Option<Invalid>,
    /// Matches of it that were not understood, and were left out.
    pub left_out: Option<Invalid>,
}

/// Why a rule is not in force as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The reason, as conditions spell it.
    pub reason: &'static str,
    /// Field and what is wrong with it.
    pub message: Arc<str>,
}

/// What a request must be like: everything that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMatch {
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Method>,
    /// Headers, each by another name.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query, each by another name.
    pub query: Vec<QueryMatch>,
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// Its first segments: `/a` is `/a` and `/a/b`, not `/ab`. Without a `/` at its end;
    /// the empty one is any path.
    Prefix(Arc<str>),
    /// All of it.
    Regex(Pattern),
    /// `/service/method` of gRPC; `None` is any.
    Grpc {
        /// With the package.
        service: Option<ValueMatch>,
        /// The method.
        method: Option<ValueMatch>,
    },
}

/// How a value is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// The whole value.
    Exact(Arc<str>),
    /// All of it.
    Regex(Pattern),
}

impl ValueMatch {
    /// The value is what is meant.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// A header and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The name.
    pub name: HeaderName,
    /// The value; the values of a header that is there several times are joined by commas.
    pub value: ValueMatch,
}

/// A parameter of the query and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// The name.
    pub name: Arc<str>,
    /// The value, decoded; the first one of a parameter that is there several times.
    pub value: ValueMatch,
}

/// What happens to requests and responses on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFilter {
    /// `RequestHeaderModifier`.
    RequestHeaders(Arc<HeaderChange>),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(Arc<HeaderChange>),
    /// `RequestRedirect`.
    Redirect(Arc<Redirect>),
    /// `URLRewrite`.
    Rewrite(Arc<Rewrite>),
    /// `CORS`.
    Cors(Arc<Cors>),
    /// `RequestMirror`.
    Mirror(MirrorRef),
}

/// Changes of headers; in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// Instead of any of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside any of the name.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// None of the name.
    pub remove: Vec<HeaderName>,
}

/// Headers that say where a message ends, or hold for one connection only. Changing one
/// would make the next hop read another message than the one that was sent.
pub fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 6] = [
        CONNECTION,
        CONTENT_LENGTH,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    FRAMING.contains(name) || name == "keep-alive" || name == "proxy-connection"
}

/// An answer that sends the client elsewhere; what is not given stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `scheme`.
    pub scheme: Option<Scheme>,
    /// `hostname`.
    pub hostname: Option<Arc<str>>,
    /// `port`.
    pub port: Option<u16>,
    /// `path`.
    pub path: Option<PathChange>,
    /// `statusCode`: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The scheme of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

/// What the back end sees in place of what the client asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// `hostname`.
    pub hostname: Option<Arc<str>>,
    /// `path`.
    pub path: Option<PathChange>,
}

/// What a path becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// `ReplaceFullPath`.
    Full(Arc<str>),
    /// `ReplacePrefixMatch`: in place of what the rule's prefix covered.
    Prefix(Arc<str>),
}

/// Which other origins browsers may let call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// `allowOrigins`, with wildcards.
    pub allow_origins: Vec<Arc<str>>,
    /// `allowMethods`.
    pub allow_methods: Vec<Arc<str>>,
    /// `allowHeaders`.
    pub allow_headers: Vec<Arc<str>>,
    /// `exposeHeaders`.
    pub expose_headers: Vec<Arc<str>>,
    /// `allowCredentials`.
    pub allow_credentials: bool,
    /// `maxAge`.
    pub max_age: Duration,
}

/// Where copies of requests go, and of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRef {
    /// The back end of the copies.
    pub reference: Reference,
    /// So many ..
    pub numerator: u32,
    /// .. of so many.
    pub denominator: u32,
}

/// A back end and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRef {
    /// The back end.
    pub reference: Reference,
    /// `weight`.
    pub weight: u32,
    /// `filters`.
    pub filters: Vec<RouteFilter>,
    /// What of it was not understood: its share of the requests gets 500.
    pub invalid: Option<Invalid>,
}

/// A reference to where requests are sent, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `group`.
    pub group: Arc<str>,
    /// `kind`.
    pub kind: Arc<str>,
    /// `namespace`, else the route's own, and `name`.
    pub name: NamespacedName,
    /// `port`.
    pub port: Option<u16>,
}

/// How long things may take; `None` is not given, zero is without end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the request's first byte to the response's last.
    pub request: Option<Duration>,
    /// The same for each request to a back end.
    pub backend_request: Option<Duration>,
}

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    /// How often at most.
    pub attempts: Option<u32>,
    /// After which status codes; after connection failures in any case.
    pub codes: Vec<u16>,
    /// Between two attempts at least.
    pub backoff: Option<Duration>,
}

/// Keeps a client at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// What carries the token.
    pub carrier: SessionCarrier,
    /// After which a session begins anew.
    pub absolute_timeout: Option<Duration>,
}

/// What carries the token of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie.
    Cookie {
        /// `cookie.name`, else made up.
        name: Option<Arc<str>>,
        /// `cookie.path`.
        path: Arc<str>,
        /// It outlives the browser.
        permanent: bool,
    },
    /// A header.
    Header {
        /// `header.name`.
        name: HeaderName,
    },
}

/// A `ReferenceGrant`: who may name what is in its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.from`.
    pub from: Vec<GrantFrom>,
    /// `spec.to`.
    pub to: Vec<GrantTo>,
}

/// Whose references are permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFrom {
    /// `group`.
    pub group: Arc<str>,
    /// `kind`.
    pub kind: Arc<str>,
    /// `namespace`.
    pub namespace: Arc<str>,
}

/// What may be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTo {
    /// `group`; empty for the core group.
    pub group: Arc<str>,
    /// `kind`.
    pub kind: Arc<str>,
    /// `name`; all where there is none.
    pub name: Option<Arc<str>>,
}

impl Route {
    /// What identifies it among all objects.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind.object(),
            name: self.name.clone(),
        }
    }
}
