//! Who asks: a pod, by what the API server says of its token.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::timeout;

use super::{
    claims,
    name::NamespacedName,
    refusal::Refusal,
    service::within,
    turns::{Limits, Turns},
};
use crate::listen::Source;

/// Reviews under way and waiting: strangers' tokens must not bury the API server, nor each other.
const REVIEWS: Limits = Limits { at_once: 32, per_source: 8, waiting: 256 };
/// How long a review may wait for its turn; what it then takes is the API server's time.
const QUEUE: Duration = Duration::from_secs(15);
const POD: &str = "authentication.kubernetes.io/pod-name";
const NODE: &str = "authentication.kubernetes.io/node-name";

/// A pod that has proved to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Its service account.
    pub(super) account: NamespacedName,
    /// Its name.
    pub(super) pod: String,
    /// The node it runs on, where the token says so.
    pub(super) node: Option<String>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pod {}", self.account, self.pod)?;
        if let Some(node) = &self.node {
            write!(f, " on node {node}")?;
        }
        write!(f, ")")
    }
}

/// Finds out who tokens belong to.
pub(super) struct Reviewer {
    api: Api<TokenReview>,
    audience: String,
    turns: Arc<Turns>,
}

impl Reviewer {
    pub(super) fn new(client: Client, audience: String) -> Self {
        Self { api: Api::all(client), audience, turns: Turns::new(REVIEWS) }
    }

    /// Whose `token` is. Asked anew each time, so that the token of a pod that is gone is
    /// worth nothing. Reviews of one address wait for each other, not for those of others.
    pub(super) async fn review(&self, token: &str, source: Source) -> Result<Caller, Refusal> {
        claims::plausible(token, &self.audience, SystemTime::now())
            .map_err(|cause| Refusal::Implausible { audience: self.audience.clone(), cause })?;
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            status: None,
        };
        let turn = timeout(QUEUE, self.turns.turn(source)).await;
        let Ok(Ok(_turn)) = turn else { return Err(Refusal::Busy) };
        let params = PostParams::default();
        let review = async {
            let review = self.api.create(&params, &review).await;
            review.map_err(|error| Refusal::Api(error.to_string()))
        };
        let review = within(review).await?;
        caller(review.status.unwrap_or_default(), &self.audience)
    }
}

/// Reads the API server's verdict.
fn caller(status: TokenReviewStatus, audience: &str) -> Result<Caller, Refusal> {
    let rejected = |cause: &str| Refusal::Token {
        audience: audience.to_owned(),
        cause: cause.replace(char::is_control, " "),
    };
    if status.authenticated != Some(true) {
        let cause = status.error.as_deref().unwrap_or("it is not authenticated");
        return Err(rejected(cause));
    }
    // An authenticator that knows no audiences says yes without naming ours.
    if !status.audiences.unwrap_or_default().iter().any(|accepted| accepted == audience) {
        return Err(rejected("it is for another audience"));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|name| name.split_once(':'))
        .map(|(namespace, name)| NamespacedName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
        .ok_or_else(|| Refusal::NotServiceAccount(username.escape_debug().to_string()))?;
    let mut extra = user.extra.unwrap_or_default();
    let Some(pod) = claim(&mut extra, POD) else { return Err(Refusal::NoPod(account)) };
    Ok(Caller { account, pod, node: claim(&mut extra, NODE) })
}

/// The value of a claim that has exactly one.
fn claim(extra: &mut BTreeMap<String, Vec<String>>, name: &str) -> Option<String> {
    let [value] = <[String; 1]>::try_from(extra.remove(name)?).ok()?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn accepted(username: &str, claims: &[(&str, &str)]) -> TokenReviewStatus {
        let claims = claims.iter().map(|&(name, value)| (name.into(), vec![value.into()]));
        TokenReviewStatus {
            audiences: Some(vec!["sluice-ca".into()]),
            authenticated: Some(true),
            error: None,
            user: Some(UserInfo {
                username: Some(username.into()),
                extra: Some(claims.collect()),
                ..UserInfo::default()
            }),
        }
    }

    const ORDER: &str = "system:serviceaccount:shop:order";

    #[test]
    fn a_bound_token_names_account_pod_and_node() {
        let status = accepted(ORDER, &[(POD, "order-1"), (NODE, "node-a")]);
        let caller = caller(status, "sluice-ca").unwrap();
        assert_eq!(caller.to_string(), "shop/order (pod order-1 on node node-a)");
    }

    #[test]
    fn a_token_the_api_server_rejects_is_refused_in_its_words() {
        let mut status = accepted(ORDER, &[(POD, "order-1")]);
        status.authenticated = Some(false);
        status.error = Some("token has expired\n".into());
        let refusal = caller(status, "sluice-ca").unwrap_err();
        assert!(refusal.to_string().ends_with("token has expired "), "{refusal}");
    }

    #[test]
    fn a_verdict_without_our_audience_is_none() {
        for audiences in [None, Some(vec!["https://kubernetes.default.svc".to_owned()])] {
            let mut status = accepted(ORDER, &[(POD, "order-1")]);
            status.audiences = audiences;
            let refusal = caller(status, "sluice-ca").unwrap_err();
            assert!(refusal.to_string().contains("another audience"), "{refusal}");
        }
    }

    #[test]
    fn users_and_tokens_of_no_pod_are_refused() {
        let refusal = caller(accepted("admin", &[(POD, "x")]), "sluice-ca").unwrap_err();
        assert!(matches!(refusal, Refusal::NotServiceAccount(_)), "{refusal}");
        let refusal = caller(accepted(ORDER, &[]), "sluice-ca").unwrap_err();
        assert!(matches!(refusal, Refusal::NoPod(_)), "{refusal}");
    }
}
