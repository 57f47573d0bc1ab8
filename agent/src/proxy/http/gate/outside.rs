//! Those outside who have a say about requests (action CUSTOM).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;

use super::super::body::Body;
use super::super::external::{Changes, Denied, Ends, Verdict, check};
use super::super::headers;
use super::super::reason::{Extra, Reason, ReasonKind};
use super::Door;
use crate::proxy::caller::Caller;
use crate::state::{ExternalProvider, IncludedBody};

/// A body that is to be shown must come within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

impl Door<'_> {
    /// Asks one of them. What it answers but a change is the error, and so is that there is
    /// nobody to ask, whatever it says of no answer.
    pub(super) async fn ask(
        &self,
        provider: &Arc<ExternalProvider>,
        rule: &Arc<str>,
        parts: &Parts,
        body: &mut Body,
    ) -> Result<Option<Changes>, Reason> {
        // Nobody is away who never was: to go on would be to go unasked for ever.
        if !self.shared.table().snapshot().has_provider(provider) {
            let what = format!("by {rule}: there is no such Service");
            return Err(Reason::new(ReasonKind::ExtAuthzUnavailable, what));
        }
        let shown = match provider.body {
            // What follows is no body, and is not there before the answer.
            Some(_) if headers::is_extended(&parts.extensions) => Some(Bytes::new()),
            Some(included) => Some(beginning(body, included).await?),
            None => None,
        };
        let caller = Caller::new(self.shared, self.server);
        let ends = Ends {
            client: self.client,
            peer: self.subject.peer.as_ref(),
            server: self.address,
            identity: &self.server.pod.identity,
            host: headers::host(parts),
        };
        let way = (&self.server.channels, &caller);
        match check(provider, way, parts, shown, ends).await {
            Verdict::Permitted(changes) => Ok(Some(changes)),
            Verdict::Denied(denied) => Err(refusal(denied, rule)),
            Verdict::Unavailable if provider.fail_open => Ok(None),
            Verdict::Unavailable => Err(Reason::new(
                ReasonKind::ExtAuthzUnavailable,
                format!("by {rule}"),
            )),
        }
    }
}

/// The answer that it gives in the application's place.
fn refusal(denied: Denied, rule: &Arc<str>) -> Reason {
    let mut extra = Extra::status(denied.status);
    denied.apply(&mut extra.headers);
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    let body = Some(denied.body).filter(|_| !bodiless.contains(&denied.status));
    extra.body = Some(body.unwrap_or_default());
    Reason::new(ReasonKind::ExtAuthzDenied, format!("by {rule}")).with(extra)
}

async fn beginning(body: &mut Body, included: IncludedBody) -> Result<Bytes, Reason> {
    let most = usize::try_from(included.max_bytes).unwrap_or(usize::MAX);
    let reading = tokio::time::timeout(BODY_TIMEOUT, body.begin(most));
    let begun = match reading.await {
        Ok(Ok(begun)) => begun,
        Ok(Err(_broken)) => {
            return Err(Reason::new(ReasonKind::BadRequest, "the body broke off"));
        }
        Err(_elapsed) => {
            let what = "the body did not come in time";
            return Err(Reason::new(ReasonKind::BadRequest, what));
        }
    };
    if !begun.whole && !included.allow_partial {
        let extra = Extra::status(StatusCode::PAYLOAD_TOO_LARGE);
        let what = "the body is larger than what may be checked";
        return Err(Reason::new(ReasonKind::BadRequest, what).with(extra));
    }
    Ok(begun.bytes.slice(..begun.bytes.len().min(most)))
}
