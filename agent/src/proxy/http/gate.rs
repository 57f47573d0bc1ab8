//! Whether a request may be, at the node of its destination.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::headers;
use super::reason::{Reason, ReasonKind};
use super::record::Exchange;
use crate::model::normal_path;
use crate::policy::{Admission, HttpRequest, Permission};
use crate::proxy::permit::Subject;
use crate::proxy::pod::LocalPod;

/// Asks the policies of the pod that are in force now.
pub(super) fn admit(
    pod: &LocalPod,
    subject: &Subject,
    parts: &Parts,
    exchange: &mut Exchange,
) -> Result<(), Reason> {
    let policy = Arc::clone(&pod.state.borrow().policy);
    let decision = match subject.ask_before(&policy) {
        Admission::Decided(decision) => decision,
        Admission::PerRequest => {
            let path = normal(parts)?;
            let http = HttpRequest {
                method: &parts.method,
                path: path.as_deref(),
                host: headers::host(parts),
                headers: &parts.headers,
                claims: None,
            };
            subject.ask_request(&policy, &http)
        }
    };
    exchange.audit = decision.audit;
    exchange.policy.clone_from(&decision.policy);
    match decision.verdict {
        Permission::Permitted => Ok(()),
        Permission::Denied(_) => {
            let by = decision.policy.unwrap_or_else(|| Arc::from("default"));
            Err(Reason::new(ReasonKind::PolicyDenied, format!("by {by}")))
        }
    }
}

/// Its path in the form in which rules are written; CONNECT has none.
fn normal(parts: &Parts) -> Result<Option<Cow<'_, str>>, Reason> {
    if parts.method == Method::CONNECT {
        return Ok(None);
    }
    match normal_path(parts.uri.path()) {
        Ok(path) => Ok(Some(path)),
        Err(error) => Err(Reason::new(ReasonKind::BadRequest, error.to_string())),
    }
}
