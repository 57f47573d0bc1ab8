//! Global rate limits of a Service's traffic policies, asked for one request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::headers;
use super::super::limit::{Counted, Limited, name};
use super::rate_limit::{Verdict, should_limit};
use crate::model::without_parameters;
use crate::policy::traffic::{Limiter, RateLimit};
use crate::proxy::caller::Caller;
use crate::proxy::pod::LocalPod;
use crate::proxy::shared::Shared;
use crate::state::traffic::{DescriptorEntry, DescriptorValue};

/// When to come again where whoever counts does not say.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks about a request under every global limit that it matches, in their order, as its
/// client would. `source`: the client's address.
pub(in crate::proxy::http) async fn count_globally(
    limits: &[RateLimit],
    counted: Counted<'_>,
    source: IpAddr,
    (shared, client): (&Arc<Shared>, &Arc<LocalPod>),
) -> Result<(), Limited> {
    for limit in limits {
        let Limiter::Global {
            limit: global,
            timeout,
            deny_on_failure,
        } = &limit.limiter
        else {
            continue;
        };
        if !counted.is_of(limit) {
            continue;
        }
        let descriptors = global.descriptors.iter();
        let descriptors = descriptors.filter_map(|entries| described(entries, counted, source));
        let caller = Caller::new(shared, client);
        let verdict = should_limit(
            (&global.service, global.port),
            (&client.channels, &caller),
            &global.domain,
            descriptors.collect(),
            *timeout,
        );
        let retry_after = match verdict.await {
            Verdict::Within => continue,
            Verdict::Unavailable if !deny_on_failure => continue,
            Verdict::Unavailable => RETRY_AFTER,
            Verdict::Over(retry_after) => retry_after.unwrap_or(RETRY_AFTER),
        };
        return Err(Limited {
            limit: name(limit),
            retry_after,
        });
    }
    Ok(())
}

/// A descriptor of a request; `None` where a value of it is not there.
fn described(
    entries: &[DescriptorEntry],
    counted: Counted<'_>,
    source: IpAddr,
) -> Option<Vec<(String, String)>> {
    let parts = counted.parts;
    let entry = |entry: &DescriptorEntry| {
        let value = match &entry.value {
            DescriptorValue::Literal(text) => text.to_string(),
            DescriptorValue::Header(name) => {
                let value = parts.headers.get(name)?;
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
            DescriptorValue::Client => counted.client.to_string(),
            DescriptorValue::Source => source.to_string(),
            DescriptorValue::Method => parts.method.to_string(),
            DescriptorValue::Path => {
                let path = counted.path.unwrap_or(parts.uri.path());
                without_parameters(path).unwrap_or_else(|| path.to_owned())
            }
            DescriptorValue::Host => headers::host(parts).to_owned(),
            DescriptorValue::Route => counted.rule?.to_owned(),
        };
        Some((entry.key.to_string(), value))
    };
    entries.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request};

    use super::{Counted, DescriptorEntry, DescriptorValue, described};
    use crate::model::{NamespacedName, SpiffeId, TrustDomain};

    #[test]
    fn a_descriptor_needs_all_of_its_values() {
        let request = Request::post("/a;v=1/%62?c").header("host", "web:80");
        let (parts, ()) = request
            .header("x-user", "joe")
            .body(())
            .unwrap()
            .into_parts();
        let counted = Counted {
            service: &NamespacedName::new("shop", "web"),
            port: 80,
            client: &SpiffeId::new(TrustDomain("cluster.local".into()), "shop", "cart"),
            rule: None,
            path: Some("/a;v=1/b"),
            parts: &parts,
        };
        let header = |name| DescriptorValue::Header(HeaderName::from_static(name));
        for (value, expected) in [
            (DescriptorValue::Literal("v".into()), Some("v")),
            (header("x-user"), Some("joe")),
            (header("x-other"), None),
            (
                DescriptorValue::Client,
                Some("spiffe://cluster.local/ns/shop/sa/cart"),
            ),
            (DescriptorValue::Source, Some("10.0.0.1")),
            (DescriptorValue::Method, Some("POST")),
            (DescriptorValue::Path, Some("/a/b")),
            (DescriptorValue::Host, Some("web:80")),
            (DescriptorValue::Route, None),
        ] {
            let entry = |key: &str, value| DescriptorEntry {
                key: key.into(),
                value,
            };
            let fixed = entry("a", DescriptorValue::Literal("b".into()));
            let entries = [fixed, entry("k", value.clone())];
            let source = "10.0.0.1".parse().unwrap();
            let told = described(&entries, counted, source);
            let told = told.map(|pairs| pairs[1].1.clone());
            assert_eq!(told.as_deref(), expected, "{value:?}");
        }
    }
}
