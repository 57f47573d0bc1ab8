//! Who may do what: tokens, users and their rules.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::failure::Failure;
use super::request::Target;

/// The audience of tokens for the API server itself.
pub(super) const API_AUDIENCE: &str = "https://kubernetes.default.svc";

/// Something that a user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Such as `list`; `*` for all.
    pub verbs: Vec<String>,
    /// API groups; `*` for all.
    pub groups: Vec<String>,
    /// Plurals, with `/status` or another subresource; `*` for all.
    pub resources: Vec<String>,
    /// Only in this namespace.
    pub namespace: Option<String>,
    /// Only objects of these names; none: any.
    pub names: Vec<String>,
}

impl Rule {
    /// Verbs on resources of one group, everywhere.
    pub fn new(verbs: &[&str], group: &str, resources: &[&str]) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            verbs: owned(verbs),
            groups: vec![group.to_owned()],
            resources: owned(resources),
            namespace: None,
            names: Vec::new(),
        }
    }

    /// Everything.
    pub fn all() -> Self {
        Self::new(&["*"], "*", &["*"])
    }

    fn permits(&self, action: &Action<'_>) -> bool {
        let lists = |list: &[String], value: &str| list.iter().any(|it| it == "*" || it == value);
        let namespace = self.namespace.as_deref();
        lists(&self.verbs, action.verb)
            && lists(&self.groups, action.group)
            && lists(&self.resources, action.resource)
            && namespace.is_none_or(|namespace| namespace == action.namespace)
            && (self.names.is_empty() || self.names.iter().any(|name| name == action.name))
    }
}

/// What someone wants to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    pub(super) resource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// A token for a service account, bound to where it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// Empty: the API server itself.
    pub audiences: Vec<String>,
    /// From now on.
    pub lifetime: Duration,
    /// Name and uid of the pod that it is bound to.
    pub pod: Option<(String, String)>,
    /// The node of that pod.
    pub node: Option<String>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self {
            audiences: Vec::new(),
            lifetime: Duration::from_hours(1),
            pod: None,
            node: None,
        }
    }
}

/// What a token proves.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    pub(super) user: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) expires: Option<SystemTime>,
    /// Namespace, name and uid.
    pub(super) pod: Option<(String, String, String)>,
    pub(super) node: Option<String>,
}

/// Tokens and rules.
#[derive(Debug, Default)]
pub(super) struct Access(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    tokens: BTreeMap<String, Credential>,
    rules: BTreeMap<String, Vec<Rule>>,
    issued: u64,
}

impl Access {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token for a user's that never expires.
    pub(super) fn accept(&self, token: &str, user: &str) {
        let credential = Credential {
            user: user.to_owned(),
            uid: String::new(),
            groups: vec!["system:authenticated".to_owned()],
            audiences: vec![API_AUDIENCE.to_owned()],
            expires: None,
            pod: None,
            node: None,
        };
        self.tables().tokens.insert(token.to_owned(), credential);
    }

    /// Lets a user do more.
    pub(super) fn grant(&self, user: &str, rule: Rule) {
        let mut tables = self.tables();
        tables.rules.entry(user.to_owned()).or_default().push(rule);
    }

    /// Lets a user do nothing any more.
    pub(super) fn revoke(&self, user: &str) {
        self.tables().rules.remove(user);
    }

    pub(super) fn may(&self, user: &str, action: &Action<'_>) -> bool {
        let tables = self.tables();
        let rules = tables.rules.get(user);
        rules.is_some_and(|rules| rules.iter().any(|rule| rule.permits(action)))
    }

    /// Who sends this header; `None` sends no token and is nobody.
    pub(super) fn authenticate(&self, authorization: Option<&str>) -> Result<String, Failure> {
        let Some(authorization) = authorization else {
            return Ok("system:anonymous".to_owned());
        };
        let token = authorization.strip_prefix("Bearer ").map(str::trim);
        let credential = token.and_then(|token| self.proves(token));
        let credential = credential.ok_or_else(Failure::unauthorized)?;
        if credential.audiences.iter().any(|it| it == API_AUDIENCE) {
            Ok(credential.user)
        } else {
            Err(Failure::unauthorized())
        }
    }

    /// What a token proves, unless it is unknown or over.
    pub(super) fn proves(&self, token: &str) -> Option<Credential> {
        let credential = self.tables().tokens.get(token).cloned()?;
        let lives = credential
            .expires
            .is_none_or(|expires| SystemTime::now() < expires);
        lives.then_some(credential)
    }

    /// A new token for a service account, and when it expires.
    pub(super) fn issue(
        &self,
        namespace: &str,
        account: &str,
        options: &TokenOptions,
    ) -> (String, SystemTime) {
        let mut tables = self.tables();
        tables.issued += 1;
        let expires = SystemTime::now() + options.lifetime;
        let audiences = if options.audiences.is_empty() {
            vec![API_AUDIENCE.to_owned()]
        } else {
            options.audiences.clone()
        };
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let claims = json!({
            "iss": API_AUDIENCE, "sub": user, "aud": audiences,
            "exp": expires.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs()),
            "jti": tables.issued.to_string(),
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        // Of the form of a JWT; nobody but this server can tell whether it is genuine.
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let token = format!("{}.{}.c2ltdWxhdGVk", part(&header), part(&claims));
        let credential = Credential {
            user,
            uid: format!("uid-of-{namespace}-{account}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            audiences,
            expires: Some(expires),
            pod: options
                .pod
                .clone()
                .map(|(name, uid)| (namespace.to_owned(), name, uid)),
            node: options.node.clone(),
        };
        tables.tokens.insert(token.clone(), credential);
        (token, expires)
    }

    /// The user may do what the request asks for; everyone may look at discovery.
    pub(super) fn check(&self, user: &str, target: &Target) -> Result<(), Failure> {
        let Some(path) = &target.resource else {
            return Ok(());
        };
        let resource = path.with_subresource();
        let action = Action {
            verb: target.verb,
            group: &path.group,
            resource: &resource,
            namespace: &path.namespace,
            name: &path.name,
        };
        // A review of oneself is nobody else's business.
        if path.group == "authorization.k8s.io" || self.may(user, &action) {
            return Ok(());
        }
        let place = if path.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", path.namespace)
        };
        let object = if path.name.is_empty() {
            path.qualified()
        } else {
            format!("{} \"{}\"", path.qualified(), path.name)
        };
        let message = format!(
            "{object} is forbidden: User \"{user}\" cannot {} resource \"{resource}\" in API \
             group \"{}\" {place}",
            target.verb, path.group
        );
        Err(Failure::new(403, "Forbidden", message))
    }
}
