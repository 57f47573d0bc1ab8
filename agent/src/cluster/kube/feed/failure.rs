//! What can go wrong with a watch, and what follows from it. Pure.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::kind::Kind;
use super::wire::{Garbage, Refusal};

/// What was asked of the API server, as a rule of RBAC calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
}

/// Why an attempt to list or watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No connection, or it broke.
    #[error("{0}")]
    Unreachable(String),
    /// The connection is there and nothing comes.
    #[error("nothing came from the API server for {} s", .0.as_secs())]
    Silent(Duration),
    /// The API server answered, and said no.
    #[error("{verb} was refused: {refusal}")]
    Refused {
        /// What was asked.
        verb: Verb,
        /// The answer.
        refusal: Refusal,
        /// It came in a watch that had begun.
        midway: bool,
        /// How long it asks clients to wait.
        retry_after: Option<Duration>,
    },
    /// It is not the API server that answered.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// The API server's history is older than what was seen of it.
    #[error("the API server's history went back: a back-up was restored?")]
    WentBack,
    /// A list that does not end: the API server does not know of such lists.
    #[error("the API server can't stream lists")]
    Endless,
}

/// Why everything of a kind is read once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relist {
    /// What happened since is no longer known.
    Expired,
    /// The history went back.
    WentBack,
    /// The watch failed so that it can't be told what is missing.
    Failed,
}

impl Relist {
    /// As a label of a metric.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::WentBack => "went_back",
            Self::Failed => "failed",
        }
    }
}

impl Failure {
    /// Of an error of the HTTP client, with its causes.
    pub(super) fn unreachable(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        Self::Unreachable(text)
    }

    /// The API server itself can't be reached, whatever is asked of it.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent(_) => true,
            Self::Refused { .. } | Self::Garbage(_) | Self::WentBack | Self::Endless => false,
        }
    }

    /// The watch can't go on from where it was.
    pub(super) fn relist(&self) -> Option<Relist> {
        match self {
            Self::Unreachable(_) | Self::Silent(_) => None,
            Self::WentBack => Some(Relist::WentBack),
            Self::Garbage(_) | Self::Endless => Some(Relist::Failed),
            Self::Refused {
                refusal, midway, ..
            } => match refusal.code {
                410 => Some(Relist::Expired),
                _ if matches!(&*refusal.reason, "Expired" | "Gone") => Some(Relist::Expired),
                400 | 422 => Some(Relist::Failed),
                429 | 503 | 504 => None,
                _ => midway.then_some(Relist::Failed),
            },
        }
    }

    /// Answered with this code.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.code),
            Self::Unreachable(_)
            | Self::Silent(_)
            | Self::Garbage(_)
            | Self::WentBack
            | Self::Endless => None,
        }
    }

    /// The server asks for at least this time to pass.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_)
            | Self::Silent(_)
            | Self::Garbage(_)
            | Self::WentBack
            | Self::Endless => None,
        }
    }

    /// For people, with the remedy where there is one.
    pub(super) fn explain(&self, kind: &Kind) -> String {
        let resource = kind.resource();
        match self {
            Self::Refused { verb, refusal, .. } => match refusal.code {
                401 => format!(
                    "the API server does not know who asks for {resource}: {}; is the token of \
                     the ServiceAccount mounted and valid?",
                    refusal.message
                ),
                403 => format!(
                    "may not {verb} {resource}: grant verbs list, watch on {resource} to {}; \
                     deploy/ has the rules",
                    subject(&refusal.message)
                ),
                404 => format!(
                    "the API server has no {resource} (yet): it is starting, or too old; {}",
                    refusal.message
                ),
                _ => format!("can't {verb} {resource}: {refusal}"),
            },
            Self::Unreachable(_)
            | Self::Silent(_)
            | Self::Garbage(_)
            | Self::WentBack
            | Self::Endless => self.to_string(),
        }
    }
}

/// Who was refused, from `.. User "system:serviceaccount:a:b" cannot ..`.
fn subject(message: &str) -> String {
    let user = message.split_once("User \"");
    let user = user.and_then(|(_, rest)| Some(rest.split_once('"')?.0));
    let Some(user) = user else {
        return "this agent's user".to_owned();
    };
    let account = user.strip_prefix("system:serviceaccount:");
    match account.and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => format!("ServiceAccount {namespace}/{name}"),
        None => format!("user {user}"),
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for text in [&self.reason, &self.message] {
            if !text.is_empty() {
                write!(f, " {text}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::KINDS;
    use super::*;

    fn refused(code: u16, reason: &str, midway: bool) -> Failure {
        let body = format!(
            r#"{{"code":{code},"reason":"{reason}","message":"pods is forbidden: User \"system:serviceaccount:fairlead-system:fairlead-agent\" cannot watch resource \"pods\""}}"#
        );
        Failure::Refused {
            verb: Verb::Watch,
            refusal: Refusal::of(code, &body),
            midway,
            retry_after: None,
        }
    }

    #[test]
    fn missing_rights_name_the_verb_the_resource_and_who_lacks_them() {
        assert_eq!(
            refused(403, "Forbidden", false).explain(&KINDS[1]),
            "may not watch pods: grant verbs list, watch on pods to ServiceAccount \
             fairlead-system/fairlead-agent; deploy/ has the rules"
        );
        assert_eq!(subject("User \"jane\" cannot"), "user jane");
        assert_eq!(subject("no"), "this agent's user");
    }

    #[test]
    fn a_list_is_read_again_only_where_a_watch_can_not_go_on() {
        assert_eq!(
            refused(410, "Expired", true).relist(),
            Some(Relist::Expired)
        );
        assert_eq!(refused(410, "Gone", false).relist(), Some(Relist::Expired));
        assert_eq!(refused(500, "", true).relist(), Some(Relist::Failed));
        assert_eq!(refused(400, "", false).relist(), Some(Relist::Failed));
        assert_eq!(Failure::WentBack.relist(), Some(Relist::WentBack));
        for (code, midway) in [
            (429, true),
            (503, true),
            (504, false),
            (500, false),
            (403, false),
        ] {
            assert_eq!(refused(code, "", midway).relist(), None, "{code}");
        }
        assert_eq!(Failure::Unreachable(String::new()).relist(), None);
        assert_eq!(Failure::Silent(Duration::ZERO).relist(), None);
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("connect: refused")]
        struct Outer(#[source] std::io::Error);
        let inner = std::io::Error::other("refused");
        let inner = Failure::unreachable(&Outer(inner));
        assert_eq!(inner, Failure::Unreachable("connect: refused".to_owned()));
        assert!(inner.is_lost());
    }
}
