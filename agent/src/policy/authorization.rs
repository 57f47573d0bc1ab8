//! AuthorizationPolicies that select a pod, and their verdict on one request.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::matching::{Doubt, Subject, View};
use crate::model::SpiffeId;
use crate::state::{Action, AuthorizationPolicy, ExternalProvider, Rule};

/// What is known of a connection when the decision is made.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The client's proven identity; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub client_ip: IpAddr,
    /// The port that the application listens on.
    pub port: u16,
    /// It came over mTLS, or from a network namespace of this node that proves who
    /// the client is.
    pub encrypted: bool,
}

/// The verdict on a connection before it is known what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The same whatever it carries.
    Decided(Decision),
    /// If it carries HTTP, each request is to be asked for
    /// ([`super::InboundPolicy::authorize_request`]); if not, the connection as a whole
    /// ([`super::InboundPolicy::authorize`]).
    PerRequest,
}

/// The verdict on a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it may go on.
    pub verdict: Permission,
    /// The policy that decided, with the index of the rule that matched:
    /// `namespace/name#0`. Where no ALLOW matched: the names of those that there are.
    pub policy: Option<Arc<str>>,
    /// AUDIT policies that matched, and what dry-run policies would have done.
    pub audit: Vec<Arc<str>>,
}

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// It may.
    Permitted,
    /// It may not.
    Denied(DenyReason),
}

/// Why a request may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyReason {
    /// Plaintext, where a MeshPolicy asks for mTLS.
    MtlsRequired,
    /// A rule of a DENY policy matches.
    #[serde(rename = "denied_by_rule")]
    DenyRule,
    /// ALLOW policies select the pod and none of their rules matches.
    #[serde(rename = "no_rule_allows")]
    NoAllowRule,
    /// A policy that selects the pod could not be understood.
    InvalidPolicy,
    /// A CUSTOM policy wants somebody asked who decides on requests only, or claims of
    /// tokens become headers that the application trusts; and the connection carries no
    /// HTTP.
    NeedsHttp,
}

impl DenyReason {
    /// The word for flows and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MtlsRequired => "mtls_required",
            Self::DenyRule => "denied_by_rule",
            Self::NoAllowRule => "no_rule_allows",
            Self::InvalidPolicy => "invalid_policy",
            Self::NeedsHttp => "needs_http",
        }
    }
}

/// One AuthorizationPolicy, made ready: its names are put together only once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compiled {
    pub(super) source: Arc<AuthorizationPolicy>,
    /// `namespace/name`.
    pub(super) name: Arc<str>,
    labels: Vec<RuleLabels>,
    would_deny: Arc<str>,
}

/// How a rule is called where it matched.
#[derive(Debug, PartialEq, Eq)]
struct RuleLabels {
    matched: Arc<str>,
    dry_run: Arc<str>,
}

impl Compiled {
    pub(super) fn new(source: Arc<AuthorizationPolicy>) -> Self {
        let name: Arc<str> = source.name.to_string().into();
        let outcome = match source.action {
            Action::Allow => ": would permit",
            Action::Deny => ": would deny",
            Action::Audit | Action::Custom => "",
        };
        let label = |index| RuleLabels {
            matched: format!("{name}#{index}").into(),
            dry_run: format!("{name}#{index}{outcome}").into(),
        };
        Self {
            labels: (0..source.rules.len()).map(label).collect(),
            would_deny: format!("{name}: would deny").into(),
            name,
            source,
        }
    }

    /// It is enforced, and can't be understood.
    pub(super) fn denies_all(&self) -> bool {
        self.source.invalid.is_some() && !self.source.dry_run
    }

    /// The labels of the first rule that matches. An invalid policy matches nothing:
    /// where it is enforced it has denied before.
    fn first_match(&self, subject: &Subject<'_>) -> Option<&RuleLabels> {
        self.first_match_in(subject, View::of(self.source.action))
    }

    /// Whether it matches, where all requests to come match what is asked of requests,
    /// or none does.
    fn matches_before(&self, subject: &Subject<'_>, requests: Doubt) -> Option<&RuleLabels> {
        let view = View::before_requests(self.source.action, requests);
        self.first_match_in(subject, view)
    }

    fn first_match_in(&self, subject: &Subject<'_>, view: View) -> Option<&RuleLabels> {
        let rules = self.source.rules.iter().zip(&self.labels);
        let mut matching = rules
            .filter(|_| self.source.invalid.is_none())
            .filter(|(rule, _)| subject.matches(rule, view));
        matching.next().map(|(_, labels)| labels)
    }
}

/// Whether policies look at the paths of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathUse {
    /// They do not: paths are nobody's business.
    #[default]
    Ignored,
    /// Only such as leave marks: a path without a normal form goes on as it is.
    Marks,
    /// They decide by paths: the application gets the path that was decided on.
    Decides,
}

/// The AuthorizationPolicies that select one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Authorization {
    invalid: Vec<Arc<Compiled>>,
    deny: Vec<Arc<Compiled>>,
    allow: Vec<Arc<Compiled>>,
    custom: Vec<Arc<Compiled>>,
    /// AUDIT, and whatever is a dry run.
    watched: Vec<Arc<Compiled>>,
    /// The names of `allow`, for a request that none of them permits.
    allow_names: Option<Arc<str>>,
}

impl Authorization {
    pub(super) fn new(policies: Vec<Arc<Compiled>>) -> Self {
        let mut sorted = Self::default();
        for policy in policies {
            let list = match (policy.source.action, policy.source.dry_run) {
                _ if policy.denies_all() => &mut sorted.invalid,
                (_, true) | (Action::Audit, false) => &mut sorted.watched,
                (Action::Deny, false) => &mut sorted.deny,
                (Action::Allow, false) => &mut sorted.allow,
                (Action::Custom, false) => &mut sorted.custom,
            };
            list.push(policy);
        }
        sorted.allow_names = names(&sorted.allow);
        sorted
    }

    /// The verdict does not depend on what the connection carries.
    pub(super) fn is_settled(&self, subject: &Subject<'_>) -> bool {
        let any = |policies: &[Arc<Compiled>], requests| {
            let mut policies = policies.iter();
            policies.any(|policy| policy.matches_before(subject, requests).is_some())
        };
        let same = |policy: &Arc<Compiled>| {
            let before = |requests| policy.matches_before(subject, requests).is_some();
            before(Doubt::Fails) == before(Doubt::Matches)
        };
        if !self.invalid.is_empty() || any(&self.deny, Doubt::Fails) {
            return true;
        }
        let (allows, denies) = (&self.allow, &self.deny);
        if !allows.is_empty() && !any(allows, Doubt::Matches) {
            return true;
        }
        let permits = allows.is_empty() || any(allows, Doubt::Fails);
        let refuses = any(denies, Doubt::Matches) || any(&self.custom, Doubt::Matches);
        permits && !refuses && self.watched.iter().all(same)
    }

    /// A request that is denied would be permitted if it had the right token.
    pub(super) fn lacks_token(&self, subject: &Subject<'_>) -> bool {
        let any = |policies: &[Arc<Compiled>]| {
            policies.iter().any(|policy| {
                let view = View::with_any_token(policy.source.action);
                policy.first_match_in(subject, view).is_some()
            })
        };
        self.invalid.is_empty() && !any(&self.deny) && (self.allow.is_empty() || any(&self.allow))
    }

    /// Whom else to ask about a request that is permitted here, and the rule that says so.
    pub(super) fn external(
        &self,
        subject: &Subject<'_>,
    ) -> impl Iterator<Item = (&Arc<ExternalProvider>, &Arc<str>)> {
        self.custom.iter().filter_map(|policy| {
            let labels = policy.first_match(subject)?;
            Some((policy.source.provider.as_ref()?, &labels.matched))
        })
    }

    /// What is enforced looks at paths; what is not enforced does.
    pub(super) fn looks_at_paths(&self) -> PathUse {
        let enforced = [&self.deny, &self.allow, &self.custom];
        let looks = |policy: &Arc<Compiled>| policy.source.rules.iter().any(has_paths);
        if enforced.into_iter().flatten().any(looks) {
            PathUse::Decides
        } else if self.watched.iter().any(looks) {
            PathUse::Marks
        } else {
            PathUse::Ignored
        }
    }

    pub(super) fn decide(&self, subject: &Subject<'_>) -> Decision {
        let allowed = first_match(&self.allow, subject);
        let audit = self.audit(subject, allowed.is_some());
        let (verdict, policy) = if let Some(policy) = self.invalid.first() {
            let reason = DenyReason::InvalidPolicy;
            (Permission::Denied(reason), Some(Arc::clone(&policy.name)))
        } else if let Some(rule) = first_match(&self.deny, subject) {
            (Permission::Denied(DenyReason::DenyRule), Some(rule))
        } else if !self.allow.is_empty() && allowed.is_none() {
            let reason = DenyReason::NoAllowRule;
            (Permission::Denied(reason), self.allow_names.clone())
        } else if let Some(rule) = self.needs_http(subject) {
            let reason = DenyReason::NeedsHttp;
            (Permission::Denied(reason), Some(Arc::clone(rule)))
        } else {
            (Permission::Permitted, allowed)
        };
        Decision {
            verdict,
            policy,
            audit,
        }
    }

    /// The rule by which somebody would have to be asked, without a request to ask for.
    fn needs_http(&self, subject: &Subject<'_>) -> Option<&Arc<str>> {
        if subject.is_request() {
            return None;
        }
        self.external(subject).next().map(|(_, rule)| rule)
    }

    /// Marks only: what AUDIT policies saw and what dry runs would have done.
    fn audit(&self, subject: &Subject<'_>, mut allowed: bool) -> Vec<Arc<str>> {
        let mut marks = Vec::new();
        let mut silent_allows = Vec::new();
        for policy in &self.watched {
            let is_allow = policy.source.action == Action::Allow;
            match policy.first_match(subject) {
                Some(labels) if policy.source.dry_run => {
                    allowed |= is_allow;
                    marks.push(Arc::clone(&labels.dry_run));
                }
                Some(labels) => marks.push(Arc::clone(&labels.matched)),
                None if policy.source.invalid.is_some() || is_allow => silent_allows.push(policy),
                None => {}
            }
        }
        let denying = silent_allows
            .into_iter()
            .filter(|policy| !allowed || policy.source.invalid.is_some());
        marks.extend(denying.map(|policy| Arc::clone(&policy.would_deny)));
        marks
    }
}

fn has_paths(rule: &Rule) -> bool {
    let mut operations = rule.to.iter();
    operations.any(|to| !to.paths.is_empty() || !to.not_paths.is_empty())
}

/// The first rule of any of the policies that matches.
fn first_match(policies: &[Arc<Compiled>], subject: &Subject<'_>) -> Option<Arc<str>> {
    policies
        .iter()
        .find_map(|policy| policy.first_match(subject))
        .map(|labels| Arc::clone(&labels.matched))
}

/// The names in one text, of the first three; there may be hundreds.
fn names(policies: &[Arc<Compiled>]) -> Option<Arc<str>> {
    let mut text = policies.first()?.name.to_string();
    for policy in policies.iter().skip(1).take(2) {
        text.push_str(", ");
        text.push_str(&policy.name);
    }
    if policies.len() > 3 {
        text.push_str(", ...");
    }
    Some(text.into())
}
