//! Whether a rule matches a request, and if not, by which field.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::authorization::Request;
use crate::state::{Action, From, Rule, StringMatch, To};

/// What a field about identities says of a request without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Nothing about an identity that isn't there is true: an ALLOW.
    Required,
    /// It is none of those that a `not` field lists: a DENY, which must not be
    /// escaped by showing no identity; an AUDIT, which is to see what a DENY would.
    Optional,
}

impl Identity {
    pub(super) fn required_by(action: Action) -> Self {
        match action {
            Action::Allow => Self::Required,
            Action::Deny | Action::Audit => Self::Optional,
        }
    }
}

/// The field by which a clause does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// The request's value is not in the list.
    NotListed(&'static str),
    /// The request's value is in a list of exceptions.
    Excluded(&'static str),
    /// The client has proven no identity, and the field asks for one.
    NoIdentity(&'static str),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListed(field) => write!(f, "{field} does not list it"),
            Self::Excluded(field) => write!(f, "{field} lists it"),
            Self::NoIdentity(field) => {
                write!(f, "{field} asks for an identity and the client has none")
            }
        }
    }
}

/// A request in the form in which rules compare it.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// Without `spiffe://`.
    principal: Option<String>,
    namespace: Option<&'a str>,
    ip: IpAddr,
    port: u16,
}

impl<'a> Subject<'a> {
    pub(super) fn new(request: &Request<'a>) -> Self {
        let principal = request.peer.map(|peer| {
            let uri = peer.to_string();
            uri.strip_prefix("spiffe://")
                .map(str::to_owned)
                .unwrap_or(uri)
        });
        Self {
            principal,
            namespace: request.peer.map(|peer| &*peer.namespace),
            ip: request.client_ip.to_canonical(),
            port: request.port,
        }
    }

    /// Any of `from`, or none given; and any of `to`, or none given.
    pub(super) fn matches(&self, rule: &Rule, identity: Identity) -> bool {
        let from = |clause| self.source_mismatch(clause, identity).is_none();
        let to = |clause| self.destination_mismatch(clause).is_none();
        (rule.from.is_empty() || rule.from.iter().any(from))
            && (rule.to.is_empty() || rule.to.iter().any(to))
    }

    /// The first field of `from` that does not match; `None` where all do.
    pub(super) fn source_mismatch(&self, from: &From, identity: Identity) -> Option<Mismatch> {
        let principal = self.principal.as_deref();
        let namespace = self.namespace;
        let ip = |block: &IpNet| block.contains(&self.ip);
        identity_listed("principals", &from.principals, principal)
            .or_else(|| {
                identity_excluded("notPrincipals", &from.not_principals, principal, identity)
            })
            .or_else(|| identity_listed("namespaces", &from.namespaces, namespace))
            .or_else(|| {
                identity_excluded("notNamespaces", &from.not_namespaces, namespace, identity)
            })
            .or_else(|| listed("ipBlocks", &from.ip_blocks, ip))
            .or_else(|| excluded("notIpBlocks", &from.not_ip_blocks, ip))
    }

    /// The first field of `to` that does not match; `None` where all do.
    pub(super) fn destination_mismatch(&self, to: &To) -> Option<Mismatch> {
        let same = |port: &u16| *port == self.port;
        listed("ports", &to.ports, same).or_else(|| excluded("notPorts", &to.not_ports, same))
    }
}

fn identity_listed(
    field: &'static str,
    list: &[StringMatch],
    value: Option<&str>,
) -> Option<Mismatch> {
    match value {
        _ if list.is_empty() => None,
        Some(value) => listed(field, list, |pattern| pattern.matches(value)),
        None => Some(Mismatch::NoIdentity(field)),
    }
}

fn identity_excluded(
    field: &'static str,
    list: &[StringMatch],
    value: Option<&str>,
    identity: Identity,
) -> Option<Mismatch> {
    match value {
        _ if list.is_empty() => None,
        Some(value) => excluded(field, list, |pattern| pattern.matches(value)),
        None if identity == Identity::Optional => None,
        None => Some(Mismatch::NoIdentity(field)),
    }
}

fn listed<T>(field: &'static str, list: &[T], is: impl Fn(&T) -> bool) -> Option<Mismatch> {
    (!list.is_empty() && !list.iter().any(is)).then_some(Mismatch::NotListed(field))
}

fn excluded<T>(field: &'static str, list: &[T], is: impl Fn(&T) -> bool) -> Option<Mismatch> {
    list.iter().any(is).then_some(Mismatch::Excluded(field))
}
