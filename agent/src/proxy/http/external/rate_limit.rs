//! Envoy's global rate limits: one question for each request that a limit is for.

use std::time::Duration;

use super::channels::Channels;
use super::generated::ratelimit::rate_limit_descriptor::Entry;
use super::generated::ratelimit::rate_limit_response::Code;
use super::generated::ratelimit::rate_limit_service_client::RateLimitServiceClient;
use super::generated::ratelimit::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use crate::model::NamespacedName;
use crate::proxy::caller::Caller;

/// What the Service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy::http) enum Limited {
    /// The request may go on.
    Within,
    /// It may not, before so long.
    Over(Option<Duration>),
    /// It said nothing.
    Unavailable,
}

/// Asks about one request. Each descriptor has keys and values; those without any are not
/// asked about, and with none at all there is no limit.
pub(in crate::proxy::http) async fn should_limit(
    (service, port): (&NamespacedName, u16),
    (channels, caller): (&Channels, &Caller),
    domain: &str,
    descriptors: Vec<Vec<(String, String)>>,
    timeout: Duration,
) -> Limited {
    let descriptors = descriptors
        .into_iter()
        .filter(|entries| !entries.is_empty());
    let descriptors: Vec<RateLimitDescriptor> = descriptors.map(descriptor).collect();
    if descriptors.is_empty() {
        return Limited::Within;
    }
    let Some(channel) = channels.to(caller, service, port) else {
        return Limited::Unavailable;
    };
    let mut client = RateLimitServiceClient::new(channel);
    let question = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors,
        hits_addend: 1,
    };
    match tokio::time::timeout(timeout, client.should_rate_limit(question)).await {
        Ok(Ok(answer)) => limited(answer.get_ref()),
        Ok(Err(error)) => {
            tracing::debug!(%service, %error, "the global rate limit can't be asked");
            Limited::Unavailable
        }
        Err(_elapsed) => Limited::Unavailable,
    }
}

fn descriptor(entries: Vec<(String, String)>) -> RateLimitDescriptor {
    let entries = entries.into_iter();
    RateLimitDescriptor {
        entries: entries.map(|(key, value)| Entry { key, value }).collect(),
    }
}

fn limited(answer: &RateLimitResponse) -> Limited {
    match answer.overall_code() {
        Code::Ok => Limited::Within,
        Code::OverLimit => {
            let over = answer.statuses.iter();
            let over = over.filter(|status| status.code() == Code::OverLimit);
            let resets = over.filter_map(|status| status.duration_until_reset);
            let resets = resets.filter_map(|reset| Duration::try_from(reset).ok());
            Limited::Over(resets.max())
        }
        Code::Unknown => Limited::Unavailable,
    }
}
