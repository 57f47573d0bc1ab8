//! An API server of Kubernetes inside the process that tests.
//!
//! It speaks the real protocol over HTTP/1.1 and HTTP/2, with TLS or without: discovery,
//! lists with pages, streaming lists, watches with bookmarks, optimistic concurrency,
//! patches and server-side apply, tokens and their reviews, rules and refusals. It has
//! no controllers and no kubelet: what is put there stays as it is. It can be told to
//! fail in every way that a real one does.
//!
//! It runs on a runtime of its own, so that its methods can be called from anywhere.

mod access;
mod discovery;
mod failure;
mod fault;
mod handler;
mod kind;
mod list;
mod listener;
mod merge;
mod object;
mod record;
mod request;
mod review;
mod selector;
mod shared;
mod store;
mod watch;
mod write;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub use access::{Rule, TokenOptions};
pub use fault::{Effect, Fault};
pub use record::Request;

use failure::Failure;
use kind::Kind;
use listener::{Listening, Place, Tls};
use object::Name;
use shared::Shared;

/// The token of [`ADMIN`].
pub const ADMIN_TOKEN: &str = "token-of-the-administrator";
/// A user who may do everything.
pub const ADMIN: &str = "kubernetes-admin";

/// What a server does with `sendInitialEvents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamingLists {
    /// Streams what there is and marks its end, as since Kubernetes 1.32.
    Served,
    /// Refuses the request, as from 1.27 on where it is switched off.
    Forbidden,
    /// Takes no notice of it, as before 1.27.
    Ignored,
}

/// How a watch from a version that is too old is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// By the answer's status.
    Status,
    /// By an event, after a status that says that all is well.
    Event,
}

/// How a server is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// With a certificate of an authority of its own.
    pub tls: bool,
    /// Where it listens. Port 0 takes one that is free.
    pub address: SocketAddr,
    /// The path of the network namespace to listen in; none: this process's own.
    pub netns: Option<PathBuf>,
    /// How often watches that want bookmarks get one.
    pub bookmark_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: true,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            netns: None,
            bookmark_interval: Duration::from_mins(1),
        }
    }
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    tls: Option<Tls>,
    listening: Vec<Listening>,
    stopped: Vec<Place>,
    runtime: Option<Runtime>,
}

impl ApiServer {
    /// Starts a server with no objects but the namespaces `default` and `kube-system`.
    pub fn start(options: Options) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("apiserver")
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::new(options.bookmark_interval));
        shared.access.accept(ADMIN_TOKEN, ADMIN);
        shared.access.grant(ADMIN, Rule::all());
        let tls = options.tls.then(|| Tls::new(&[])).transpose()?;
        let mut server = Self {
            shared,
            tls,
            listening: Vec::new(),
            stopped: Vec::new(),
            runtime: Some(runtime),
        };
        for namespace in ["default", "kube-system"] {
            server.put(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
            }))?;
        }
        server.open(Place {
            address: options.address,
            netns: options.netns,
        })?;
        Ok(server)
    }

    /// Where it listens, or did before it was stopped.
    pub fn address(&self) -> SocketAddr {
        let open = self.listening.iter().map(|listening| &listening.place);
        let mut places = open.chain(&self.stopped);
        places
            .next()
            .map_or_else(|| (Ipv4Addr::LOCALHOST, 0).into(), |place| place.address)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// The certificate of its authority, where it speaks TLS.
    pub fn root_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.root_pem.as_str())
    }

    /// Listens at the same address in another network namespace too, so that one
    /// kubeconfig holds in all of them.
    pub fn listen_in(&mut self, netns: &Path) -> Result<()> {
        self.open(Place {
            address: self.address(),
            netns: Some(netns.to_owned()),
        })
    }

    /// Closes its ports and all connections; objects stay.
    pub fn stop(&mut self) {
        let listening = std::mem::take(&mut self.listening);
        self.stopped
            .extend(listening.into_iter().map(Listening::stop));
    }

    /// Listens again where it did.
    pub fn resume(&mut self) -> Result<()> {
        for place in std::mem::take(&mut self.stopped) {
            self.open(place)?;
        }
        Ok(())
    }

    fn open(&mut self, place: Place) -> Result<()> {
        let runtime = self
            .runtime
            .as_ref()
            .context("it runs until it is dropped")?;
        let of = (Arc::clone(&self.shared), self.tls.clone());
        self.listening
            .push(Listening::start(runtime.handle(), place, of)?);
        Ok(())
    }

    /// Writes a kubeconfig with this token.
    pub fn write_kubeconfig(&self, path: &Path, token: &str) -> Result<()> {
        use base64::Engine as _;
        let mut cluster = json!({"server": self.url()});
        if let Some(pem) = self.root_pem() {
            let encoded = base64::engine::general_purpose::STANDARD.encode(pem);
            cluster["certificate-authority-data"] = encoded.into();
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let text = serde_json::to_string_pretty(&config)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Objects.
impl ApiServer {
    /// Puts an object in place, whatever was there, and returns it as it is now. A
    /// `CustomResourceDefinition` makes its kind be served.
    pub fn put(&self, object: Value) -> Result<Value> {
        self.shared.put(object).map_err(|failure| refused(&failure))
    }

    /// Puts an object in place as this text, which is taken to be right: of the kind, with
    /// this namespace and name, and without `kind` and `apiVersion`. `@version@` in it
    /// becomes its version. `selected_by` are the fields that selectors may ask for;
    /// no label selector finds it.
    pub fn put_text(
        &self,
        resource: &str,
        name: (&str, &str),
        selected_by: &[(&'static str, &str)],
        text: &str,
    ) -> Result<u64> {
        let kind = self.kind(resource)?;
        Ok(self.shared.store.put(&kind, |version| {
            let text = text.replace("@version@", &version.to_string());
            object::Stored::of_text(&kind, name, selected_by, (&text, version))
        }))
    }

    /// An object by its kind's plural, or `plural.group`; the namespace is empty for a
    /// kind without one.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = self.kind(resource).ok()?;
        let object = self.shared.store.get(&kind, &Name::new(namespace, name))?;
        Some(object.value())
    }

    /// All objects of a kind.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        let kind = self.kind(resource).ok();
        let objects = kind.and_then(|kind| self.shared.store.list(&kind));
        let objects = objects.into_iter().flat_map(|(objects, _)| objects);
        objects.map(|(_, object)| object.value()).collect()
    }

    /// Changes an object in place.
    pub fn change(
        &self,
        resource: &str,
        (namespace, name): (&str, &str),
        change: impl FnOnce(&mut Value),
    ) -> Result<Value> {
        let mut object = self
            .get(resource, namespace, name)
            .with_context(|| format!("there is no {resource} {namespace}/{name}"))?;
        change(&mut object);
        self.put(object)
    }

    /// Deletes an object at once, whatever finalizers it has; a definition with its kind.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<()> {
        let kind = self.kind(resource)?;
        let name = Name::new(namespace, name);
        let deleted = self.shared.store.write(&kind, &name, |_| Ok(None));
        let deleted = deleted.map_err(|failure| refused(&failure))?;
        let deleted = deleted.with_context(|| format!("there is no {resource} {name}"))?;
        self.shared.forget_definition(&kind, &deleted);
        Ok(())
    }

    fn kind(&self, resource: &str) -> Result<Arc<Kind>> {
        let kinds = self.shared.store.kinds();
        let found = kinds
            .into_iter()
            .find(|kind| *kind.plural == *resource || kind.qualified() == resource);
        found.with_context(|| format!("there is no kind {resource}"))
    }
}

/// Who may do what, and what clients did.
impl ApiServer {
    /// Takes a token as a user's, who may do nothing yet.
    pub fn accept(&self, token: &str, user: &str) {
        self.shared.access.accept(token, user);
    }

    /// Lets a user do more.
    pub fn grant(&self, user: &str, rule: Rule) {
        self.shared.access.grant(user, rule);
    }

    /// Lets a user do nothing any more.
    pub fn revoke(&self, user: &str) {
        self.shared.access.revoke(user);
    }

    /// A token of a service account, as `TokenRequest` gives it. Its user's name is
    /// `system:serviceaccount:<namespace>:<account>`.
    pub fn issue_token(&self, namespace: &str, account: &str, options: &TokenOptions) -> String {
        self.shared.access.issue(namespace, account, options).0
    }

    /// All requests since the start or the last [`Self::reset_requests`].
    pub fn requests(&self) -> Vec<Request> {
        self.shared.records.all()
    }

    /// Forgets the requests that are over, and counts the bytes of open ones anew.
    pub fn reset_requests(&self) {
        self.shared.records.reset();
    }
}

/// What goes wrong.
impl ApiServer {
    /// Lets something go wrong from now on.
    pub fn fail(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Nothing goes wrong any more, but for what is under way.
    pub fn mend(&self) {
        self.shared.faults.clear();
    }

    /// Closes all connections in the middle of whatever they do.
    pub fn drop_connections(&self) {
        self.shared.drop_connections();
    }

    /// Forgets all history: watches from before it get 410, and so do pages of lists.
    pub fn compact(&self) {
        self.shared.store.compact();
    }

    /// How it refuses versions from before a compaction. At first by an event.
    pub fn set_expiry(&self, expiry: Expiry) {
        self.shared.set_expiry(expiry);
    }

    /// What it does with `sendInitialEvents`. At first it serves it.
    pub fn set_streaming_lists(&self, streaming_lists: StreamingLists) {
        self.shared.set_streaming_lists(streaming_lists);
    }

    /// Sends a bookmark on every watch that wants them.
    pub fn bookmark(&self) {
        self.shared.nudge();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.listening.clear();
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where another runtime's task drops this.
            runtime.shutdown_background();
        }
    }
}

fn refused(failure: &Failure) -> anyhow::Error {
    anyhow!("{}: {}", failure.code, failure.message)
}
