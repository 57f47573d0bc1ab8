//! Envoy's global rate limits: one question for each request that a limit is for.

use std::time::Duration;

use super::channels::Channels;
use super::generated::ratelimit::rate_limit_descriptor::Entry;
use super::generated::ratelimit::rate_limit_response::Code;
use super::generated::ratelimit::rate_limit_service_client::RateLimitServiceClient;
use super::generated::ratelimit::{RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use crate::model::NamespacedName;
use crate::proxy::caller::Caller;

/// What is called.
const SHOULD_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// What the Service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The request may go on.
    Within,
    /// It may not, before so long.
    Over(Option<Duration>),
    /// It said nothing.
    Unavailable,
}

/// Asks about one request. Each descriptor has keys and values; those without any are not
/// asked about, and with none at all there is no limit.
pub(super) async fn should_limit(
    service: (&NamespacedName, u16),
    (channels, caller): (&Channels, &Caller),
    domain: &str,
    descriptors: Vec<Vec<(String, String)>>,
    timeout: Duration,
) -> Verdict {
    let descriptors = descriptors
        .into_iter()
        .filter(|entries| !entries.is_empty());
    let descriptors: Vec<RateLimitDescriptor> = descriptors.map(descriptor).collect();
    if descriptors.is_empty() {
        return Verdict::Within;
    }
    let Some(channel) = channels.to(caller, service, SHOULD_LIMIT) else {
        return Verdict::Unavailable;
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
            tracing::debug!(service = %service.0, %error, "the global rate limit can't be asked");
            Verdict::Unavailable
        }
        Err(_elapsed) => Verdict::Unavailable,
    }
}

fn descriptor(entries: Vec<(String, String)>) -> RateLimitDescriptor {
    let entries = entries.into_iter();
    RateLimitDescriptor {
        entries: entries.map(|(key, value)| Entry { key, value }).collect(),
    }
}

pub(super) fn limited(answer: &RateLimitResponse) -> Verdict {
    match answer.overall_code() {
        Code::Ok => Verdict::Within,
        Code::OverLimit => {
            let over = answer.statuses.iter();
            let over = over.filter(|status| status.code() == Code::OverLimit);
            let resets = over.filter_map(|status| status.duration_until_reset);
            let resets = resets.filter_map(|reset| Duration::try_from(reset).ok());
            Verdict::Over(resets.max())
        }
        Code::Unknown => Verdict::Unavailable,
    }
}
