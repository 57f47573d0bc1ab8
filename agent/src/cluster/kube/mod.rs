//! The API server of Kubernetes.

mod bundle;
mod client;
mod events;
mod exec;
mod failure;
#[cfg(test)]
pub(crate) mod fake;
mod feed;
mod lease;
mod objects;
mod secret;
mod status;
mod taint;
mod token_review;

pub use bundle::{BUNDLE_KEY, BundleStore, Published};
pub use client::{Access, ClientError, client};
pub use events::{PodFact, PodFactReason, keep_events};
pub use exec::{AgentPod, Command, agent_pods, exec};
pub use failure::ApiFailure;
pub use lease::{Leader, LeaseConfig, elect};
pub use objects::{Change, Place, RequestError, apply, delete, find, list, may, version};
pub use secret::{SecretObject, SecretStore};
pub use status::keep_status;
pub use taint::remove_taint;
pub use token_review::{ReviewError, TokenOwner, TokenPod, TokenReviews};

// The library's client is what this module lends to the wiring, which only hands it on.
pub use ::kube::Client;

use ipnet::IpNet;

use super::source::Source;
use crate::model::TrustDomain;
use crate::state::ObjectKind;

/// Starts the feed of these kinds, of which nothing is read unless the future is polled;
/// it never ends.
pub(super) async fn start(
    access: &Access,
    kinds: &'static [ObjectKind],
    trust_domain: TrustDomain,
    external_ips: Vec<IpNet>,
) -> Result<(Source, impl Future<Output = ()> + Send + 'static + use<>), ClientError> {
    let (client, address) = client::without_retries(access).await?;
    let config = feed::Config {
        name: format!("kube:{}", address.trim_end_matches('/')),
        trust_domain,
        kinds,
        external_ips,
    };
    Ok(feed::start(&client, config))
}
