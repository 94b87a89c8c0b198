//! External authorization: what CUSTOM policies have somebody else asked about requests.
//!
//! Enters: a request that has reached a pod, and the pod's policies. Leaves: the request as the
//! authorizers want it, and what its client is to be answered besides; or a refusal. An authorizer is asked
//! as the pod itself would ask it ([`channel`]): through the mesh, under its identity and within its
//! budgets. Whoever cannot be asked has not permitted anything, unless MeshConfig says `failOpen`.

mod answer;
mod channel;
mod check;
mod grpc;
mod http;
mod messages;

pub use channel::Channels;

use std::{fmt, sync::Arc};

use self::{
    answer::{Permit, Said},
    check::Check,
};
use super::{
    LocalPod, Proxy, admission::is_kubelet, authorization::asks, inbound::Arrival, refusal::Refusal,
};
use crate::{
    http::{AnyRequest, AnyResponse},
    mesh::{Snapshot, Workload},
    policy::{By, Claims, Provider, Speaks},
    telemetry::{Failure, Judgement, Ruling},
};

/// What the client of a request is answered beside what the application says.
#[derive(Debug, Default)]
pub(super) struct More(Option<Box<answer::Changes>>);

impl More {
    /// Makes it so.
    pub(super) fn add_to(&self, head: &mut impl AnyResponse) {
        if let Some(changes) = &self.0 {
            changes.apply(head);
        }
    }
}

/// Why an authorizer could not be asked.
#[derive(Debug)]
struct Unasked(String);

impl<E: fmt::Display> From<E> for Unasked {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Has everybody asked whom the policies of `workload` want asked about `request`, one after the other.
/// Its head is what they want it to be afterwards.
pub(super) async fn permitted(
    proxy: &Arc<Proxy>,
    pod: &Arc<LocalPod>,
    workload: &Workload,
    arrival: &Arrival,
    request: &mut (impl AnyRequest + Send),
    claims: Option<&Claims>,
) -> Result<More, Refusal> {
    let authorization = &*workload.authorization;
    let mut more = answer::Changes::default();
    for authorizer in 0..authorization.authorizers() {
        let asked = asks(authorization, authorizer, arrival, request, claims)?;
        let Some((name, by)) = asked else { continue };
        if is_kubelet(proxy, arrival).await {
            continue;
        }
        let ruling = ruling(&by);
        let snapshot = proxy.snapshots.load();
        let refuse = |refusal| Err(ruled(refusal, ruling.clone()));
        let provider = match provider(&snapshot, name) {
            Ok(provider) => provider,
            Err(why) => {
                let why = format!("{by} has `{name}` asked: {why}");
                return refuse(Refusal::new(
                    ::http::StatusCode::FORBIDDEN,
                    Failure::ExtAuthzError,
                    why,
                ));
            }
        };
        let check = Check::of(arrival, workload, request);
        match ask(proxy, pod, &snapshot, provider, check).await {
            Ok(Said::Permitted(permit)) => {
                let Permit { request: changes, response } = *permit;
                changes.apply(request);
                more.extend(response);
            }
            Ok(Said::Denied(answer)) => {
                let status = ::http::StatusCode::from_u16(answer.status);
                let status = status.unwrap_or(::http::StatusCode::FORBIDDEN);
                let why = format!("{by} has `{name}` asked, who said no");
                let refusal = Refusal::new(status, Failure::ExtAuthzDenied, why);
                return refuse(Refusal { answer: Some(answer), ..refusal });
            }
            Err(Unasked(why)) => {
                let (client, app, fail_open) = (arrival.client, arrival.app, provider.fail_open);
                tracing::info!(%client, %app, provider = %name, policy = %by.name(), error = why,
                    fail_open, "an external authorizer could not be asked");
                if fail_open {
                    continue;
                }
                let status = ::http::StatusCode::from_u16(provider.status_on_error);
                let status = status.unwrap_or(::http::StatusCode::FORBIDDEN);
                let why = format!("{by} has `{name}` asked, which was not possible: {why}");
                return refuse(Refusal::new(status, Failure::ExtAuthzError, why));
            }
        }
    }
    Ok(More((!more.is_empty()).then(|| Box::new(more))))
}

/// The authorizer of that name, or why there is none.
fn provider<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Arc<Provider>, String> {
    match snapshot.providers().get(name) {
        Some(Ok(provider)) => Ok(provider),
        Some(Err(why)) => Err(format!("it cannot be obeyed: {why}")),
        None => {
            Err("MeshConfig has no such extension provider (hint: key mesh of ConfigMap istio in \
                     the root namespace)"
                .into())
        }
    }
}

/// Asks, for as long as it may take.
async fn ask(
    proxy: &Arc<Proxy>,
    pod: &Arc<LocalPod>,
    snapshot: &Snapshot,
    provider: &Provider,
    check: Check,
) -> Result<Said, Unasked> {
    let client = pod.authorizers.client(proxy, pod, snapshot, provider)?;
    let asked = async {
        match &provider.speaks {
            Speaks::Grpc => grpc::ask(client, provider, check).await,
            Speaks::Http(over) => http::ask(client, provider, over, check).await,
        }
    };
    let timeout = provider.timeout;
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(Unasked(format!("no answer within {timeout:?}"))))
}

fn ruling(by: &By<'_>) -> Ruling {
    Ruling { policy: by.name().clone(), rule: by.rule }
}

fn ruled(refusal: Refusal, denied: Ruling) -> Refusal {
    let judgement = Judgement { denied: Some(denied), ..Judgement::default() };
    Refusal { judgement: Some(Box::new(judgement)), ..refusal }
}
