//! Whose a service account token is, as the API server says.

use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, PostParams};
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};

use super::failure::{ApiFailure, within};
use crate::model::{NamespacedName, NodeName};

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(5);
const USER_PREFIX: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whose a valid token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// The service account.
    pub account: NamespacedName,
    /// The pod that the token was made for, where it was made for one. It is there: else
    /// the API server refuses the token.
    pub pod: Option<TokenPod>,
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPod {
    /// Its name, in the namespace of the service account.
    pub name: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Its node, where the API server says so.
    pub node: Option<NodeName>,
}

/// Why it is not known whose a token is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It is nobody's, for another audience, over, or its pod is gone.
    #[error("the token is not valid: {reason}")]
    Invalid {
        /// What the API server says.
        reason: String,
    },
    /// The API server was not asked, or did not answer.
    #[error("the token can't be reviewed: {0}")]
    Failed(#[from] ApiFailure),
}

/// Asks the API server about tokens for one audience.
#[derive(Clone)]
pub struct TokenReviews {
    api: Api<TokenReview>,
    audience: String,
}

impl TokenReviews {
    /// For tokens of this audience; others are not valid.
    pub fn new(client: Client, audience: String) -> Self {
        Self {
            api: Api::all(client),
            audience,
        }
    }

    /// The audience.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Whose the token is.
    pub async fn review(&self, token: &str) -> Result<TokenOwner, ReviewError> {
        let request = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let answer = within(TIMEOUT, self.api.create(&params, &request)).await?;
        self.owner(answer.status.unwrap_or_default())
    }

    fn owner(&self, status: TokenReviewStatus) -> Result<TokenOwner, ReviewError> {
        let invalid = |reason: String| ReviewError::Invalid { reason };
        if status.authenticated != Some(true) {
            let reason = status.error.filter(|error| !error.is_empty());
            return Err(invalid(
                reason.unwrap_or_else(|| "not authenticated".to_owned()),
            ));
        }
        // Where none comes back, the server does not know of audiences, and the token was
        // made for the server itself.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(invalid(format!(
                "it is not for the audience {}",
                self.audience
            )));
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.as_deref().unwrap_or_default();
        let account = name
            .strip_prefix(USER_PREFIX)
            .and_then(|account| account.split_once(':'))
            .ok_or_else(|| invalid(format!("{name:?} is no service account")))?;
        Ok(TokenOwner {
            account: NamespacedName::new(account.0, account.1),
            pod: pod(&user),
        })
    }
}

fn pod(user: &UserInfo) -> Option<TokenPod> {
    let one = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.as_str()),
        _ => None,
    };
    Some(TokenPod {
        name: one(POD_NAME)?.to_owned(),
        uid: one(POD_UID)?.to_owned(),
        node: one(NODE_NAME).map(|node| NodeName(node.into())),
    })
}

impl fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviews")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::kube::fake::FakeApi;

    const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

    async fn review(status: Value) -> Result<TokenOwner, ReviewError> {
        let api = FakeApi::new();
        api.answer(PATH, move |request| {
            assert_eq!(request["spec"]["audiences"], json!(["fairlead-ca"]));
            assert_eq!(request["spec"]["token"], "the token");
            let mut answer = request.clone();
            answer["status"] = status.clone();
            answer
        });
        let reviews = TokenReviews::new(api.client(), "fairlead-ca".to_owned());
        reviews.review("the token").await
    }

    fn agent() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["fairlead-ca"],
            "user": {
                "username": "system:serviceaccount:fairlead-system:fairlead-agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["fairlead-agent-x"],
                    "authentication.kubernetes.io/pod-uid": ["1-2-3"],
                    "authentication.kubernetes.io/node-name": ["node-a"],
                },
            },
        })
    }

    #[tokio::test]
    async fn a_bound_token_tells_account_pod_and_node() {
        let owner = review(agent()).await.unwrap();
        let account = NamespacedName::new("fairlead-system", "fairlead-agent");
        assert_eq!(owner.account, account);
        let pod = owner.pod.unwrap();
        assert_eq!(
            (pod.name.as_str(), pod.uid.as_str()),
            ("fairlead-agent-x", "1-2-3")
        );
        assert_eq!(pod.node, Some(NodeName("node-a".into())));

        let mut old = agent();
        let extra = old["user"]["extra"].as_object_mut().unwrap();
        extra.remove("authentication.kubernetes.io/node-name");
        assert_eq!(review(old).await.unwrap().pod.unwrap().node, None);
        let mut unbound = agent();
        unbound["user"]["extra"] = Value::Null;
        assert_eq!(review(unbound).await.unwrap().pod, None);
    }

    #[track_caller]
    fn refused(outcome: Result<TokenOwner, ReviewError>, why: &str) {
        match outcome {
            Err(ReviewError::Invalid { reason }) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_no_proof_is_refused() {
        refused(review(Value::Null).await, "not authenticated");
        let expired = json!({"authenticated": false, "error": "token has expired"});
        refused(review(expired).await, "token has expired");
        let with = |key: &str, value: Value| {
            let mut status = agent();
            status[key] = value;
            status
        };
        // An API server that does not know of audiences takes a token of any pod for ours.
        let audience = "not for the audience fairlead-ca";
        refused(review(with("audiences", Value::Null)).await, audience);
        refused(
            review(with("audiences", json!(["istio-ca"]))).await,
            audience,
        );
        let admin = json!({"username": "admin"});
        refused(review(with("user", admin)).await, "no service account");
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_refuses_nobody() {
        let api = FakeApi::new();
        let reviews = TokenReviews::new(api.client(), "fairlead-ca".to_owned());
        api.set_away(true);
        let error = reviews.review("the token").await.unwrap_err();
        assert!(
            matches!(&error, ReviewError::Failed(failure) if failure.is_outage()),
            "{error}"
        );
        assert!(error.to_string().contains("connection refused"), "{error}");
    }
}
