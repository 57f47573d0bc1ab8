//! Tables of small worlds, and what they decide.

mod authorize;
mod compile;
mod explain;
mod explain_request;
mod mtls;
mod protocol;
mod requests;
mod route;
mod scale;
mod traffic;

use std::net::IpAddr;

use super::{Decision, Permission, Request, Table};
use crate::model::{NamespacedName, SpiffeId};
use crate::state::fixtures::{World, ip, name, namespace, pod};
use crate::state::{
    Action, AuthorizationPolicy, From, MeshPolicy, MtlsMode, Object, PolicyScope, Rule, Selector,
    StringMatch, To,
};

/// An `AuthorizationPolicy` for its whole namespace.
fn policy(text: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: name(text),
        scope: PolicyScope::Pods(Selector::default()),
        action,
        dry_run: false,
        rules,
        provider: None,
        generation: 0,
        invalid: None,
    }
}

/// A `MeshPolicy` for its whole namespace.
fn mesh(text: &str, mtls: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> MeshPolicy {
    MeshPolicy {
        name: name(text),
        scope: PolicyScope::Pods(Selector::default()),
        mtls,
        port_mtls: ports.iter().copied().collect(),
        jwt: Vec::new(),
        jwt_invalid: false,
        access_log: None,
        generation: 0,
        invalid: None,
    }
}

fn from(source: From) -> Rule {
    Rule {
        from: vec![source],
        ..Rule::default()
    }
}

fn to(operation: To) -> Rule {
    Rule {
        to: vec![operation],
        ..Rule::default()
    }
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.to_owned())]
}

fn principals(text: &str) -> Rule {
    from(From {
        principals: exact(text),
        ..From::default()
    })
}

fn ports(ports: &[u16]) -> Rule {
    to(To {
        ports: ports.to_vec(),
        ..To::default()
    })
}

/// A table with the enrolled pod `shop/web` and these policies.
fn table(policies: impl IntoIterator<Item = Object>) -> Table {
    let mut world = World::new([
        namespace("shop", "enabled"),
        Object::Pod(pod("shop/web", &["10.0.0.1"])),
    ]);
    for object in policies {
        world.put(object);
    }
    Table::compile(None, world.now())
}

/// The client `shop/cart` over mTLS from 10.1.2.3 to port 8080.
struct Client {
    identity: Option<SpiffeId>,
    ip: IpAddr,
    port: u16,
    encrypted: bool,
}

impl Client {
    fn cart() -> Self {
        Self {
            identity: Some("spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()),
            ip: ip("10.1.2.3"),
            port: 8080,
            encrypted: true,
        }
    }

    fn plaintext() -> Self {
        Self {
            identity: None,
            encrypted: false,
            ..Self::cart()
        }
    }

    fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    fn ip(self, text: &str) -> Self {
        Self {
            ip: ip(text),
            ..self
        }
    }

    fn decide(&self, table: &Table, pod: &NamespacedName) -> Decision {
        table.inbound(pod).authorize(&Request {
            peer: self.identity.as_ref(),
            client_ip: self.ip,
            port: self.port,
            encrypted: self.encrypted,
        })
    }
}

/// The verdict in a word, with the policy that decided.
fn words(decision: &Decision) -> String {
    let verdict = match decision.verdict {
        Permission::Permitted => "permitted",
        Permission::Denied(reason) => reason.as_str(),
    };
    match &decision.policy {
        Some(policy) => format!("{verdict} {policy}"),
        None => verdict.to_owned(),
    }
}
