//! Whether a rule matches a connection or a request, and if not, by which field.
//!
//! Where something can be read in two ways, an ALLOW reads it in the one that does not
//! match, and anything else in the one that does: see [`Doubt`].

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::authorization::Request;
use super::request::{HttpRequest, bare_host};
use super::values::{is_header, is_method, is_path, is_principal};
use crate::model::SpiffeId;
use crate::state::{Action, Condition, From, PathPattern, Rule, StringMatch, Test, To, Values};

/// What a field says of something that isn't there, or that servers read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing about an identity that isn't there is true: an ALLOW.
    Fails,
    /// It is none of those that a `not` field lists: a DENY, which must not be
    /// escaped by showing no identity; an AUDIT, which is to see what a DENY would; a
    /// CUSTOM, so that nobody escapes being asked for.
    Matches,
}

impl Doubt {
    /// The other way round, for fields with `not`.
    fn inverse(self) -> Self {
        match self {
            Self::Fails => Self::Matches,
            Self::Matches => Self::Fails,
        }
    }
}

/// How a policy looks at a subject.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Of what is doubtful.
    doubt: Doubt,
    /// Of fields about a request, where there is none.
    no_request: Doubt,
    /// Of fields about a token, where there is none and one that fits were shown.
    token_to_come: Option<Doubt>,
}

impl View {
    /// Of a connection that carries no HTTP, or of a request.
    pub(super) fn of(action: Action) -> Self {
        let doubt = match action {
            Action::Allow => Doubt::Fails,
            Action::Deny | Action::Audit | Action::Custom => Doubt::Matches,
        };
        Self {
            doubt,
            no_request: doubt,
            token_to_come: None,
        }
    }

    /// Of a request without a token, as if it had one with which it is permitted.
    pub(super) fn with_any_token(action: Action) -> Self {
        let view = Self::of(action);
        Self {
            token_to_come: Some(view.doubt.inverse()),
            ..view
        }
    }

    /// Of a connection whose requests are still to come: they match all fields about
    /// requests, or none.
    pub(super) fn before_requests(action: Action, requests: Doubt) -> Self {
        Self {
            no_request: requests,
            ..Self::of(action)
        }
    }
}

/// The field by which a clause does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    field: &'static str,
    pub(super) why: Why,
}

/// Why a field does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The value is not in the list.
    NotListed,
    /// The value is in a list of exceptions.
    Excluded,
    /// The client has proven no identity, and the field asks for one.
    NoIdentity,
    /// The request has no verified token, and the field asks for one.
    NoToken,
    /// The field is about requests, and the connection carries none of HTTP.
    NoRequest,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotListed => "does not list it",
            Self::Excluded => "lists it",
            Self::NoIdentity => "asks for an identity and the client has none",
            Self::NoToken => "asks for a token and the request has none",
            Self::NoRequest => "is about requests and this is a connection without HTTP",
        })
    }
}

/// A connection, or a request of one, in the form in which rules compare it.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    peer: Option<&'a SpiffeId>,
    ip: IpAddr,
    port: u16,
    http: Option<&'a HttpRequest<'a>>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(request: &Request<'a>, http: Option<&'a HttpRequest<'a>>) -> Self {
        Self {
            peer: request.peer,
            ip: request.client_ip.to_canonical(),
            port: request.port,
            http,
        }
    }

    pub(super) fn is_request(&self) -> bool {
        self.http.is_some()
    }

    /// Any of `from`, or none given; any of `to`, or none given; and all of `when`.
    pub(super) fn matches(&self, rule: &Rule, view: View) -> bool {
        let from = |clause| self.source_mismatch(clause, view).is_none();
        let to = |clause| self.destination_mismatch(clause, view).is_none();
        let when = |condition| self.condition_mismatch(condition, view).is_none();
        (rule.from.is_empty() || rule.from.iter().any(from))
            && (rule.to.is_empty() || rule.to.iter().any(to))
            && rule.when.iter().all(when)
    }

    /// Whether the rule matches, and by which clauses, or why not.
    pub(super) fn explain(&self, rule: &Rule, view: View) -> (bool, String) {
        let from = rule.from.iter();
        let from = from.map(|from| self.source_mismatch(from, view));
        let to = rule.to.iter();
        let to = to.map(|to| self.destination_mismatch(to, view));
        let mut matching = Vec::new();
        let mut failing = Vec::new();
        for (name, mismatches) in [("from", from.collect::<Vec<_>>()), ("to", to.collect())] {
            match mismatches.iter().position(Option::is_none) {
                Some(position) => matching.push(format!("{name}[{position}]")),
                None => {
                    failing.extend(mismatches.iter().enumerate().filter_map(|(i, mismatch)| {
                        mismatch.map(|mismatch| format!("{name}[{i}].{mismatch}"))
                    }));
                }
            }
        }
        for (index, condition) in rule.when.iter().enumerate() {
            match self.condition_mismatch(condition, view) {
                None => matching.push(format!("when[{index}]")),
                Some(Mismatch { why, .. }) => {
                    failing.push(format!("when[{index}] {} {why}", condition.key));
                }
            }
        }
        let matches = failing.is_empty();
        let why = match (matches, matching.is_empty()) {
            (true, true) => "it has no clauses: it matches everything".to_owned(),
            (true, false) => matching.join(" and "),
            (false, _) => failing.join("; "),
        };
        (matches, why)
    }

    /// The first field of `from` that does not match; `None` where all do.
    fn source_mismatch(&self, from: &From, view: View) -> Option<Mismatch> {
        let principal = self.peer;
        let namespace = self.peer.map(|peer| &*peer.namespace);
        let ip = |block: &IpNet| block.contains(&self.ip);
        let identity = Presence::of_identity(view);
        let is_namespace = |pattern: &StringMatch, name: &str| pattern.matches(name);
        identity
            .listed("principals", &from.principals, principal, is_principal)
            .or_else(|| {
                let list = &from.not_principals;
                identity.excluded("notPrincipals", list, principal, is_principal)
            })
            .or_else(|| identity.listed("namespaces", &from.namespaces, namespace, is_namespace))
            .or_else(|| {
                let list = &from.not_namespaces;
                identity.excluded("notNamespaces", list, namespace, is_namespace)
            })
            .or_else(|| {
                let list = &from.service_accounts;
                identity.listed("serviceAccounts", list, principal, is_principal)
            })
            .or_else(|| {
                let list = &from.not_service_accounts;
                identity.excluded("notServiceAccounts", list, principal, is_principal)
            })
            .or_else(|| listed("ipBlocks", &from.ip_blocks, ip))
            .or_else(|| excluded("notIpBlocks", &from.not_ip_blocks, ip))
            .or_else(|| self.end_user_mismatch(from, view))
    }

    fn end_user_mismatch(&self, from: &From, view: View) -> Option<Mismatch> {
        let fields = [
            ("requestPrincipals", !from.request_principals.is_empty()),
            (
                "notRequestPrincipals",
                !from.not_request_principals.is_empty(),
            ),
        ];
        let http = match self.request(&fields, view) {
            Ok(http) => http?,
            Err(mismatch) => return Some(mismatch),
        };
        let principal = http.claims.and_then(|claims| claims.principal());
        let token = Presence::of_token(view);
        let is = |pattern: &StringMatch, text: &str| pattern.matches(text);
        let (list, none_of) = (&from.request_principals, &from.not_request_principals);
        token
            .listed("requestPrincipals", list, principal, is)
            .or_else(|| token.excluded("notRequestPrincipals", none_of, principal, is))
    }

    /// The first field of `to` that does not match; `None` where all do.
    fn destination_mismatch(&self, to: &To, view: View) -> Option<Mismatch> {
        let same = |port: &u16| *port == self.port;
        listed("ports", &to.ports, same)
            .or_else(|| excluded("notPorts", &to.not_ports, same))
            .or_else(|| self.operation_mismatch(to, view))
    }

    fn operation_mismatch(&self, to: &To, view: View) -> Option<Mismatch> {
        let fields = [
            ("methods", !to.methods.is_empty()),
            ("notMethods", !to.not_methods.is_empty()),
            ("paths", !to.paths.is_empty()),
            ("notPaths", !to.not_paths.is_empty()),
            ("hosts", !to.hosts.is_empty()),
            ("notHosts", !to.not_hosts.is_empty()),
        ];
        let http = match self.request(&fields, view) {
            Ok(http) => http?,
            Err(mismatch) => return Some(mismatch),
        };
        let method = |doubt| move |pattern: &StringMatch| is_method(pattern, http, doubt);
        let path = |doubt| move |pattern: &PathPattern| is_path(pattern, http, doubt);
        let host = |pattern: &StringMatch| {
            pattern.matches_any_case(bare_host(http.host)) || pattern.matches_any_case(http.host)
        };
        let (doubt, inverse) = (view.doubt, view.doubt.inverse());
        listed("methods", &to.methods, method(doubt))
            .or_else(|| excluded("notMethods", &to.not_methods, method(inverse)))
            .or_else(|| listed("paths", &to.paths, path(doubt)))
            .or_else(|| excluded("notPaths", &to.not_paths, path(inverse)))
            .or_else(|| listed("hosts", &to.hosts, host))
            .or_else(|| excluded("notHosts", &to.not_hosts, host))
    }

    /// Why a condition of `when` does not match; `None` where it does.
    fn condition_mismatch(&self, condition: &Condition, view: View) -> Option<Mismatch> {
        let http = match &condition.test {
            Test::Source(from) => return self.source_mismatch(from, view),
            Test::Destination(to) => return self.destination_mismatch(to, view),
            Test::Header { .. } | Test::Claim { .. } => self.request(&[("when", true)], view),
        };
        let http = match http {
            Ok(http) => http?,
            Err(mismatch) => return Some(mismatch),
        };
        match &condition.test {
            Test::Header { name, values } => header_mismatch(http, name, values, view.doubt),
            Test::Claim { path, values } => {
                let token = Presence::of_token(view);
                let is = |pattern: &StringMatch, claims: &super::jwt::Claims| {
                    claims.any(path, |text| pattern.matches(text))
                };
                token
                    .listed("values", &values.values, http.claims, is)
                    .or_else(|| token.excluded("notValues", &values.not_values, http.claims, is))
            }
            Test::Source(_) | Test::Destination(_) => None,
        }
    }

    /// The request that fields are about: `None` where no field is given, or where
    /// there is none and that counts as a match.
    fn request(
        &self,
        fields: &[(&'static str, bool)],
        view: View,
    ) -> Result<Option<&'a HttpRequest<'a>>, Mismatch> {
        let Some((field, _)) = fields.iter().find(|(_, given)| *given) else {
            return Ok(None);
        };
        match (self.http, view.no_request) {
            (Some(http), _) => Ok(Some(http)),
            (None, Doubt::Matches) => Ok(None),
            (None, Doubt::Fails) => Err(Mismatch {
                field,
                why: Why::NoRequest,
            }),
        }
    }
}

/// How lists look at something that may not be there.
#[derive(Clone, Copy)]
struct Presence {
    doubt: Doubt,
    absent: Why,
    /// What is not there is taken to be there, and to match or not.
    assumed: Option<Doubt>,
}

impl Presence {
    fn of_identity(view: View) -> Self {
        Self {
            doubt: view.doubt,
            absent: Why::NoIdentity,
            assumed: None,
        }
    }

    fn of_token(view: View) -> Self {
        Self {
            doubt: view.doubt,
            absent: Why::NoToken,
            assumed: view.token_to_come,
        }
    }

    fn listed<T: ?Sized>(
        self,
        field: &'static str,
        list: &[StringMatch],
        value: Option<&T>,
        is: impl Fn(&StringMatch, &T) -> bool,
    ) -> Option<Mismatch> {
        match value {
            _ if list.is_empty() => None,
            Some(value) => listed(field, list, |pattern| is(pattern, value)),
            None if self.assumed == Some(Doubt::Matches) => None,
            None => Some(self.mismatch(field)),
        }
    }

    fn excluded<T: ?Sized>(
        self,
        field: &'static str,
        list: &[StringMatch],
        value: Option<&T>,
        is: impl Fn(&StringMatch, &T) -> bool,
    ) -> Option<Mismatch> {
        match (value, self.assumed.unwrap_or(self.doubt)) {
            _ if list.is_empty() => None,
            (Some(value), _) => excluded(field, list, |pattern| is(pattern, value)),
            (None, Doubt::Matches) => None,
            (None, Doubt::Fails) => Some(self.mismatch(field)),
        }
    }

    fn mismatch(self, field: &'static str) -> Mismatch {
        let why = self.absent;
        Mismatch { field, why }
    }
}

fn header_mismatch(
    http: &HttpRequest<'_>,
    name: &str,
    values: &Values,
    doubt: Doubt,
) -> Option<Mismatch> {
    let mismatch = |field, why| Some(Mismatch { field, why });
    let (list, none_of) = (&values.values, &values.not_values);
    if !list.is_empty() && !is_header(list, http, name, doubt) {
        return mismatch("values", Why::NotListed);
    }
    if !none_of.is_empty() && is_header(none_of, http, name, doubt.inverse()) {
        return mismatch("notValues", Why::Excluded);
    }
    None
}

fn listed<T>(field: &'static str, list: &[T], is: impl Fn(&T) -> bool) -> Option<Mismatch> {
    let why = Why::NotListed;
    (!list.is_empty() && !list.iter().any(is)).then_some(Mismatch { field, why })
}

fn excluded<T>(field: &'static str, list: &[T], is: impl Fn(&T) -> bool) -> Option<Mismatch> {
    let why = Why::Excluded;
    list.iter().any(is).then_some(Mismatch { field, why })
}
